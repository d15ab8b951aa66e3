"""Values out of other tools' files, checked: each gives the value or says what came instead."""

import math
from collections.abc import Mapping
from typing import Any

_ROUNDING = 1e-3


def mapped(value: object, name: str) -> Mapping[str, Any]:
    """Give a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} should be an object, got {_kind(value)}")
    return value


def listed(value: object, name: str) -> list[Any]:
    """Give a list."""
    if not isinstance(value, list):
        raise ValueError(f"{name} should be a list, got {_kind(value)}")
    return value


def text_of(value: object, name: str) -> str:
    """Give a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} should be a text, got {_kind(value)}")
    return value


def whole(value: object, name: str) -> int:
    """Give a whole number from 0 to 2^31 - 1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{name} should be a whole number of 0 or more, got {value!r:.40}")
    return value


def number(value: object, name: str) -> float | None:
    """Give a finite number, None for one that is missing or is not one (null, NaN)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} should be a number, got {_kind(value)}")
    if isinstance(value, float) and math.isnan(value):
        return None
    if not abs(value) < 1e30:
        raise ValueError(f"{name} should be a finite number, got {value!r:.40}")
    return float(value)


def logprob_of(value: object, *, missing: bool = False) -> float | None:
    """Give a log-probability; rounding above 0 becomes 0.

    Args:
        value: what the file says.
        missing: whether null will do.
    """
    found = number(value, "a log-probability")
    if found is None and not missing:
        raise ValueError("a log-probability is missing")
    if found is not None and found > _ROUNDING:
        raise ValueError(f"a log-probability is {found}, above 0")
    return None if found is None else min(found, 0.0)


def optional(value: object, kind: type, name: str) -> Any:
    """Give a value of a type, or None."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} should be {kind.__name__}, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
