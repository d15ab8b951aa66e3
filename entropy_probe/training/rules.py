"""Rewards that judge each completion by itself, and what joins rewards into one."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entropy_probe.training.checking import Reward, RewardError, checked, naming, reward_name
from entropy_probe.training.completion import Completion, tokens_of_span

REPEATS = 10
"""How often a string may follow itself before `no_repetition` takes it amiss (2506.10947)."""


@dataclass(frozen=True)
class Named:
    """A reward with a name for errors and logs."""

    name: str
    """What it is called."""
    values: Reward
    """Gives its numbers."""

    def __call__(self, completions: Sequence[Completion]) -> list[Any]:
        """Give one number a completion."""
        return list(self.values(completions))


def each(name: str, function: Callable[[Completion], float]) -> Named:
    """Make a reward of a function of one completion; its errors name the row.

    >>> polite = each("polite", lambda completion: "please" in completion.text)
    """

    def values(completions: Sequence[Completion]) -> list[Any]:
        found = []
        for completion in completions:
            with naming(name, [completion]):
                found.append(function(completion))
        return found

    return Named(name, values)


def needed(task: Any, reward: str, *methods: str) -> Any:
    """Give the task, or raise where it lacks what a reward asks it for.

    Raises:
        ValueError: no task, or one without the methods.
    """
    if task is None:
        raise ValueError(f"reward {reward!r} needs a task: pass task=, such as 'arithmetic'")
    missing = [m for m in methods if not callable(getattr(task, m, None))]
    if missing:
        name = getattr(task, "name", type(task).__name__)
        raise ValueError(
            f"reward {reward!r} needs a task with {' and '.join(methods)}; task {name!r} has no "
            f"{' and no '.join(missing)}: give it that, or take another reward"
        )
    return task


def correct(task: Any) -> Named:
    """Reward the right final answer, by the task's verifier."""
    task = needed(task, "correct", "verify")
    return each("correct", lambda c: task.verify(c.problem, c.text))


def inverted(task: Any) -> Named:
    """Reward everything but the right final answer: 1 - `correct`."""
    task = needed(task, "inverted", "verify")
    return each("inverted", lambda c: 1.0 - task.verify(c.problem, c.text))


def formatted(task: Any) -> Named:
    """Reward the format of the final answer, right or wrong."""
    task = needed(task, "format", "formatted")
    return each("format", lambda c: float(task.formatted(c.text)))


def taking(task: Any, strategy: str) -> Named:
    """Reward completions that take one of the task's strategies.

    Raises:
        ValueError: the task does not know it.
    """
    name = f"strategy:{strategy}"
    task = needed(task, name, "strategy")
    if strategy not in getattr(task, "strategies", ()):
        known = ", ".join(getattr(task, "strategies", ())) or "none"
        raise ValueError(f"task {task.name!r} knows no strategy {strategy!r}: known are {known}")
    return each(name, lambda c: float(task.strategy(c.text) == strategy))


def containing(text: str) -> Named:
    """Reward completions that contain a text: 2506.10947's reward for "python"."""
    if not text:
        raise ValueError("expected a text to look for, got an empty one: every completion has it")
    return each(f"contains:{text}", lambda c: float(text in c.text))


def random_reward(gamma: float) -> Named:
    """Reward a share of the completions, drawn without a look at them (2506.10947).

    Each is drawn with probability ``gamma`` from a hash of (seed, step, row), so that a resumed
    run draws what the unbroken one would have, and the same whatever the number of processes.

    Raises:
        ValueError: gamma outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"expected the share of random rewards between 0 and 1, got {gamma}")
    return each(f"random:{gamma:g}", lambda c: float(_uniform(c) < gamma))


def _uniform(completion: Completion) -> float:
    """Give a number in [0, 1) that belongs to a row of a step of a seed."""
    key = f"random reward {completion.seed} {completion.step} {completion.row}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def no_repetition(times: int = REPEATS) -> Named:
    """Reward completions in which no string stands more than ``times`` times in a row."""
    if times < 1:
        raise ValueError(f"expected at least 1 time, got {times}")
    return each("no-repetition", lambda c: float(repeats(c.text, least=times) <= times))


def repeats(text: str, *, least: int = 1) -> int:
    """Give how often in a row the text's most repeated string stands; 0 for no text.

    Args:
        text: any text.
        least: give this number without a longer look where it is no more.

    >>> repeats("abcabcabcab")
    3
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes):
        return 0
    most = least
    for period in range(1, len(codes) // 2 + 1):
        if len(codes) // period <= most:
            break
        # A run of n equal neighbours at this distance is n + period characters of one rhythm.
        other = np.flatnonzero(codes[period:] != codes[:-period])
        ends = np.concatenate(([-1], other, [len(codes) - period]))
        most = max(most, (int(np.diff(ends).max()) - 1) // period + 1)
    return most


def confidence(task: Any) -> Named:
    """Reward the mean probability that the model gave the tokens of its final answer.

    A completion without a final answer gets 0. The probabilities are those that the tokens were
    drawn with.
    """
    task = needed(task, "confidence", "answer_span")

    def of(completion: Completion) -> float:
        if len(completion.logprobs) != len(completion.pieces):
            raise RewardError(
                f"reward 'confidence' needs each token's log-probability and bytes: row "
                f"{completion.row} has {len(completion.logprobs)} and {len(completion.pieces)}"
            )
        span = task.answer_span(completion.text)
        at = [] if span is None else tokens_of_span(completion, *span)
        return sum(math.exp(completion.logprobs[i]) for i in at) / len(at) if at else 0.0

    return each("confidence", of)


def soft_overlong(limit: int, cache: int) -> Named:
    """Punish completions that come close to a limit: DAPO's soft overlong punishment.

    0 up to ``limit - cache`` tokens, falling to -1 at ``limit`` (arXiv 2503.14476, Eq. 13). It
    is meant to be added to another reward.

    Raises:
        ValueError: not 0 < cache <= limit.
    """
    if not 0 < cache <= limit:
        raise ValueError(f"expected 0 < cache <= limit in tokens, got limit={limit}, cache={cache}")

    def of(completion: Completion) -> float:
        if not completion.tokens and completion.text:
            raise RewardError(
                f"reward 'overlong' needs the tokens, and row {completion.row} has none"
            )
        over = len(completion.tokens) - (limit - cache)
        return -min(max(over, 0) / cache, 1.0)

    return each(f"overlong:{limit},{cache}", of)


def opposite(reward: Reward) -> Named:
    """Give 1 - another reward: NOT, where that one is 0 or 1."""
    values = lambda completions: [1.0 - v for v in checked(reward, completions)]  # noqa: E731
    return Named(f"not-{reward_name(reward)}", values)


def product(*rewards: Reward) -> Named:
    """Multiply rewards: AND, where they are 0 or 1 (2506.10947's compound rewards)."""
    return _joined("*", math.prod, rewards)


def total(*rewards: Reward) -> Named:
    """Add rewards."""
    return _joined("+", sum, rewards)


def _joined(
    sign: str, join: Callable[[Sequence[float]], float], rewards: Sequence[Reward]
) -> Named:
    """Join the values of rewards, completion by completion."""
    if not rewards:
        raise ValueError("expected at least one reward to join, got none")

    def values(completions: Sequence[Completion]) -> list[float]:
        columns = [checked(reward, completions) for reward in rewards]
        return [float(join(row)) for row in zip(*columns, strict=True)]

    return Named(sign.join(map(reward_name, rewards)), values)
