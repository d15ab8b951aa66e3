"""A reward's values, checked: what it raises or gives wrongly becomes one clear error."""

import math
from collections.abc import Callable, Sequence

from entropy_probe.training.completion import Completion
from entropy_probe.viewing.visible import visible_text

Reward = Callable[[Sequence[Completion]], Sequence[float]]
"""Gives one number a completion, in their order; it is called with those of a whole step."""

SHOWN = 80
"""Characters of a completion that an error shows."""


class RewardError(ValueError):
    """A reward that raised, or gave something other than one finite number a completion."""


def reward_name(reward: Reward) -> str:
    """Give the name that errors and logs call a reward by."""
    return str(
        getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    )


def checked(reward: Reward, completions: Sequence[Completion]) -> list[float]:
    """Call a reward and give its values as floats.

    Args:
        reward: any callable from completions to as many numbers.
        completions: those of a whole step.

    Raises:
        RewardError: it raised (the cause is chained), or gave something other than one finite
            number a completion; the message names the reward, the row and its completion.
    """
    with naming(reward_name(reward), completions):
        values = reward(completions)
    return _numbers(reward_name(reward), values, completions)


class naming:  # noqa: N801 - used as a verb: `with naming(...)`
    """Turn what is raised inside into a `RewardError` that says which reward and which rows.

    An error that says so already goes through as it is, and so do interrupts.
    """

    def __init__(self, name: str, completions: Sequence[Completion]) -> None:
        """Keep what the message says."""
        self.name, self.completions = name, completions

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Name the reward in what was raised."""
        if isinstance(error, Exception) and not isinstance(error, RewardError):
            said = visible_text(str(error))[:300]
            raise RewardError(
                f"reward {self.name!r} raised {type(error).__name__}: {said}; it was called with "
                f"{_about(self.completions)}"
            ) from error


def _numbers(name: str, values: object, completions: Sequence[Completion]) -> list[float]:
    """Give what a reward returned as floats, or raise."""
    if not hasattr(values, "__len__") or not hasattr(values, "__iter__") or isinstance(values, str):
        raise RewardError(
            f"reward {name!r} gave {type(values).__name__}: expected {len(completions)} numbers, "
            "one a completion"
        )
    if len(values) != len(completions):
        raise RewardError(
            f"reward {name!r} gave {len(values)} values for {len(completions)} completions: "
            "expected one number each, in their order"
        )
    return [_number(name, v, c) for v, c in zip(values, completions, strict=True)]


def _number(name: str, value: object, completion: Completion) -> float:
    """Give one value as a float, or raise."""
    given = visible_text(repr(value))[:SHOWN]
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise RewardError(_no_number(name, given, completion)) from error
    if not math.isfinite(number):
        raise RewardError(_no_number(name, given, completion))
    return number


def _no_number(name: str, given: str, completion: Completion) -> str:
    return f"reward {name!r} gave {given} where a finite number is expected: {_about([completion])}"


def _about(completions: Sequence[Completion]) -> str:
    """Say which rows, and show the one completion there is, on one line."""
    if len(completions) != 1:
        rows = [c.row for c in completions]
        return f"{len(rows)} completions" + (f", rows {min(rows)} to {max(rows)}" if rows else "")
    shown = completions[0].text
    text = visible_text(shown[:SHOWN]) + ("…" if len(shown) > SHOWN else "")
    return f"row {completions[0].row} of step {completions[0].step}, completion '{text}'"
