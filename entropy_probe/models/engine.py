"""How a model is run, in whichever library its user holds it: one step under its own hooks."""

import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from entropy_probe.editing import edits_of

_ADAPTERS = {"transformer_lens": ".transformer_lens", "nnsight": ".nnsight"}


@dataclass(frozen=True)
class Draws:
    """What the rows of a batch are about to draw their next token from."""

    logits: Float[Tensor, "batch vocab"]
    """Raw logits of the step."""
    temperature: float
    """Temperature of the entropy's basis."""
    drawn_at: float
    """Temperature that tokens are drawn at: the same, but 0 where that is greedy."""
    rows: Int[Tensor, "batch each"]
    """Rows of the record that draw from each row of the batch: several where a prompt begins."""
    step: Int[Tensor, " batch"]
    """Tokens that they have generated so far."""
    alive: Bool[Tensor, " batch"]
    """False for rows that have ended and wait to leave."""


@runtime_checkable
class StepEditor(Protocol):
    """Edits the stream while a model runs, and may want a step run again before it is drawn."""

    def sampling(self, rows: int, steps: int) -> AbstractContextManager:
        """Be entered around the sampling of so many rows, of so many steps at most."""
        ...

    def revise(self, draws: Draws, again: Callable[[], Tensor]) -> Float[Tensor, "batch vocab"]:
        """Give the logits to draw from.

        Args:
            draws: the step as it was computed.
            again: runs its last column again, the cache rolled back, and gives the new logits.
        """
        ...

    def scoring(
        self, rows: Int[Tensor, " batch"], prompt_lengths: Int[Tensor, " batch"]
    ) -> AbstractContextManager:
        """Be entered around a pass over whole rows of a record."""
        ...


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
    editor: StepEditor | None = None
    """What edits the stream while it runs, where the engine knows of it."""
    edit: str | None = None
    """That edit, in words."""

    @property
    def edits(self) -> str | None:
        """Say all that edits the stream now, in the order it began; None: nothing that is known."""
        words = edits_of(self.model)
        words += [] if self.edit is None or self.edit in words else [self.edit]
        return "; ".join(words) or None

    def sampling(self, rows: int, steps: int) -> AbstractContextManager:
        """Give what is entered around the sampling of some rows."""
        return nullcontext() if self.editor is None else self.editor.sampling(rows, steps)

    def scoring(self, rows: Tensor, prompt_lengths: Tensor) -> AbstractContextManager:
        """Give what is entered around a pass over whole rows of a record."""
        return nullcontext() if self.editor is None else self.editor.scoring(rows, prompt_lengths)

    @property
    def last_only(self) -> dict[str, int]:
        """Give the argument, where there is one, that asks for the last position's logits alone."""
        return {"logits_to_keep": 1} if "logits_to_keep" in self.arguments else {}


def engine_of(model) -> Engine:
    """Give the engine of a Hugging Face model, a TransformerLens bridge or an nnsight model.

    Raises:
        ValueError: an object of those libraries that cannot be captured on, or a wrapper that does
            not say which arguments it takes, with the reason.
    """
    if isinstance(model, Engine):
        return model
    adapter = _adapter(model)
    if adapter is not None:
        return adapter.engine_of(model)

    def run(**inputs) -> Tensor:
        return model(**inputs).logits

    return Engine(model, run, _reaching(model))


def decoder_of(model):
    """Give the Hugging Face decoder that a model is, or that it wraps."""
    wrapped = isinstance(model, Engine) or _adapter(model) is not None
    return engine_of(model).model if wrapped else model


def body_of(model) -> nn.Module:
    """Give a Hugging Face decoder's body: embedding, blocks and final norm.

    Raises:
        ValueError: a causal model that does not say which of its modules that is.
    """
    body = model.get_decoder() if hasattr(model, "get_decoder") else model
    # Llama 4 names itself; what has no unembedding is its own body.
    if body is model and getattr(model, "get_output_embeddings", lambda: None)() is not None:
        body = getattr(model, "model", None)
        if not isinstance(body, nn.Module):
            raise ValueError(
                f"{type(model).__name__} does not say which module gives its final states: "
                "get_decoder() is the model itself, and there is no .model; pass a causal "
                "language model of transformers"
            )
    return body


def arguments_of(forward: Callable) -> frozenset[str]:
    """Give the names of a function's arguments."""
    return frozenset(inspect.signature(forward).parameters)


def _adapter(model) -> ModuleType | None:
    """Give the module that knows a model's library, where it is none of transformers' own."""
    for kind in type(model).__mro__:
        name = _ADAPTERS.get(kind.__module__.partition(".")[0])
        if name is not None:
            return importlib.import_module(name, __package__)
    return None


def _reaching(model) -> frozenset[str]:
    """Give the names of the keyword arguments that reach a decoder through what wraps it.

    Raises:
        ValueError: a wrapper that takes anything, and what it wraps is not known. Without
            positions, rows would be computed at wrong ones once they leave and join.
    """
    names, taken = arguments_of(model.forward), inspect.signature(model.forward).parameters
    if inspect.Parameter.VAR_KEYWORD not in {each.kind for each in taken.values()}:
        return names
    inner = getattr(model, "_orig_mod", None)  # torch.compile
    if inner is None and hasattr(model, "get_base_model"):  # PEFT
        inner = model.get_base_model()
    if inner is not None:
        return names | _reaching(inner)
    for kind in type(model).__mro__:  # a forward put over another passes on to that
        if "input_ids" not in names and "forward" in vars(kind):
            names = names | arguments_of(kind.forward)
    if "input_ids" not in names:
        raise ValueError(
            f"{type(model).__name__}.forward{inspect.signature(model.forward)} does not say "
            "whether it takes position_ids, which rows of unequal length need: pass the model "
            "inside, or give the wrapper a get_base_model() that returns it"
        )
    return names
