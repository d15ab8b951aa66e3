"""Batches with prompts padded on the left and completions on the right, as rows like any other."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Rows(NamedTuple):
    """Prompt then completion, right-padded with zeros."""

    tokens: Int[Tensor, "batch seq"]
    """Token ids."""
    valid: Bool[Tensor, "batch seq"]
    """The tokens of completions that take part."""
    prompt_lengths: Int[Tensor, " batch"]
    """Tokens of each prompt."""


def join_halves(
    prompts: Int[Tensor, "batch left"],
    prompt_mask: Bool[Tensor, "batch left"],
    completions: Int[Tensor, "batch right"],
    valid: Bool[Tensor, "batch right"],
    *,
    padding: int,
) -> Rows:
    """Put prompts and completions together, on the CPU.

    Args:
        prompts: token ids, left-padded.
        prompt_mask: True on the prompts.
        completions: token ids, right-padded.
        valid: the tokens of completions that take part; none of a row that is left out.
        padding: the id that pads: a row that is left out ends before its last stretch of it.
    """
    there = completions != padding
    steps = torch.arange(1, completions.shape[1] + 1, device=completions.device)
    ends = torch.where(there | valid, steps, 0).amax(dim=1, keepdim=True)
    tokens = torch.cat([prompts, completions], dim=1).cpu()
    inside = torch.cat([prompt_mask, steps <= ends], dim=1).cpu()
    part = torch.cat([torch.zeros_like(prompt_mask), valid], dim=1).cpu()
    order = (~inside).int().argsort(dim=1, stable=True)
    lengths = inside.sum(dim=1, keepdim=True)
    width = int(lengths.max())
    within = torch.arange(width) < lengths
    return Rows(
        tokens.gather(1, order)[:, :width].where(within, 0),
        part.gather(1, order)[:, :width] & within,
        prompt_mask.sum(dim=1).cpu(),
    )
