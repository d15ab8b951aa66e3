"""Draw tokens with noise that belongs to (seed, row, position), whatever the batch or device.

The draw is Gumbel-max, exact, in two levels: first a block of 64 tokens by its mass, then a token
within it. That needs V/64 + 64 noise values a draw in place of V, so that the noise can be a hash
(the same on every device) and costs next to nothing. A draw can come out differently elsewhere
(another batch size, another kernel) only where the perturbed top-two gap is as small as the
difference of the logits: such near-ties are reported.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK = 64
"""Tokens in a block."""

NEAR_TIE = 1e-3
"""Nats: a perturbed top-two gap under this may flip when logits differ by rounding."""


class Draw(NamedTuple):
    """Drawn tokens, and how clear each draw was."""

    tokens: Int[Tensor, " rows"]
    """Token ids."""
    near_tie: Bool[Tensor, " rows"]
    """Whether the draw could flip under differences of rounding."""


def draw(
    weights: Float[Tensor, "rows vocab"],
    *,
    seed: int,
    rows: Int[Tensor, " rows"],
    positions: Int[Tensor, " rows"],
) -> Draw:
    """Draw one token a row in proportion to the weights (not normalised, zeros allowed).

    Args:
        weights: non-negative, float32.
        seed: with ``rows`` and ``positions`` it fixes the noise.
        rows: number of each row in the whole run.
        positions: how many tokens the row has generated so far.
    """
    vocab = weights.shape[1]
    blocks = -(-vocab // BLOCK)
    if missing := blocks * BLOCK - vocab:
        weights = torch.nn.functional.pad(weights, (0, missing))
    padded = weights.unflatten(1, (blocks, BLOCK))
    block, near_block = _argmax(padded.sum(dim=-1).log(), seed, rows, positions, stream=0)
    inside = padded[torch.arange(len(block), device=block.device), block].log()
    token, near_token = _argmax(inside, seed, rows, positions, stream=1)
    return Draw(block * BLOCK + token, near_block | near_token)


def draw_greedy(scores: Float[Tensor, "rows vocab"]) -> Draw:
    """Give the most probable token of each row, the first among equals."""
    return Draw(scores.argmax(dim=-1), _top(scores)[1])


def keep_candidates(
    weights: Float[Tensor, "rows vocab"], *, top_p: float = 1.0, top_k: int = 0
) -> Float[Tensor, "rows vocab"]:
    """Set to zero what top-k, then top-p (on what top-k left), exclude; ties at the k-th stay."""
    if 0 < top_k < weights.shape[1]:
        smallest = weights.topk(top_k, dim=-1).values[:, -1:]
        weights = weights.where(weights >= smallest, 0.0)
    if top_p < 1.0:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        mass = ordered.cumsum(dim=-1)
        before = (mass - ordered) / mass[:, -1:]
        weights = torch.zeros_like(weights).scatter(1, order, ordered.where(before < top_p, 0.0))
    return weights


def uniform_noise(
    seed: int,
    rows: Int[Tensor, " rows"],
    positions: Int[Tensor, " rows"],
    count: int,
    *,
    stream: int,
) -> Float[Tensor, "rows count"]:
    """Give uniform numbers in (0, 1), float64, each a hash of (seed, stream, row, position, i)."""
    folded = (seed * 8 + stream + (1 << 63)) % (1 << 64) - (1 << 63)
    start = int(_mix(torch.tensor(folded, device="cpu")))  # one number: no GPU waits for it
    key = _mix(_mix(rows.long() ^ start) ^ positions.long())
    values = _mix(key[:, None] + _GOLDEN * torch.arange(1, count + 1, device=rows.device))
    return ((_shift(values, 11)).double() + 0.5) * 2.0**-53


# SplitMix64 (Steele, Lea and Flood 2014), its constants as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _mix(value: Tensor) -> Tensor:
    """Finalise SplitMix64: every input bit changes every output bit."""
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch's shift of int64 is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _argmax(
    scores: Float[Tensor, "rows n"], seed: int, rows: Tensor, positions: Tensor, *, stream: int
) -> tuple[Tensor, Tensor]:
    """Give the argmax of scores + Gumbel noise, and whether it was close."""
    noise = uniform_noise(seed, rows, positions, scores.shape[1], stream=stream)
    return _top(scores - noise.log().neg().log().to(scores.dtype))


def _top(scores: Float[Tensor, "rows n"]) -> tuple[Tensor, Tensor]:
    """Give the argmax of each row, and whether the runner-up is within `NEAR_TIE`."""
    if scores.shape[1] == 1:
        first = torch.zeros(scores.shape[0], dtype=torch.long, device=scores.device)
        return first, torch.zeros_like(first, dtype=torch.bool)
    best = scores.topk(2, dim=-1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < NEAR_TIE
