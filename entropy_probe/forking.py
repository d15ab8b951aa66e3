"""Which positions are forks: how many, ranked within what, ties and threshold explicit."""

import math
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SCOPES = ("batch", "group", "sequence")
RULES = ("exact", "threshold")


@torch.no_grad()
def forking_mask(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float = 0.2,
    scope: str = "batch",
    rule: str = "exact",
    threshold: float | None = None,
    groups: Int[Tensor, " batch"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Give True at the forking tokens: the most uncertain share of the valid ones.

    ``rule="exact"`` keeps exactly ceil(fraction * n) of the n valid tokens of each scope (all
    rows, each group of rows, each row); equal entropies are taken in order of position, row by
    row, where a quantile rule would keep them all. ``rule="threshold"`` keeps entropy >=
    threshold, in nats: the only rule that a decision taken during generation can use. The idea
    is arXiv 2506.01939's (Eq. 6), whose code ranks within a micro-batch; pass that as the batch.

    Args:
        entropy: nats; only values inside ``valid`` are read.
        valid: the tokens that take part.
        fraction: share kept, 0.2 keeps 20%; read by the exact rule only.
        scope: "batch", "group" or "sequence": what the share is a share of.
        rule: "exact" or "threshold".
        threshold: nats; belongs to the threshold rule, and only there.
        groups: which group each row belongs to; belongs to ``scope="group"``.

    Raises:
        ValueError: a mask that is not bool, NaN among the valid entropies, a fraction outside
            (0, 1], or an option that would not be read.

    >>> import torch
    >>> entropy = torch.tensor([[0.0, 0.1, 2.0, 0.1, 0.3]])
    >>> forking_mask(entropy, entropy >= 0).tolist()
    [[False, False, True, False, False]]
    """
    _check(entropy, valid, fraction, scope, rule, threshold, groups)
    if rule == "threshold":
        return valid & (entropy >= threshold)
    place = valid.reshape(-1).nonzero()[:, 0]
    # Stable sorts: by entropy, then by scope; so ties keep the order of their positions.
    order = entropy.reshape(-1)[place].argsort(descending=True, stable=True)
    rows = torch.div(place[order], max(entropy.shape[1], 1), rounding_mode="floor")
    if scope == "batch":
        starts, counts = _spans(torch.zeros_like(rows))
    else:
        scopes = rows if scope == "sequence" else groups.to(rows.device).long()[rows]
        scopes, by_scope = scopes.sort(stable=True)
        order = order[by_scope]
        starts, counts = _spans(scopes)
    kept = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    exact = Fraction(repr(float(fraction)))
    for start, count in zip(starts, counts, strict=True):
        kept[place[order[start : start + math.ceil(exact * count)]]] = True
    return kept.reshape(valid.shape)


def _spans(sorted_ids: Int[Tensor, " n"]) -> tuple[list[int], list[int]]:
    """Give where each run of equal ids starts, and its length."""
    counts = torch.unique_consecutive(sorted_ids, return_counts=True)[1]
    return (counts.cumsum(0) - counts).tolist(), counts.tolist()


def _check(
    entropy: Tensor,
    valid: Tensor,
    fraction: float,
    scope: str,
    rule: str,
    threshold: float | None,
    groups: Tensor | None,
) -> None:
    """Refuse what would select other tokens than asked for, in silence."""
    if valid.dtype != torch.bool:
        raise ValueError(
            f"valid must be a bool mask, got {valid.dtype}: an integer mask gathers positions "
            "0 and 1 instead of selecting; pass valid.bool()"
        )
    if entropy.shape != valid.shape or entropy.dim() != 2:
        raise ValueError(
            f"entropy and valid must both be [batch seq], got {tuple(entropy.shape)} and "
            f"{tuple(valid.shape)}"
        )
    if scope not in SCOPES or rule not in RULES:
        raise ValueError(
            f"scope must be one of {SCOPES} and rule one of {RULES}, got {scope!r}, {rule!r}"
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1 (0.2 keeps 20%), got {fraction}")
    if (rule == "threshold") != (threshold is not None):
        raise ValueError(
            f"threshold (nats) belongs to rule='threshold', and there only: got rule={rule!r}, "
            f"threshold={threshold}"
        )
    if threshold is not None and math.isnan(threshold):
        raise ValueError("threshold is NaN, above which nothing lies: pass nats")
    if (scope == "group") != (groups is not None):
        raise ValueError(
            f"groups belongs to scope='group', and there only: got scope={scope!r}, "
            f"groups {'missing' if groups is None else 'given'}"
        )
    if groups is not None and tuple(groups.shape) != (entropy.shape[0],):
        raise ValueError(f"groups must be [{entropy.shape[0]}], got {tuple(groups.shape)}")
    if bool((entropy.isnan() & valid).any()):
        where = (entropy.isnan() & valid).nonzero()[0].tolist()
        raise ValueError(f"entropy is NaN at valid position {where} (row, position)")
