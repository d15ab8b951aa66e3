"""Gradients of the vocabulary's two matrices, added where they belong as they come.

Autograd makes a gradient of the matrix's whole size each time, and adds it afterwards; for large
vocabularies that is most of an update's memory, and much of its time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..hooks import replace_forward


class InPlace:
    """A matrix whose gradient is added to without autograd."""

    def __init__(self, weight: nn.Parameter) -> None:
        """Take a parameter."""
        self.weight = weight

    def add_product(
        self, left: Float[Tensor, "rows some"], right: Float[Tensor, "some columns"]
    ) -> None:
        """Add a matrix product."""
        if self.weight.grad is None:
            self.weight.grad = left @ right
        else:
            self.weight.grad.addmm_(left, right)

    def add_rows(self, index: Tensor, rows: Float[Tensor, "some columns"]) -> None:
        """Add rows at their places."""
        self.filled().index_add_(0, index, rows)

    def filled(self) -> Tensor:
        """Give the gradient, zeros if there was none."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        return self.weight.grad


def in_place(weight: Tensor) -> InPlace | None:
    """Give what adds to a parameter's gradient, or None where autograd has to.

    That is where something waits for autograd: a wrapper's or user's hook, a sharded tensor; or
    where sums are in another dtype than the parameter.
    """
    plain = (
        type(weight) is nn.Parameter
        and weight.requires_grad
        and weight.dtype in (torch.float32, torch.float64)
        and not weight._backward_hooks
        and not weight._post_accumulate_grad_hooks
    )
    return InPlace(weight) if plain else None


@contextmanager
def embedding_in_place(embedding: nn.Module) -> Iterator[None]:
    """Let a plain embedding add its gradient in place; others are left to autograd."""
    sums = in_place(embedding.weight) if type(embedding) is nn.Embedding else None
    if sums is None or embedding.max_norm or embedding.scale_grad_by_freq or embedding.sparse:
        yield
        return

    def look_up(ids: Tensor) -> Tensor:
        # Something must ask for a gradient, and the weight may not.
        asking = torch.zeros((), requires_grad=torch.is_grad_enabled())
        return _LookUp.apply(asking, ids, sums, embedding.padding_idx)

    with replace_forward(embedding, look_up):
        yield


class _LookUp(torch.autograd.Function):
    """Rows of a matrix, by index."""

    @staticmethod
    def forward(ctx, asking: Tensor, ids: Tensor, sums: InPlace, padding: int | None) -> Tensor:
        ctx.ids, ctx.sums, ctx.padding = ids, sums, padding
        return nn.functional.embedding(ids, sums.weight.detach())

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ids, rows = ctx.ids.flatten(), gradient.flatten(0, -2)
        if ctx.padding is not None:  # torch gives the padding's row no gradient
            real = ids != ctx.padding
            ids, rows = ids[real], rows[real]
        ctx.sums.add_rows(ids, rows.to(ctx.sums.weight.dtype))
        return None, None, None, None
