"""Training only there: the reference loop, its rewards, and other people's trainers.

The public names are loaded on first use, as those of `entropy_probe` are.
"""

import importlib

_HOME = {
    "Recorder": "recorder",
    "Selection": "options",
    "keep_tokens": "selection",
    "token_denominator": "denominators",
    "preset": "presets",
    "TrainConfig": "config",
    "train": "trainer",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Load a public name from the module that holds it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
