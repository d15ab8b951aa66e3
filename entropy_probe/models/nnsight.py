"""nnsight: a wrapped Hugging Face model, stepped through `trace` so that its edits act.

Blocks, final norm and unembedding (softcap and bias too) are those of the model inside. Edits
that were stored with `edit()` do not reach a plain forward pass; a trace replays them. Each step
is a trace of its own, so an edit acts in every step, whether it stands under `tracer.iter` or not.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .engine import Engine, arguments_of

_ANY_ROW = torch.zeros(1, 1, dtype=torch.long)


def engine_of(model) -> Engine:
    """Give the engine of a `TransformersModel`, a `LanguageModel` or another model's root.

    Raises:
        ValueError: something that does not hold a Hugging Face model.
    """
    from transformers import PreTrainedModel

    if not getattr(model, "dispatched", True):
        model.dispatch()  # reads the weights, as its first trace would
    decoder = getattr(model, "_module", None)
    if not isinstance(decoder, PreTrainedModel):
        raise ValueError(
            f"expected nnsight's model, such as TransformersModel, got {type(model).__name__} "
            f"around {type(decoder).__name__}"
        )

    def run(**inputs) -> Tensor:
        # The trace wants an input of its own, which it would take apart into rows; ours is
        # closed over.
        return model.trace(_ANY_ROW, fn=lambda *_, **__: decoder(**inputs), trace=False).logits

    arguments = arguments_of(type(decoder).forward)  # the instance's has been replaced
    return Engine(
        decoder, run, arguments, wrapped=True, library="nnsight", running=_one_step_a_trace
    )


def wrap(model, tokenizer, name: str):
    """Give nnsight's model around a model, which it leaves as it was but for instrumentation."""
    from nnsight import TransformersModel

    return TransformersModel(model, tokenizer=tokenizer)


@contextmanager
def _one_step_a_trace() -> Iterator[None]:
    """Hide the warning that an edit under `tracer.iter[:]` waits in vain for a second step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"'[^']*\.i1' was never reached")
        yield
