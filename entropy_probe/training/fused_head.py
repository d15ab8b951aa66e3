"""Unembedding and loss in one: logits exist as one tile of rows, forward and backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .in_place import InPlace

TILE = 1 << 24
"""Largest number of logits held at once (64 MB in float32), unless a single row has more."""

_FEWEST = 16
"""Rows of a tile at least: each reads the whole unembedding three times."""


@dataclass(frozen=True)
class Readout:
    """What turns hidden @ weight.T into the log-probabilities of some tokens."""

    tokens: Int[Tensor, " rows"]
    """The token that each row predicted."""
    temperature: float = 1.0
    """Logits are divided by it."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap), where given."""
    scale: float = 1.0
    """Factor on the logits."""

    def take(self, rows: slice) -> "Readout":
        """Give the same for some rows."""
        return Readout(self.tokens[rows], self.temperature, self.softcap, self.scale)


def fused_loss(
    hidden: Float[Tensor, "rows d_model"],
    weight: Float[Tensor, "vocab d_model"],
    bias: Float[Tensor, " vocab"] | None,
    readout: Readout,
    terms: Callable[[Tensor, slice], Tensor],
    *,
    sums: InPlace | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " rows"]]:
    """Give (the sum of some terms of the rows' log-probabilities, those log-probabilities).

    A tile's loss is known once its log-probabilities are, so the gradient of its logits follows
    at once, and theirs in turn: three matrix products a tile, none of them again in the backward
    pass. Sums are in float32 (float64 for float64 models) whatever the dtype.

    Args:
        hidden: what enters the unembedding.
        weight: the unembedding's.
        bias: the unembedding's, where it has one.
        readout: the tokens, and what happens to the logits.
        terms: gets the log-probabilities of a tile, and which rows it is; gives its terms.
        sums: where the weight's gradient is added at once; None leaves it to autograd.
    """
    weight = weight if sums is None else weight.detach()
    return _FusedLoss.apply(hidden, weight, bias, readout, terms, sums)


def token_logprobs(
    hidden: Float[Tensor, "rows d_model"],
    weight: Float[Tensor, "vocab d_model"],
    bias: Float[Tensor, " vocab"] | None,
    readout: Readout,
) -> Float[Tensor, " rows"]:
    """Give the rows' log-probabilities, differentiably; tiles are computed again for gradients."""
    return _TokenLogprobs.apply(hidden, weight, bias, readout)


class _FusedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, and hands them on in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, readout, terms, in_place):
        sums = _Gradients(hidden, weight, bias, ctx.needs_input_grad, in_place)
        exact = weight.to(sums.dtype)
        logprobs = hidden.new_empty(len(hidden), dtype=sums.dtype)
        loss = hidden.new_zeros((), dtype=sums.dtype)
        for rows in _tiles(len(hidden), len(weight)):
            tile = _Tile(hidden[rows], exact, bias, readout.take(rows))
            logprobs[rows] = tile.logprobs
            with torch.enable_grad():
                leaf = tile.logprobs.detach().requires_grad_()
                value = terms(leaf, rows).sum()
                (slope,) = torch.autograd.grad(value, leaf)
            loss += value.detach()
            sums.add(rows, tile.gradient(slope), exact, readout.scale)
        if in_place is not None:
            in_place.filled()  # where there are no rows
        ctx.mark_non_differentiable(logprobs)
        ctx.sums = sums
        return loss, logprobs

    @staticmethod
    def backward(ctx, gradient, _):
        return *ctx.sums.finish(gradient), None, None, None


class _TokenLogprobs(torch.autograd.Function):
    """Keeps no tile: the backward pass computes each again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, readout):
        exact = weight.to(_sum_dtype(hidden))
        logprobs = hidden.new_empty(len(hidden), dtype=exact.dtype)
        for rows in _tiles(len(hidden), len(weight)):
            logprobs[rows] = _Tile(hidden[rows], exact, bias, readout.take(rows)).logprobs
        ctx.save_for_backward(hidden, weight, bias)
        ctx.readout = readout
        return logprobs

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight, bias = ctx.saved_tensors
        sums = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        exact = weight.to(sums.dtype)
        for rows in _tiles(len(hidden), len(weight)):
            tile = _Tile(hidden[rows], exact, bias, ctx.readout.take(rows))
            sums.add(rows, tile.gradient(gradient[rows]), exact, ctx.readout.scale)
        return *sums.finish(None), None


class _Tile:
    """The logits of some rows, turned into their gradient in place."""

    def __init__(self, hidden, weight, bias, readout: Readout) -> None:
        """Compute logits in the weight's dtype, then log-probabilities."""
        self.readout, self.index = readout, readout.tokens[:, None]
        scores = hidden.to(weight.dtype) @ weight.T
        if readout.scale != 1.0:
            scores.mul_(readout.scale)
        if bias is not None:
            scores.add_(bias)
        self.flatness = None
        if readout.softcap is not None:
            scores.div_(readout.softcap).tanh_()
            self.flatness = scores.square().neg_().add_(1.0)  # the slope of the cap
            scores.mul_(readout.softcap)
        if readout.temperature != 1.0:
            scores.div_(readout.temperature)
        own = scores.gather(1, self.index)
        peak = scores.amax(dim=1, keepdim=True)
        self.weights = scores.sub_(peak).exp_()
        self.total = self.weights.sum(dim=1, keepdim=True)
        self.logprobs = (own - peak - self.total.log())[:, 0]

    def gradient(self, slope: Tensor) -> Tensor:
        """Give the gradient of scale * hidden @ weight.T + bias; the tile is used up."""
        slope = (slope / self.readout.temperature)[:, None]
        gradient = self.weights.mul_(-slope / self.total)
        gradient.scatter_add_(1, self.index, slope)
        return gradient if self.flatness is None else gradient.mul_(self.flatness)


class _Gradients:
    """Sums of the gradients of hidden states, weight and bias over tiles."""

    def __init__(self, hidden, weight, bias, needed, in_place: InPlace | None = None) -> None:
        """Start at zero."""
        self.inputs, self.in_place = (hidden, weight, bias), in_place
        self.dtype = _sum_dtype(hidden)
        self.sums = [
            torch.zeros_like(x, dtype=self.dtype) if need and x is not None else None
            for x, need in zip(self.inputs, needed, strict=False)
        ]

    def add(self, rows: slice, gradient: Tensor, unembed: Tensor, scale: float) -> None:
        """Add what some rows' logits give; the gradient is used up."""
        hidden, weight, bias = self.sums
        if bias is not None:
            bias.add_(gradient.sum(dim=0))
        if scale != 1.0:
            gradient.mul_(scale)
        if hidden is not None:
            hidden[rows] = gradient @ unembed
        if self.in_place is not None:
            self.in_place.add_product(gradient.T, self.inputs[0][rows].to(self.dtype))
        elif weight is not None:
            weight.addmm_(gradient.T, self.inputs[0][rows].to(self.dtype))

    def finish(self, factor: Tensor | None) -> list[Tensor | None]:
        """Give the sums times a factor, in the inputs' own dtypes."""
        if factor is not None and float(factor) != 1.0:
            for total in self.sums:
                if total is not None:
                    total.mul_(factor)
        pairs = zip(self.sums, self.inputs, strict=True)
        return [None if total is None else total.to(x.dtype) for total, x in pairs]


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    """Give what sums are in: float32, or float64 for float64 states."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _tiles(rows: int, vocab: int) -> Iterator[slice]:
    """Cut rows into tiles of like size."""
    count = -(-rows // max(_FEWEST, TILE // vocab))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)
