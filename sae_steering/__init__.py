"""Is the reasoning already in the base model's features? Dictionaries: train, score, steer.

The public names are loaded on first use: importing this package brings in neither torch nor
SAELens.
"""

import importlib

_HOME = {
    "Direction": "edits",
    "gather_evidence": "evidence",
    "judge": "verdicts",
    "steer": "steering",
    "load_sae": "sae",
    "train_sae": "train",
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
