"""Which tokens of one pool to keep: forks, and what a referee compares them with.

All of these have one signature, which a function of yours may have too: the tokens of a pool
(rows in order of their number), the share to keep, and two further statistics of them.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.forking import forking_mask

Choice = Callable[..., Tensor]
"""``choice(entropy, valid, *, fraction, logprobs, noise)`` gives a Bool mask within ``valid``."""


def forks(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float | None,
    logprobs: Float[Tensor, "batch seq"] | None = None,
    noise: Float[Tensor, "batch seq"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Keep the most uncertain share, exactly ceil(fraction * n) tokens; reads ``entropy``."""
    return forking_mask(entropy, valid, fraction=fraction)


def bottom(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float | None,
    logprobs: Float[Tensor, "batch seq"] | None = None,
    noise: Float[Tensor, "batch seq"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Keep the most certain share; reads ``entropy``."""
    return forking_mask(-entropy, valid, fraction=fraction)


def random_share(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float | None,
    logprobs: Float[Tensor, "batch seq"] | None = None,
    noise: Float[Tensor, "batch seq"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Keep a share that chance chooses; reads ``noise``, uniform in (0, 1)."""
    return forking_mask(noise, valid, fraction=fraction)


def surprise(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float | None,
    logprobs: Float[Tensor, "batch seq"] | None = None,
    noise: Float[Tensor, "batch seq"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Keep the tokens that were least probable themselves; reads ``logprobs``."""
    return forking_mask(-logprobs, valid, fraction=fraction)


def everything(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    fraction: float | None,
    logprobs: Float[Tensor, "batch seq"] | None = None,
    noise: Float[Tensor, "batch seq"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Keep every valid token; reads nothing."""
    return valid.clone()


CHOICES: dict[str, Choice] = {
    "forks": forks,
    "all": everything,
    "bottom": bottom,
    "random": random_share,
    "surprise": surprise,
}
