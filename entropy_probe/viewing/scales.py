"""The fixed colour scales: where one of eight levels ends and the next begins, and number words.

The steps never depend on the data, so that two pages can be laid side by side. Values are
handled in thousandths (integers), as they are stored in the page: drawing and redrawing agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, isnan

import numpy as np


@dataclass(frozen=True)
class Scale:
    """One quantity's eight levels."""

    name: str
    """Short name: entropy, logprob, rank or reward."""
    title: str
    """What is coloured, with its unit."""
    cuts: tuple[int, ...]
    """Seven ascending lower bounds of levels 1 to 7, in stored units."""
    labels: tuple[str, ...]
    """What each level says in the legend."""

    def levels(self, stored: Sequence[int] | np.ndarray) -> np.ndarray:
        """Give the level 0 to 7 of stored values."""
        return np.searchsorted(np.asarray(self.cuts), np.asarray(stored), side="right")


ENTROPY = Scale(
    "entropy",
    "entropy (nats)",
    (50, 200, 400, 700, 1000, 1500, 2300),
    ("0", "0.05", "0.2", "0.4", "0.7", "1.0", "1.5", "2.3+"),
)
"""In nats: 0.7 is a coin toss between two tokens, 2.3 ten equal choices."""

LOGPROB = Scale(
    "logprob",
    "log-probability of the token (nats)",
    (50, 200, 400, 700, 1000, 2300, 4600),
    ("0", "−0.05", "−0.2", "−0.4", "−0.7", "−1.0", "−2.3", "−4.6…"),
)
"""Stored negated: 0.7 is a probability of one half, 2.3 one in ten, 4.6 one in a hundred."""

RANK = Scale(
    "rank",
    "rank of the token (0 = most probable)",
    (1, 2, 3, 5, 10, 100, 1000),
    ("0", "1", "2", "3", "5", "10", "100", "1000+"),
)
"""How many tokens were more probable."""

METRICS = (ENTROPY, LOGPROB, RANK)


def reward_words(reward: float) -> str:
    """Write a reward; a rollout without one has NaN."""
    return "not given" if isnan(reward) else f"{reward:.3g}"


def reward_scale(rewards: Sequence[float]) -> Scale:
    """Give the scale of a reward: from 0 to 1 if the rewards are, else from least to greatest."""
    rewards = [reward for reward in rewards if isfinite(reward)]
    low, high = min(rewards, default=0.0), max(rewards, default=1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    steps = [low + (high - low) * i / 7 for i in range(8)]
    cuts = tuple(round(1000 * (a + b) / 2) for a, b in zip(steps, steps[1:], strict=False))
    return Scale("reward", "reward of the rollout", cuts, tuple(f"{s:.2g}" for s in steps))


def thousandths(values: Sequence[float] | np.ndarray, *, negate: bool = False) -> np.ndarray:
    """Give values in rounded thousandths, at least 0; infinite ones at the largest storable."""
    array = np.asarray(values, dtype=np.float64)
    scaled = np.nan_to_num((-array if negate else array) * 1000, posinf=LARGEST)
    return np.clip(np.rint(scaled), 0, LARGEST).astype(np.int64)


LARGEST = 64**3 - 1
"""The largest stored number: three digits of base 64, so 262.143 nats."""


def probability(logprob: float) -> str:
    """Write exp(logprob) as a percentage that is never rounded to certainty or to nothing."""
    percent = 100 * exp(min(logprob, 0.0))
    if percent > 99.95 and logprob < 0:
        return ">99.9%"
    return f"{percent:.1f}%" if percent >= 0.05 else "<0.1%"
