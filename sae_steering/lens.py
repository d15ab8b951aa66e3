"""SAELens, imported when it is needed; it comes with the extra ``interp``."""

import importlib
from types import ModuleType

from entropy_probe.models import LoadError


def sae_lens(what: str) -> ModuleType:
    """Import SAELens, which takes seconds.

    Args:
        what: what it is needed for, in words.

    Raises:
        LoadError: it is not installed, or not whole.
    """
    try:
        return importlib.import_module("sae_lens")
    except ImportError as error:
        raise LoadError(
            f"{what} needs SAELens, which is not there, or not whole",
            str(error).splitlines()[0],
            "pip install 'entropy-probe[interp]'",
        ) from None
