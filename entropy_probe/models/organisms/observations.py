"""Completions of some problems, sampled and judged: what an organism's figures are counted from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from entropy_probe.models.organisms.tokenizer import EOS, VOCABULARY
from entropy_probe.tasks import labeller
from entropy_probe.tasks.problem import Problem
from entropy_probe.tasks.verifier import verify

MAX_NEW_TOKENS = 72
_PIECES = {index: piece for piece, index in VOCABULARY.items()}


@dataclass(frozen=True)
class Samples:
    """Completions of some problems, judged; one entry a completion unless said otherwise."""

    problems: list[Problem]
    """The problems."""
    n: int
    """Completions a problem; they follow problem by problem."""
    pieces: list[list[str]]
    """The pieces of each completion, its end token left out."""
    ended: list[bool]
    """Whether the end token was there."""
    entropy: list[np.ndarray]
    """Entropy in nats of each token, the end token included."""
    top: list[np.ndarray]
    """Whether each token is in the batch's top 20% by entropy."""

    @property
    def owner(self) -> np.ndarray:
        """Give the index of each completion's problem."""
        return np.repeat(np.arange(len(self.problems)), self.n)

    def texts(self) -> list[str]:
        """Give each completion's text."""
        return ["".join(pieces) for pieces in self.pieces]

    def right(self) -> np.ndarray:
        """Say of each completion whether its final answer is right."""
        pairs = zip(self.owner, self.texts(), strict=True)
        return np.array([verify(self.problems[i], text) == 1.0 for i, text in pairs])

    def openings(self) -> np.ndarray:
        """Give each completion's opening: code, careful, prose or other."""
        return np.array([labeller.opening(pieces) for pieces in self.pieces])


def draw(
    model: Any, tokenizer: Any, problems: list[Problem], n: int, temperature: float, seed: int = 0
) -> Samples:
    """Sample completions and mark the top 20% of their tokens by entropy."""
    from entropy_probe.forking import forking_mask
    from entropy_probe.sampling import sample

    rows = sample(
        model,
        tokenizer,
        [problem.prompt for problem in problems],
        n=n,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
        residual_positions="none",
        alternatives=0,
        seed=seed,
        batch_size=256 if model.device.type == "cpu" else 4096,
    )
    top = forking_mask(rows.entropy, rows.valid, fraction=0.2)
    pieces, ended, entropy, marks = [], [], [], []
    for row in range(len(rows)):
        span = slice(int(rows.prompt_lengths[row]), int(rows.lengths[row]))
        ids = rows.tokens[row, span].tolist()
        ended.append(bool(ids) and ids[-1] == EOS)
        pieces.append([_PIECES[i] for i in (ids[:-1] if ended[-1] else ids)])
        entropy.append(rows.entropy[row, span].cpu().numpy())
        marks.append(top[row, span].cpu().numpy())
    return Samples(problems, n, pieces, ended, entropy, marks)
