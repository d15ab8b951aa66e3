"""Logits that are no numbers: said where they turn up, before anything is recorded of them."""

import torch
from torch import Tensor

from .engine import Engine

_LARGEST = torch.finfo(torch.float32).max


def not_finite(engine: Engine, where: str, logits: Tensor, temperature: float) -> ValueError:
    """Give the error for an entropy that is NaN or infinite, with the reason and what to do.

    Args:
        engine: what computed.
        where: which row and token, in words.
        logits: those of the token, before they are divided.
        temperature: of softmax(logits / temperature).
    """
    if temperature < 1 and bool(logits.isfinite().all()):
        least = 2 * float(logits.float().abs().max()) / _LARGEST
        return ValueError(
            f"{where}: temperature {temperature:g} divides the logits beyond float32: pass one "
            f"above {least:.1e} (`sample` is greedy at 0)"
        )
    dtype = str(engine.model.dtype).removeprefix("torch.")
    fix = "look for NaN among its weights"
    if dtype == "float16":
        fix = "load it in float32 or bfloat16, whose range is larger"
    if engine.edits is not None:
        fix = f"{fix}, or edit it less ({engine.edits})"
    return ValueError(f"{where}: the model computed NaN or infinity in {dtype}: {fix}")
