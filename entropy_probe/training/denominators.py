"""What the terms of a step's tokens are divided by, whatever the loss is a mean of."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .options import Selection
from .pooling import Gather


@torch.no_grad()
def token_denominator(
    selection: Selection,
    kept: Bool[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    micro_batches: Int[Tensor, " batch"] | None = None,
    gather: Gather | None = None,
    kl: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "batch 1"]:
    """Give the ``denominator`` of `masked_policy_loss` for a rank's rows of an optimizer step.

    The step's loss is the sum, over all tokens of all ranks, of term / denominator. So a mean of
    means needs no other loss: a token's denominator is then the number of counted tokens in its
    micro-batch (or row) times the number of such means, by rows: n_m * R / R_m, where n_m tokens
    count in a micro-batch of R_m rows, and the step has R rows; rows without a valid token are
    none. Gradients are to be added over micro-batches and ranks; where a wrapper averages over
    ranks, multiply the loss by their number.

    Args:
        selection: ``normalizer`` and ``average`` are read.
        kept: the tokens that train.
        valid: the tokens that take part.
        micro_batches: each row's micro-batch; read by ``average="micro_batch"``.
        gather: gives every rank's tensor; None with one rank. All ranks call together.
        kl: give the ``kl_denominator`` instead, which counts valid tokens unless
            ``selection.mask_kl``.

    Returns:
        One number with ``average="step"``, else one a row, [batch 1]; rows go with their own
        into micro-batches.

    Raises:
        ValueError: masks that are not bool, or micro-batches that are needed and missing.
    """
    for name, mask in (("kept", kept), ("valid", valid)):
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} must be a bool mask, got {mask.dtype}: pass {name}.bool()")
    all_count = selection.normalizer == "valid" or (kl and not selection.mask_kl)
    tokens = (valid if all_count else kept).sum(dim=1)
    if selection.average == "step":
        return _total(tokens.sum(), gather).clamp(min=1).float()
    present = valid.any(dim=1).to(tokens.dtype)
    total = _total(present.sum(), gather).clamp(min=1)
    if selection.average == "sequence":
        return (tokens.clamp(min=1) * total).float()[:, None]
    if micro_batches is None or micro_batches.shape != tokens.shape:
        got = "nothing" if micro_batches is None else tuple(micro_batches.shape)
        raise ValueError(
            f"average='micro_batch' needs micro_batches, [{len(tokens)}], a number a row, got {got}"
        )
    number, part = torch.unique(micro_batches.to(tokens.device), return_inverse=True)
    zeros = tokens.new_zeros(len(number))
    count = zeros.index_add(0, part, tokens).clamp(min=1)
    rows = zeros.index_add(0, part, present).clamp(min=1)
    return (count * total / rows)[part].float()[:, None]


def _total(mine: Tensor, gather: Gather | None) -> Tensor:
    """Add a number up over the ranks."""
    return mine if gather is None else sum(each.to(mine.device)[0] for each in gather(mine[None]))
