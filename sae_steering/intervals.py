"""Intervals for many features at once: percentile bootstrap over clusters of states.

States of one prompt are no independent observations, so prompts are what is drawn again. Every
quantity is a function of sums over clusters, and a draw is a product of matrices.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_probe.rollout import Rollouts

DRAWS = 400
"""Bootstrap draws."""
LEVEL = 0.95
"""Share of draws inside an interval."""


def cluster_sums(
    values: Float[Tensor, "n columns"], clusters: Int[Tensor, " n"]
) -> Float[Tensor, "clusters columns"]:
    """Give the sum of each cluster's values, float64; clusters are numbered from 0."""
    count = int(clusters.max()) + 1 if len(clusters) else 0
    out = torch.zeros(count, values.shape[1], dtype=torch.float64)
    return out.index_add_(0, clusters, values.double())


class Prompts:
    """Numbers prompts over records, by their tokens: what is independent, wherever its rows are."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[tuple[bytes, int], int] = {}

    def numbers(self, record: Rollouts) -> Int[Tensor, " batch"]:
        """Give each row the number of its prompt; rows of one group have one number.

        A prompt of one token or none, as of texts that nobody asked for, says too little: there
        the group counts, too.
        """
        own: dict[int, int] = {}
        groups = record.groups.tolist()
        for row, group in enumerate(groups):
            if group not in own:
                prompt = record.tokens[row, : int(record.prompt_lengths[row])].long()
                key = prompt.numpy().tobytes(), group if len(prompt) < 2 else -1
                own[group] = self._known.setdefault(key, len(self._known))
        return torch.tensor([own[group] for group in groups], dtype=torch.long)


def renumbered(clusters: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Give the same clusters, numbered from 0 without gaps."""
    return clusters.unique(return_inverse=True)[1]


def bootstrap(
    sums: Float[Tensor, "clusters columns"],
    statistic: Callable[[Tensor], Tensor],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give (value, low, high) of a statistic of sums over clusters.

    Args:
        sums: what each cluster adds to each column.
        statistic: takes totals ``[..., columns]`` and gives ``[..., results]``.
        draws: how often the clusters are drawn again; with 0 the bounds are NaN.
        seed: of the draws.
    """
    value = statistic(sums.sum(dim=0))
    if not draws or len(sums) < 2:
        return value, torch.full_like(value, torch.nan), torch.full_like(value, torch.nan)
    noise = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (draws, len(sums)), generator=noise)
    weights = torch.zeros(draws, len(sums), dtype=torch.float64)
    weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    drawn = statistic(weights @ sums)
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = drawn.nanquantile(tails, dim=0)
    return value, low, high
