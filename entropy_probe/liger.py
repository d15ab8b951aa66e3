"""Entropy and log-probability by Liger's fused head, for whoever accepts how it rounds.

Of Liger's scaled linear cross-entropy, only the kernel for Hopper GPUs never writes logits to
memory. It takes bfloat16, holds a tile's logits as float16 and gives entropies as bfloat16, and it
knows neither ranks nor alternatives. On any other device the same call computes 512 rows of logits
at once. So the tiles stay the default, and this head must be asked for.
"""

import importlib.metadata
import importlib.util

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .entropy import TokenStats
from .models.unembedding import Unembedding

HEADS = ("tiles", "liger")
"""What can turn hidden states into statistics."""

_HOPPER = (9, 0)
_NEEDED = ("liger_kernel", "cutlass")


@torch.no_grad()
def liger_stats(
    hidden: Float[Tensor, "tokens d_model"],
    unembed: Float[Tensor, "vocab d_model"],
    tokens: Int[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> TokenStats:
    """Give entropies and log-probabilities as Liger computes them; ranks are -1, unknown.

    Args:
        hidden: what enters the unembedding, of its dtype.
        unembed: the unembedding's weight.
        tokens: the token that each state predicted.
        temperature: of the entropy's basis.
        scale: factor on the logits.
    """
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction,
    )

    count = len(tokens)
    entropy = logprobs = torch.zeros(0, device=hidden.device)
    if count:  # the operation refuses to do nothing
        losses, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
            hidden, unembed, tokens.long(), temperature / scale, -100, 1, True
        )
        logprobs = -losses
    nothing = tokens.new_zeros(count, 0, dtype=torch.int32)
    unknown = tokens.new_full((count,), -1, dtype=torch.int32)
    return TokenStats(entropy.float(), logprobs.float(), unknown, nothing, nothing.float())


def check_head(name: str, head: Unembedding, alternatives: int) -> None:
    """Raise unless a head can compute the statistics of a model's tokens.

    Raises:
        ValueError: a head that there is none of, or Liger's where it is no fused kernel, is not
            installed, or does not compute what is asked for; with the reason.
    """
    if name not in HEADS:
        raise ValueError(f"head must be one of {HEADS}, got {name!r}")
    if name == "tiles":
        return
    device = head.weight.device
    reason = why_not(
        head,
        alternatives,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        missing=[module for module in _NEEDED if importlib.util.find_spec(module) is None],
    )
    if reason is not None:
        raise ValueError(f"head='liger' cannot be used: {reason}; head='tiles' always can")


def why_not(
    head: Unembedding,
    alternatives: int,
    *,
    capability: tuple[int, int] | None,
    missing: list[str],
) -> str | None:
    """Say why Liger's kernel cannot compute something, None where it can.

    Args:
        head: the model's unembedding.
        alternatives: most probable tokens wanted at each position.
        capability: compute capability of the unembedding's GPU, None on another device.
        missing: modules that are needed and not installed.
    """
    if alternatives:
        return "it gives no ranks and no alternatives: pass alternatives=0"
    if head.bias is not None or head.softcap is not None:
        return "it knows no bias and no soft cap, and the model's unembedding has one"
    if capability is None:
        return f"it is a kernel for CUDA, and the model is on {head.weight.device.type}"
    if capability != _HOPPER or torch.version.hip is not None:
        major, minor = capability
        return (
            "it is a fused kernel on Hopper GPUs alone (compute capability 9.0), and this one's is "
            f"{major}.{minor}"
        )
    if head.weight.dtype != torch.bfloat16:
        return f"its kernel takes bfloat16 alone, and the model computes in {head.weight.dtype}"
    if missing:
        install = "pip install 'entropy-probe[fused]'"
        return f"{' and '.join(missing)} cannot be imported ({install})"
    return None


def words_on_liger() -> str:
    """Say how its numbers come about, for their provenance."""
    version = importlib.metadata.version("liger-kernel")
    return f"liger-kernel {version}: logits rounded to float16, entropies to bfloat16, no ranks"
