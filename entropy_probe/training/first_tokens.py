"""What to log of the first tokens of completions, where a way is often chosen."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..loss import loss_counters


def first_token_counters(
    logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    prompt_lengths: Int[Tensor, " batch"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> dict[str, Tensor]:
    """Give ``first``, ``clip_first`` and ``ratio_gap_first``: sums over first generated tokens.

    Where a completion's way is chosen by its first token, these say whether clipping ever got
    there; means over all tokens hide it. Tokens that are not valid, or whose log-probability was
    not computed (NaN), do not count.
    """
    first = torch.zeros_like(valid)
    rows = (prompt_lengths < valid.shape[1]).nonzero()[:, 0]
    first[rows, prompt_lengths[rows]] = True
    known = first & valid & ~logprobs.isnan()
    sums = loss_counters(
        logprobs, old_logprobs, advantages, valid, known, clip_low=clip_low, clip_high=clip_high
    )
    names = ("kept", "clip_kept", "ratio_gap_kept")
    return {name.replace("kept", "first"): sums[name] for name in names}
