"""One decoding step of fixed shapes, run through `torch.compile`; on CUDA, as a CUDA graph.

All slots take part in every step, those without a row too, and the step itself gives the residual
states back: hooks run when it is traced, not when it is replayed. So a model that carries hooks of
its user's is refused, and nothing of the model is replaced or kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .fixed_cache import FixedCache
from .hooks import ResidualReader
from .kvcache import cache_inputs, is_roomy, make_cache
from .models.engine import Engine

BACKEND = "inductor"
"""What compiles the step."""

_SHAPES = 64
"""Kinds of steps at most (lengths, batches, models) that may be compiled in one process."""


def check_compilable(engine: Engine) -> None:
    """Raise unless a step of a model can be compiled and gives what the model would.

    Raises:
        ValueError: a wrapped, edited or hooked model, or one whose step is not one graph.
    """
    model, reason = engine.model, None
    if engine.wrapped:
        reason = f"{engine.library}'s hooks and edits would be left out; pass the model itself"
    elif engine.editor is not None:
        reason = "it is steered, which happens between the model's layers"
    elif name := _hooked(model):
        reason = f"{name} has a hook, which would run when the step is traced and not again"
    elif not getattr(model, "_can_compile_fullgraph", False):
        reason = f"transformers does not know a step of {type(model).__name__} to be one graph"
    elif not is_roomy(make_cache(model)):
        reason = "its cache is not made of plain keys and values"
    if reason is not None:
        raise ValueError(f"the model's steps cannot be compiled: {reason}; or pass compile=False")


def words_on_compiling() -> str:
    """Say what computed the steps, for their provenance."""
    return f"steps after the prompt compiled by torch.compile ({BACKEND})"


@contextmanager
def unmarked(model: nn.Module) -> Iterator[None]:
    """Take from a model's tensors, in the end, what tracing has written on them."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [set(vars(tensor)) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, names in zip(tensors, before, strict=True):
            for name in set(vars(tensor)) - names:
                if name.startswith("_dynamo"):
                    delattr(tensor, name)


class CompiledStep:
    """A step of a model with a cache of fixed buffers."""

    def __init__(
        self, engine: Engine, reader: ResidualReader | None, *, rows: int, longest: int
    ) -> None:
        """Plan a step of some rows, of some tokens at most."""
        self.engine, self.reader = engine, reader
        device = engine.model.device
        like = make_cache(engine.model)
        self.cache = FixedCache(like, rows=rows, longest=longest, device=device)
        self._step = _compiled(BACKEND, device.type)

    def run(
        self, ids: Int[Tensor, "slots 1"], mask: Int[Tensor, "slots columns"], inputs: dict
    ) -> tuple[Float[Tensor, "slots vocab"], dict[int, Float[Tensor, "slots 1 d_model"]]]:
        """Run the step; give logits and residual states.

        Args:
            ids: the tokens just drawn.
            mask: what each row holds, the new column included.
            inputs: other keyword arguments of the model, one row a slot where they are tensors.
        """
        cache, count = self.cache, len(ids)
        column = cache.next_column()
        seen = mask.new_zeros(cache.rows, cache.columns)
        seen[:, column] = 1  # a slot without a row sees itself: a softmax of nothing is NaN
        seen[:count, column + 1 - mask.shape[1] : column + 1] = mask
        padded = {k: self._padded(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        logits, states = self._traced(self._padded(ids), seen, padded)
        cache.wrote()
        # Copies: the next step of a CUDA graph writes over what this one gave.
        layers = self.reader.layers if self.reader is not None else []
        kept = {k: state[:count].clone() for k, state in zip(layers, states, strict=True)}
        return logits[:count].clone(), kept

    def _traced(self, ids: Tensor, mask: Tensor, inputs: dict) -> tuple[Tensor, list[Tensor]]:
        """Call the compiled step, what it reads kept from the reader's own pieces."""
        held = cache_inputs(self.engine.arguments, self.cache, ids, mask)
        arguments = {"input_ids": ids, **held, **inputs}
        if self.reader is not None:
            self.reader.traced = {}
        torch.compiler.cudagraph_mark_step_begin()
        try:
            with torch._dynamo.config.patch(recompile_limit=_SHAPES):
                return self._step(self.engine.model, self.reader, arguments)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
        ) as error:
            words = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"the model's steps cannot be compiled: {words}; pass compile=False"
            ) from error
        finally:
            if self.reader is not None:
                self.reader.traced = None

    def _padded(self, values: Tensor) -> Tensor:
        """Repeat the last row for the slots that have none."""
        missing = self.cache.rows - len(values)
        return torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])


def _hooked(model: nn.Module) -> str | None:
    """Name a module that does more, or something else, than its class says; None if none does."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return "every module"
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # What transformers records outputs with can be traced, and stays once it was used.
        own = [hook for hook in hooks if not hook.__module__.startswith("transformers.")]
        if own or "forward" in vars(module):
            return name or type(model).__name__
    return None


@lru_cache
def _compiled(backend: str, device: str):  # noqa: ANN202
    """Give the step, compiled when it is first run with some shapes."""
    how = {"mode": "reduce-overhead"} if (backend, device) == ("inductor", "cuda") else {}
    return torch.compile(_step, backend=backend, fullgraph=True, dynamic=False, **how)


def _step(
    model: nn.Module, reader: ResidualReader | None, inputs: dict
) -> tuple[Tensor, list[Tensor]]:
    """Run a model; give the last position's logits and what passed through the reader's layers."""
    logits = model(**inputs).logits[:, -1]
    if reader is None:
        return logits, []
    return logits, [reader.traced.pop(layer) for layer in reader.layers]
