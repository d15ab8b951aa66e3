"""AUROC of many features at once, pooled or within strata, with intervals over clusters.

The interval is DeLong's for clustered data (Obuchowski, Biometrics 53, 1997), on the logit scale:
each state's place among the others is its influence, and influences are summed within a cluster.
Within strata it is the same for van Elteren's weighted sum of rank sums.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CELLS = 2**23  # cells of a block of features: what is sorted at once takes 64 MB a copy
_NORMAL = 1.959963984540054


@dataclass(frozen=True)
class Auroc:
    """How well each feature tells positive from negative states."""

    value: Float[Tensor, " features"]
    """Chance that a positive state has the higher activation, ties counted half."""
    low: Float[Tensor, " features"]
    """Lower end of the 95% interval."""
    high: Float[Tensor, " features"]
    """Upper end."""
    pairs: float
    """Weight of the pairs compared: the number of pairs, or, within strata, of states that have
    somebody to be compared with, m n / (m + n + 1) summed; 0 where there are none."""


@torch.no_grad()
def auroc(
    acts: Float[Tensor, "n features"],
    positive: Bool[Tensor, " n"],
    *,
    clusters: Int[Tensor, " n"],
    strata: Int[Tensor, " n"] | None = None,
) -> Auroc:
    """Give each feature's AUROC.

    Args:
        acts: activations, of any sign.
        positive: the states that should have the higher ones; the others are negative.
        clusters: states that are not independent, such as those of one prompt, have one number.
        strata: compare only states of equal numbers, such as those of one token at one position;
            strata count by m n / (m + n + 1), m positive and n negative states, after van
            Elteren, so that a few large ones do not outweigh all others.

    Raises:
        ValueError: a mask that is not bool.
    """
    if positive.dtype != torch.bool:
        raise ValueError(f"positive must be a bool mask, got {positive.dtype}")
    used = _Strata.of(positive, torch.zeros_like(clusters) if strata is None else strata)
    if strata is None and used.pairs:
        used.weights = torch.ones_like(used.weights)
        used.pairs = float((used.ups * used.downs).sum())
    if not used.pairs:
        nothing = torch.full((acts.shape[1],), torch.nan, dtype=torch.float64)
        return Auroc(nothing, nothing, nothing, 0.0)
    owner = clusters[used.kept].unique(return_inverse=True)[1]
    width = max(1, _CELLS // len(used.kept))
    found = [_block(part[used.kept], used, owner) for part in acts.split(width, dim=1)]
    value, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Auroc(value, *_interval(value, error, used, owner), used.pairs)


class _Strata:
    """The states that can be compared, sorted by stratum, and what their strata hold."""

    def __init__(self, kept: Tensor, positive: Tensor, strata: Tensor, counts: Tensor) -> None:
        self.kept, self.positive, self.strata = kept, positive, strata
        self.ups, self.downs = counts[:, 0].double(), counts[:, 1].double()
        self.weights = 1 / (self.ups + self.downs + 1)
        self.pairs = float((self.weights * self.ups * self.downs).sum())

    @classmethod
    def of(cls, positive: Tensor, strata: Tensor) -> "_Strata":
        """Leave out the strata that hold one kind of state only."""
        number = strata.unique(return_inverse=True)[1]
        counts = torch.zeros(int(number.max()) + 1 if len(number) else 0, 2, dtype=torch.long)
        counts.index_put_((number, (~positive).long()), torch.ones_like(number), accumulate=True)
        both = (counts > 0).all(dim=1)
        kept = torch.where(both[number])[0]
        kept = kept[number[kept].argsort(stable=True)]
        renumber = both.cumsum(0) - 1
        return cls(kept, positive[kept], renumber[number[kept]], counts[both])


def _block(acts: Tensor, used: _Strata, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Give AUROC and standard error of some features, states being those of the strata."""
    features, n = acts.shape[1], len(acts)
    # Sorted within strata by one key: the stratum, then the number as an integer of equal order.
    keys, order = (_ordered(acts).T + (used.strata << 32)).sort(dim=1)
    up = used.positive[order]
    new = torch.ones(features, n, dtype=torch.bool)
    new[:, 1:] = keys[:, 1:] != keys[:, :-1]
    tie = new.reshape(-1).cumsum(0) - 1  # states with equal activations, numbered over all
    ups, downs = (torch.bincount(tie, weights=mask.reshape(-1).double()) for mask in (up, ~up))
    first = torch.where(new.reshape(-1))[0]
    stratum = keys.reshape(-1)[first] >> 32
    begins = torch.ones(len(first), dtype=torch.bool)
    begins[1:] = (stratum[1:] != stratum[:-1]) | (first[1:] // n != first[:-1] // n)
    start = torch.where(begins)[0][begins.cumsum(0) - 1]
    below, above = ups.cumsum(0) - ups, downs.cumsum(0) - downs
    # For a positive state the negative ones below it, for a negative one the positive ones above.
    beaten = above - above[start] + downs / 2
    beating = used.ups[stratum] - (below - below[start]) - ups / 2
    place = torch.where(up.reshape(-1), beaten[tie], beating[tie]).reshape(features, n)
    weight = used.weights[used.strata]
    weighted = place * weight[order]
    value = (weighted * up).sum(dim=1) / used.pairs
    others = torch.where(used.positive, used.downs[used.strata], used.ups[used.strata])
    count = int(owner.max()) + 1
    expected = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, weight * others)
    sums = torch.zeros(features, count, dtype=torch.float64)
    sums.scatter_add_(1, owner[order], weighted)
    influence = (sums - value[:, None] * expected) / used.pairs
    scale = count / (count - 1) if count > 1 else math.nan
    return value, (scale * influence.square().sum(dim=1)).sqrt()


def _ordered(values: Tensor) -> Tensor:
    """Give float32 numbers as non-negative integers below 2**32, in the same order."""
    bits = (values.float() + 0.0).view(torch.int32)  # adding turns -0.0 into 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.long() + 2**31


def _interval(value: Tensor, error: Tensor, used: _Strata, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Give the ends of the intervals; where all pairs agree, by the rule of three on clusters."""
    inside = value.clamp(1e-9, 1 - 1e-9)
    step = _NORMAL * error / (inside * (1 - inside))
    logit = inside.logit()
    low, high = (logit - step).sigmoid(), (logit + step).sigmoid()
    each = min(len(owner[used.positive].unique()), len(owner[~used.positive].unique()))
    least = max(0.0, 1 - 3 / each)
    low = torch.where(value > 1 - 1e-9, least, low)
    high = torch.where(value < 1e-9, 1 - least, high)
    return low, high
