"""Edits of a model's stream that are under way, in words: whoever edits says so, records ask."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_UNDER_WAY: dict[object, tuple[nn.Module, str]] = {}


@contextmanager
def under_way(module: nn.Module, words: str) -> Iterator[None]:
    """Let it be known, for as long as it lasts, that what a module gives is edited.

    Args:
        module: whose output it is, such as one of a decoder's blocks.
        words: the edit; two that are alike count as two.
    """
    entry = object()
    _UNDER_WAY[entry] = module, words
    try:
        yield
    finally:
        del _UNDER_WAY[entry]


def edits_of(model: nn.Module) -> list[str]:
    """Give the edits under way in a model, or anywhere inside it, in the order they began."""
    found = list(_UNDER_WAY.values())
    inside = set(model.modules()) if found else set()
    return [words for module, words in found if module in inside]
