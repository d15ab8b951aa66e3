"""Forward passes of an update, inside whatever wraps the model: blocks, then a function of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..hooks import replace_forward
from ..models.unembedding import unembedding
from .body import Body, Layout, running_body
from .fused_head import Readout
from .in_place import embedding_in_place, in_place

PRECISIONS = ("float32", "bfloat16")

Readable = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Takes states [some d_model], and the unembedding's weight and bias."""


class Runner:
    """Runs micro-batches through a model's own forward; see `running`."""

    def __init__(self, model: nn.Module, inner: nn.Module, body: Body, precision: str) -> None:
        """Prepare passes of ``inner``, which ``model`` is or wraps."""
        self.model, self.inner, self.body, self.precision = model, inner, body, precision
        self.head = inner.get_output_embeddings()
        known = unembedding(inner)
        self.softcap, self.scale = known.softcap, known.scale
        self.device = next(inner.parameters()).device
        # A wrapper learns of a gradient through autograd alone.
        self.alone = model is inner and not _is_sharded(inner)
        self.sums = in_place(self.head.weight) if self.alone else None
        self._work: tuple[Layout, Tensor, Readable] | None = None

    def __call__(self, layout: Layout, places: Int[Tensor, " some"], function: Readable) -> Tensor:
        """Give what a function makes of the states at some places of a micro-batch."""
        layout = layout.to(self.device)
        self._work = (layout, places.to(self.device), function)
        try:
            return self.model(input_ids=layout.ids)
        finally:
            self._work = None

    def readout(self, tokens: Int[Tensor, " some"], temperature: float) -> Readout:
        """Say how logits become the log-probabilities of tokens."""
        return Readout(tokens.to(self.device), temperature, self.softcap, self.scale)

    def last(self, last: bool) -> AbstractContextManager:
        """Keep DistributedDataParallel from reducing gradients before the last pass."""
        wrapped = isinstance(self.model, torch.nn.parallel.DistributedDataParallel)
        return self.model.no_sync() if wrapped and not last else nullcontext()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Stand where the model's forward stands."""
        layout, places, _ = self._work
        with self._autocast(self.precision == "bfloat16"):
            states = self.body.states(layout)
        return self.head(states.index_select(0, places))

    def read(self, states: Tensor) -> Tensor:
        """Stand where the unembedding's forward stands."""
        with self._autocast(False):
            return self._work[2](states, self.head.weight, self.head.bias)

    def _autocast(self, on: bool) -> AbstractContextManager:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)


@contextmanager
def running(
    model: nn.Module, *, precision: str, packed: bool | None, share: bool
) -> Iterator[Runner]:
    """Prepare a model, wrapped or not, for passes; it is left as it was.

    Raises:
        ValueError: an unknown precision, or a model that is no decoder with a linear output layer.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    inner = decoder_inside(model)
    with running_body(inner, packed=packed, share=share) as body:
        run = Runner(model, inner, body, precision)
        with ExitStack() as stack:
            stack.enter_context(replace_forward(inner, run.forward))
            stack.enter_context(replace_forward(run.head, run.read))
            if run.alone:
                stack.enter_context(embedding_in_place(inner.get_input_embeddings()))
            yield run


def decoder_inside(model: nn.Module) -> nn.Module:
    """Give the Hugging Face decoder that a model is, or that wrappers hold.

    Raises:
        ValueError: none, or one whose output layer is not linear.
    """
    inner = model
    while not hasattr(inner, "get_output_embeddings") and hasattr(inner, "module"):
        inner = inner.module
    head = getattr(inner, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise ValueError(
            f"{type(inner).__name__} has no linear output layer to compute at some tokens alone: "
            "pass a causal language model of transformers, its output layer neither quantized nor "
            "adapted"
        )
    return inner


def _is_sharded(model: nn.Module) -> bool:
    """Tell whether `fully_shard` was applied to a model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)
