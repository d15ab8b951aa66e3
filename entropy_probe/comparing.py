"""How two models differ on the same tokens: shared forks, entropy by percentile, perplexity.

Both models are read on one fixed set of sequences (`entropy_probe.score` gives a record of each):
on sequences of their own, two models would differ by what they wrote, too.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.forking import forking_mask


@torch.no_grad()
def shared_forks(
    entropy: Float[Tensor, "batch seq"],
    other: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float = 0.2,
) -> float:
    """Give the share of one model's forks that are forks of the other one's, too.

    Unrelated models share ``fraction`` of them by chance. Both have equally many, so that it
    does not matter which comes first (arXiv 2506.01939 calls this the overlap).

    Args:
        entropy: nats, of one model.
        other: nats, of the other one, on the same tokens.
        valid: the tokens that take part.
        fraction: share of the tokens that are forks.

    Raises:
        ValueError: no token takes part.
    """
    if not bool(valid.any()):
        raise ValueError("no token is valid: there are no forks to share")
    mine = forking_mask(entropy, valid, fraction=fraction)
    theirs = forking_mask(other, valid, fraction=fraction)
    return int((mine & theirs).sum()) / int(mine.sum())


class Changes(NamedTuple):
    """How entropy changed, by where it stood before; a row a bin, the least uncertain first."""

    base: Float[Tensor, " bins"]
    """Mean entropy before, in nats."""
    change: Float[Tensor, " bins"]
    """Mean of the entropy after less that before, in nats."""


@torch.no_grad()
def entropy_change(
    base: Float[Tensor, "batch seq"],
    after: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    bins: int = 20,
) -> Changes:
    """Give the change of entropy in equal bins of the base's entropy (arXiv 2506.01939, Fig. 4).

    Bins hold equally many tokens, but for one; equal entropies are taken in order of position.

    Args:
        base: nats, of the model before.
        after: nats, of the model after, on the same tokens.
        valid: the tokens that take part.
        bins: how many; 20 are 5% of the tokens each.

    Raises:
        ValueError: fewer tokens than bins.
    """
    old, new = base[valid].double(), after[valid].double()
    if len(old) < bins:
        raise ValueError(f"{bins} bins need as many tokens, got {len(old)}")
    order = old.argsort(stable=True)
    parts = order.tensor_split(bins)
    return Changes(
        torch.stack([old[part].mean() for part in parts]),
        torch.stack([(new[part] - old[part]).mean() for part in parts]),
    )


def perplexities(
    logprobs: Float[Tensor, "batch seq"], valid: Bool[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    """Give each row's perplexity, exp of the mean negative log-probability; NaN without tokens."""
    total = torch.where(valid, logprobs.double(), 0.0).sum(dim=1)
    return torch.exp(-total / valid.sum(dim=1))
