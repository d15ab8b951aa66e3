"""Which tokens of an optimizer step get a gradient."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.drawing import uniform_noise
from entropy_probe.forking import forking_mask

from .choosing import CHOICES
from .options import Selection
from .pooling import Gather, Pooled, fraction_of, pooled, quantile, wanted

__all__ = ["Kept", "Selection", "keep_tokens"]

_GATHERED = ("group", "global_micro_batch", "global")
_NOISE = 3  # a stream of its own among those of `uniform_noise`


class Kept(NamedTuple):
    """The tokens that get a gradient."""

    mask: Bool[Tensor, "batch seq"]
    """True where a token is kept; never outside ``valid``."""
    threshold: Float[Tensor, " batch"]
    """Nats: the least entropy kept in each row's pool, or the threshold itself; NaN where the
    entropy did not choose, or nothing was kept."""
    share: float
    """Share of these rows' valid tokens that is kept; NaN without any."""


@torch.no_grad()
def keep_tokens(
    selection: Selection,
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    rows: Int[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
    logprobs: Float[Tensor, "batch seq"] | None = None,
    micro_batches: Int[Tensor, " batch"] | None = None,
    gather: Gather | None = None,
    step: int = 0,
) -> Kept:
    """Choose the tokens of an optimizer step's rows on this rank.

    With the scopes "sequence", "group" and "global" the choice does not depend on how the rows
    are ordered, split into micro-batches or spread over ranks: ties and noise go by (row number,
    position). All ranks call it together.

    Args:
        selection: what to keep.
        entropy: nats, at ``selection.temperature``; only values inside ``valid`` are read.
        valid: the tokens that take part. Rows that are left out of the loss (cut completions)
            must be left out here too, or they would vote.
        rows: each row's number in the whole step, over all ranks; no number comes twice.
        groups: each row's prompt, numbered over all ranks.
        logprobs: of the tokens, nats; read by "surprise" and by functions of yours.
        micro_batches: each row's micro-batch; read by the scopes of that name.
        gather: gives every rank's tensor (one axis, of any length), in order; None with one rank.
        step: number of the step: the noise is another one in each.

    Raises:
        ValueError: a mask that is not bool, NaN among what is read, something missing that the
            selection reads, row numbers that come twice, or a function of yours that gave
            something other than a Bool mask within ``valid``.
    """
    _check_batch(selection, entropy, valid, rows, groups, logprobs, micro_batches)
    pool = {
        "sequence": rows,
        "group": groups,
        "micro_batch": micro_batches,
        "global_micro_batch": micro_batches,
    }.get(selection.scope, torch.zeros_like(rows))
    whole = pooled(
        entropy, valid, logprobs, rows=rows.to(valid.device), pool=pool.to(valid.device),
        gather=gather if selection.scope in _GATHERED else None,
    )  # fmt: skip
    mask = torch.zeros_like(whole.valid)
    threshold = whole.entropy.new_full(whole.rows.shape, math.nan)
    noise = _noise(selection, whole, step)
    for members in whole.pools():
        mask[members], threshold[members] = _of_pool(selection, whole, noise, members)
    own = torch.searchsorted(whole.rows, rows.to(valid.device).long())
    mask = mask[own, : valid.shape[1]]
    count = int(valid.sum())
    return Kept(mask, threshold[own], int(mask.sum()) / count if count else math.nan)


def _of_pool(
    selection: Selection, whole: Pooled, noise: Tensor | None, members: Tensor
) -> tuple[Tensor, float]:
    """Give the mask of one pool's rows, and its threshold."""
    entropy, valid = whole.entropy[members], whole.valid[members]
    share, count = selection.fraction, int(valid.sum())
    if selection.rule == "threshold":
        least = selection.threshold
        if selection.quantile is not None:
            least = quantile(entropy[valid], share, selection.quantile, selection.count)
        return forking_mask(entropy, valid, rule="threshold", threshold=least), least
    if selection.count != "ceil":
        share = fraction_of(wanted(share, count, selection.count), count)
    choose = selection.select if callable(selection.select) else CHOICES[selection.select]
    mask = choose(
        entropy, valid, fraction=share,
        logprobs=None if whole.logprobs is None else whole.logprobs[members],
        noise=None if noise is None else noise[members],
    )  # fmt: skip
    if callable(selection.select):
        _check_choice(mask, valid)
    return mask, float(entropy[mask].min()) if selection.select == "forks" else math.nan


def _noise(selection: Selection, whole: Pooled, step: int) -> Tensor | None:
    """Give uniform numbers of (seed, step, row, position), where they are read."""
    if selection.select != "random" and not callable(selection.select):
        return None
    steps = torch.full_like(whole.rows, step)
    return uniform_noise(selection.seed, whole.rows, steps, whole.valid.shape[1], stream=_NOISE)


def _check_batch(
    selection: Selection,
    entropy: Tensor,
    valid: Tensor,
    rows: Tensor,
    groups: Tensor,
    logprobs: Tensor | None,
    micro_batches: Tensor | None,
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
    needed = {"rows": rows, "groups": groups}
    if selection.scope.endswith("micro_batch"):
        needed["micro_batches"] = micro_batches
    for name, each in needed.items():
        if each is None or tuple(each.shape) != (len(valid),):
            got = "nothing" if each is None else tuple(each.shape)
            raise ValueError(
                f"{name} must be [{len(valid)}], a number a row, got {got} for "
                f"scope={selection.scope!r}"
            )
    if selection.select == "surprise" and logprobs is None:
        raise ValueError("select='surprise' reads logprobs, which are missing")
    read = {"forks": entropy, "bottom": entropy, "surprise": logprobs}.get(selection.select)
    if read is not None and bool((read.isnan() & valid).any()):
        name = "logprobs" if selection.select == "surprise" else "entropy"
        where = (read.isnan() & valid).nonzero()[0].tolist()
        raise ValueError(f"{name} is NaN at valid position {where} (row, position)")


def _check_choice(mask: object, valid: Tensor) -> None:
    """Refuse what a user's function gave unless it is a mask of valid tokens."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != valid.shape:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise ValueError(f"the select function must give a bool {tuple(valid.shape)}, got {got}")
    if bool((mask & ~valid).any()):
        raise ValueError("the select function kept tokens that are not valid: & valid at its end")
