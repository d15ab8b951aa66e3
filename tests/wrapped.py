"""Models in other libraries' wrappers, for the tests of capture in them; they need an extra."""

import importlib
import os

import pytest
from tiny import tiny_model

LIBRARIES = ("transformer_lens", "nnsight")


def needs(library: str):
    """Give a library, or skip where it is missing and nothing says that it must be there."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if os.environ.get("PROBE_REQUIRE_INTERP"):
            raise
        pytest.skip(f"needs entropy-probe[interp]: {error}", allow_module_level=True)


def wrapped(library: str, family: str, tokenizer):
    """Give a tiny model in a library's wrapper; the same weights every time."""
    needs(library)
    model = tiny_model(family)
    model.config.architectures = [type(model).__name__]  # as a checkpoint's configuration says
    adapter = importlib.import_module(f"entropy_probe.models.{library}")
    return adapter.wrap(model, tokenizer, family)
