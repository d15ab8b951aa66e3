"""How a model is run, in whichever library its user holds it: one step under its own hooks."""

import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

_ADAPTERS = {"transformer_lens": ".transformer_lens", "nnsight": ".nnsight"}


@dataclass(frozen=True)
class Engine:
    """A Hugging Face decoder, and the way to run it that its user's hooks are part of."""

    model: object
    """The decoder: configuration, weights, blocks, final norm and unembedding."""
    run: Callable[..., Tensor]
    """Takes the decoder's keyword arguments and gives the logits."""
    arguments: frozenset[str]
    """Names of the keyword arguments that the decoder takes."""
    wrapped: bool = False
    """Whether the decoder must not be run but through `run`."""
    library: str | None = None
    """The package that the wrapper comes from."""
    running: Callable[[], AbstractContextManager] = nullcontext
    """Entered around everything that is run."""

    @property
    def last_only(self) -> dict[str, int]:
        """Give the argument, where there is one, that asks for the last position's logits alone."""
        return {"logits_to_keep": 1} if "logits_to_keep" in self.arguments else {}


def engine_of(model) -> Engine:
    """Give the engine of a Hugging Face model, a TransformerLens bridge or an nnsight model.

    Raises:
        ValueError: an object of those libraries that cannot be captured on, with the reason.
    """
    if isinstance(model, Engine):
        return model
    for kind in type(model).__mro__:
        adapter = _ADAPTERS.get(kind.__module__.partition(".")[0])
        if adapter is not None:
            return importlib.import_module(adapter, __package__).engine_of(model)

    def run(**inputs) -> Tensor:
        return model(**inputs).logits

    return Engine(model, run, arguments_of(model.forward))


def decoder_of(model):
    """Give the Hugging Face decoder that a model is, or that it wraps."""
    return engine_of(model).model


def arguments_of(forward: Callable) -> frozenset[str]:
    """Give the names of a function's arguments."""
    return frozenset(inspect.signature(forward).parameters)
