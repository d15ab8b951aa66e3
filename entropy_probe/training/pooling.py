"""The tokens that are ranked against each other: gathered, ordered, and cut at a share."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Gather = Callable[[Tensor], Sequence[Tensor]]
"""Gives every rank's tensor, in order of ranks; they have one axis, of any length."""

COUNTS = ("ceil", "ceil_9999", "floor")
QUANTILES = ("linear", "kth")

_QUANTILE_LIMIT = 1 << 24
"""Most numbers that torch.quantile takes."""


@dataclass(frozen=True)
class Pooled:
    """Rows in order of their number, those of every rank where they were gathered."""

    rows: Int[Tensor, " batch"]
    """Number of each row in the whole step, ascending."""
    pool: Int[Tensor, " batch"]
    """Which rows are ranked against each other."""
    entropy: Float[Tensor, "batch seq"]
    """Nats; zero where a row is narrower than the widest."""
    valid: Bool[Tensor, "batch seq"]
    """The tokens that take part."""
    logprobs: Float[Tensor, "batch seq"] | None
    """Nats, where they were given."""

    def pools(self) -> Iterator[Int[Tensor, " members"]]:
        """Give the rows of each pool that has a valid token."""
        for number in torch.unique(self.pool).tolist():
            members = (self.pool == number).nonzero()[:, 0]
            if bool(self.valid[members].any()):
                yield members


def pooled(
    entropy: Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    logprobs: Float[Tensor, "batch seq"] | None,
    *,
    rows: Int[Tensor, " batch"],
    pool: Int[Tensor, " batch"],
    gather: Gather | None,
) -> Pooled:
    """Give the rows in order of their number; with ``gather``, those of all ranks.

    Raises:
        ValueError: two rows with one number, which would leave their order, and so the choice
            among ties, to chance.
    """
    numbers = _every(rows.long(), gather)
    order = numbers.argsort(stable=True)
    numbers = numbers[order]
    if bool((numbers[1:] == numbers[:-1]).any()):
        twice = int(numbers[1:][numbers[1:] == numbers[:-1]][0])
        raise ValueError(
            f"row {twice} comes twice: rows must number the rows of the whole step, over all "
            "ranks, each once"
        )
    shapes = _every(torch.tensor(entropy.shape, device=entropy.device), gather).view(-1, 2)
    width = int(shapes[:, 1].max())

    def wide(values: Tensor) -> Tensor:
        """Gather rows of tokens, and make them equally wide."""
        flat, shape = _every(values.reshape(-1), gather), shapes.tolist()
        parts = flat.split([height * span for height, span in shape])
        out = flat.new_zeros(len(numbers), width)
        start = 0
        for part, (height, span) in zip(parts, shape, strict=True):
            out[start : start + height, :span] = part.view(height, span)
            start += height
        return out[order]

    return Pooled(
        rows=numbers,
        pool=_every(pool.long(), gather)[order],
        entropy=wide(entropy),
        valid=wide(valid.to(torch.uint8)).bool(),
        logprobs=None if logprobs is None else wide(logprobs),
    )


def wanted(fraction: float, count: int, rule: str) -> int:
    """Give how many of ``count`` tokens a share is: "ceil" of the decimal number, or as others do.

    "ceil_9999" is max(1, int(n f + 0.9999)) and "floor" max(1, int(n f)), in floating point.
    """
    if count == 0:
        return 0
    if rule == "ceil":
        return math.ceil(Fraction(repr(float(fraction))) * count)
    return min(count, max(1, int(count * fraction + (0.9999 if rule == "ceil_9999" else 0.0))))


def fraction_of(kept: int, count: int) -> float:
    """Give a share whose ceil(share * count) is ``kept``: half a token clear of rounding."""
    return (kept - 0.5) / count


def quantile(values: Float[Tensor, " n"], fraction: float, rule: str, count_rule: str) -> float:
    """Give the entropy that the most uncertain share of the values reaches.

    "linear" is the (1 - fraction) quantile with linear interpolation, to the bit what
    torch.quantile gives, which ends at 2**24 values; "kth" the k-th largest value.
    """
    if rule == "kth":
        place = len(values) - wanted(fraction, len(values), count_rule) + 1
        return float(values.kthvalue(place).values)
    if len(values) <= _QUANTILE_LIMIT:
        return float(torch.quantile(values, 1 - fraction))
    return interpolated(values, 1 - fraction)


def interpolated(values: Float[Tensor, " n"], place: float) -> float:
    """Give the quantile at ``place``, 0 to 1, of any number of values, in float64."""
    index = place * (len(values) - 1)
    low, high = (
        float(values.kthvalue(whole + 1).values) for whole in (math.floor(index), math.ceil(index))
    )
    return low + (high - low) * (index - math.floor(index))


def _every(mine: Tensor, gather: Gather | None) -> Tensor:
    """Join every rank's tensor."""
    return mine if gather is None else torch.cat([each.to(mine.device) for each in gather(mine)])
