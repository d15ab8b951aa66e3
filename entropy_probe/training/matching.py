"""Arms of a comparison at the same length of gradient, so that only its direction differs."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Give the length of all gradients together, of sharded parameters too; 0.0 without any.

    Raises:
        ValueError: it is NaN or infinite: an optimizer would write that into every weight.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    found = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    if not math.isfinite(found):
        raise ValueError(
            f"the gradient's length is {found}: look for infinite log-probabilities or rewards in "
            "this step; the weights are as they were before it"
        )
    return found


def matched_scale(norm: float, target: float) -> float:
    """Give what a gradient of length ``norm`` is to be multiplied by; 1.0 where it is zero.

    A mask changes how long the gradient is, not only where it comes from: arms that keep other
    tokens, or divide by another count, move by other amounts with SGD, and past the clipping
    with any optimizer. Give the arms one length to see the rest.

    Raises:
        ValueError: a target that is not above 0.
    """
    if not 0 < target < math.inf:
        raise ValueError(f"the gradient's target length must be above 0 and finite, got {target}")
    return target / norm if norm > 0 else 1.0


@torch.no_grad()
def rescale_gradients(
    parameters: Iterable[nn.Parameter], to_norm: float, *, lengthen: bool = True
) -> float:
    """Bring the gradient to a length; give what it was before.

    Args:
        parameters: those that train; gradients of None are skipped.
        to_norm: the length, such as the one that another arm had in the same update.
        lengthen: whether a shorter gradient is brought to it as well; False is clipping.

    Raises:
        ValueError: a gradient that is NaN or infinite, or a length that is not above 0.
    """
    every = list(parameters)
    norm = gradient_norm(every)
    scale = matched_scale(norm, to_norm)
    if lengthen or scale < 1:
        for parameter in every:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return norm
