"""The places of the top 20% by entropy on fixed completions, followed over a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from entropy_probe import forking_mask, sample, score
from entropy_probe.tasks import Problem

FRACTION = 0.2
BINS = 20
"""Bins of the base's entropy, 5% of the tokens each (2506.01939, Fig. 4)."""


def follow(
    model,
    tokenizer,
    problems: Sequence[Problem],
    states: Sequence[tuple[int, Mapping[str, Any]]],
    *,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """Score the last model's completions under each state; give how the top 20% move.

    As in 2506.01939: the completions are the trained model's, and the share of places in common is
    taken with the first model and with the last. Chance is 20%.

    Args:
        model: as it is after training; it ends as it was.
        tokenizer: its tokenizer.
        problems: what is asked, one completion each.
        states: (step, weights), the first before training and the last after it.
        max_new_tokens: tokens after which a completion is cut.
        seed: of the noise.

    Returns:
        ``steps``, ``with_first`` and ``with_last``; ``change``, the mean change of entropy in nats
        from first to last in each bin of the first one's entropy, lowest first; and ``base``, the
        first one's mean entropy in each.
    """
    rows = sample(
        model, tokenizer, [problem.prompt for problem in problems], n=1, seed=seed,
        max_new_tokens=max_new_tokens, alternatives=0, residual_positions="none", batch_size=512,
    )  # fmt: skip
    entropies, masks = [], []
    for _, state in states:
        model.load_state_dict(state)
        seen = score(
            model, tokenizer, rows.tokens, rows.valid, prompt_lengths=rows.prompt_lengths,
            groups=rows.groups, alternatives=0, residual_positions="none", batch_size=256,
        )  # fmt: skip
        entropies.append(seen.entropy[rows.valid].double().numpy())
        masks.append(forking_mask(seen.entropy, rows.valid, fraction=FRACTION)[rows.valid])
    change = binned(entropies[0], entropies[-1] - entropies[0])
    return {
        "steps": [step for step, _ in states],
        "with_first": [shared(mask, masks[0]) for mask in masks],
        "with_last": [shared(mask, masks[-1]) for mask in masks],
        "change": change,
        "base": binned(entropies[0], entropies[0]),
    }


def shared(mask: torch.Tensor, other: torch.Tensor) -> float:
    """Give the share of a mask's places that another mask of as many has, too."""
    return float((mask & other).sum() / other.sum())


def binned(by: np.ndarray, values: np.ndarray) -> list[float]:
    """Give the mean of values in `BINS` bins of equal counts, in the order of other numbers."""
    order = np.argsort(by, kind="stable")
    return [float(part.mean()) for part in np.array_split(values[order], BINS)]
