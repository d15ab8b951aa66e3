"""Find, train, steer and show the forking tokens of language models.

The public names are loaded on first use: importing this package brings in neither torch nor
transformers.
"""

import importlib

_HOME = {
    "Rollouts": "rollout",
    "token_entropy": "entropy",
    "token_stats": "entropy",
    "forking_mask": "forking",
    "read_residuals": "hooks",
    "edit_residuals": "hooks",
    "sample": "sampling",
    "score": "scoring",
    "load": "models",
    "heatmap": "viewing.page",
    "capture": "capturing",
    "capture_scores": "rescoring",
    "open_run": "storage.run",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Load a public name from the module that holds it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
