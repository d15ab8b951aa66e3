"""The unembedding of a few rows, tile by tile of the vocabulary: the same logits, sooner.

A product of few rows with a matrix of a whole vocabulary's rows repacks all of that matrix, which
does not fit the processor's caches; tiles do.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..hooks import replace_forward

TILE = 1 << 19
"""Elements of the unembedding in a tile (2 MB)."""

_ROWS = 256
"""Rows from which on the repacking is no longer what takes the time."""


@contextmanager
def tiled_head(model: nn.Module) -> Iterator[None]:
    """Let a decoder's unembedding run in tiles, inside all its hooks; it is left as it was.

    It does so where it is a linear layer of float32 weights on a CPU whose forward is torch's own,
    and is given few rows without autograd or autocast.
    """
    head = model.get_output_embeddings()

    def forward(states: Tensor) -> Tensor:
        by = _by_tiles if _is_few(states) else nn.functional.linear
        return by(states, head.weight, head.bias)

    with replace_forward(head, forward) if _is_plain(head) else nullcontext():
        yield


def _is_plain(head: object) -> bool:
    """Tell whether a head is the layer that is known here, and larger than a tile."""
    # A parametrized layer is of another type; other libraries put a forward of theirs before it.
    if type(head) is not nn.Linear or "forward" in vars(head):
        return False
    weight = head.weight
    lies = type(weight) is nn.Parameter and weight.is_contiguous() and weight.numel() > TILE
    return lies and weight.device.type == "cpu" and weight.dtype == torch.float32


def _is_few(states: Tensor) -> bool:
    """Tell whether states are few rows, and nothing but their product is asked for."""
    special = (
        torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    )
    plain = type(states) is Tensor and states.dtype == torch.float32
    return plain and not special and 0 < states.numel() <= _ROWS * states.shape[-1]


def _by_tiles(
    states: Float[Tensor, "*rows d_model"],
    weight: Float[Tensor, "vocab d_model"],
    bias: Float[Tensor, " vocab"] | None,
) -> Float[Tensor, "*rows vocab"]:
    """Multiply states with a tile of the weights after another."""
    flat = states.reshape(-1, states.shape[-1])
    logits = flat.new_empty(len(flat), len(weight))
    width = max(1, TILE // weight.shape[1])
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        if bias is None:
            torch.mm(flat, weight[part].T, out=logits[:, part])
        else:
            torch.addmm(bias[part], flat, weight[part].T, out=logits[:, part])
    return logits.view(*states.shape[:-1], len(weight))
