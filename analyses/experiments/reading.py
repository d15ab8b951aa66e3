"""What is read from the result of a run that trained: numbers and curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Result = Mapping[str, Any]
NAN = math.nan
RARE = 0.01
"""Share under which too few completions take a strategy to say how often they are right."""


def accuracy(result: Result) -> float:
    """Give the accuracy on held-out problems after training."""
    return result["watched"][-1]["accuracy"]


def gain(result: Result) -> float:
    """Give the accuracy after training less that before, on the same problems and noise."""
    return accuracy(result) - result["watched"][0]["accuracy"]


def mean_accuracy(result: Result) -> float:
    """Give the mean accuracy of all looks during training but the first: speed counts."""
    later = result["watched"][1:]
    return float(np.mean([look["accuracy"] for look in later])) if later else NAN


def entropy(result: Result) -> float:
    """Give the mean entropy of a token after training, in nats."""
    return result["watched"][-1]["entropy"]


def length(result: Result) -> float:
    """Give the mean length of a completion after training, in tokens."""
    return result["watched"][-1]["length"]


def greedy_accuracy(result: Result) -> float:
    """Give the accuracy of greedy completions after training; NaN where none were asked.

    A lower entropy alone raises accuracy at temperature 1, and leaves this where it was.
    """
    look = result["watched"][-1].get("greedy")
    return NAN if look is None else look["accuracy"]


def accuracy_before(result: Result) -> float:
    """Give the accuracy on held-out problems before training."""
    return result["watched"][0]["accuracy"]


def strategy_share(name: str) -> Callable[[Result], float]:
    """Give what reads the share of completions that take a strategy after training."""
    return lambda result: result["watched"][-1]["share"].get(name, NAN)


def right_within(name: str) -> Callable[[Result], float]:
    """Give what reads how often completions of a strategy are right after training."""
    return lambda result: result["watched"][-1]["right"].get(name, NAN)


def opening_share(look: Mapping[str, Any]) -> float:
    """Give the exact probability of code at the first token, averaged over wordings."""
    return _mean([wording["share"] for wording in look["openings"].values()])


def opening_shift(result: Result) -> float:
    """Give the mean shift of code's log-odds over wordings, from before training to after it."""
    _, shifts = _odds(result)
    return _mean(shifts)


def opening_slope(result: Result) -> float:
    """Give the slope of that shift on the log-odds before, over wordings.

    Above 0, what was likely becomes more likely and what was unlikely less: 0 for a shift that is
    the same for all wordings. NaN where wordings do not differ before.
    """
    before, shifts = _odds(result)
    if len(before) < 2 or np.ptp(before) < 1e-3:
        return NAN
    return float(np.polyfit(before, shifts, 1)[0])


def accuracy_at(step: int) -> Callable[[Result], float]:
    """Give what reads the accuracy of the look after a step; NaN where there is none."""
    return lambda result: next(
        (look["accuracy"] for look in result["watched"] if look["step"] == step), NAN
    )


def watched(read: Callable[[Mapping[str, Any]], float | None]) -> Callable[[Result], tuple]:
    """Give the curve of what is read from each look."""

    def curve(result: Result) -> tuple[list[int], list[float | None]]:
        looks = result["watched"]
        return [look["step"] for look in looks], [read(look) for look in looks]

    return curve


def right_over_time(way: str) -> Callable[[Result], tuple]:
    """Give the curve of how often completions of a strategy are right, while it is not `RARE`."""

    def read(look: Mapping[str, Any]) -> float | None:
        return look["right"].get(way) if look["share"].get(way, 0.0) >= RARE else None

    return watched(read)


def logged(name: str) -> Callable[[Result], tuple]:
    """Give the curve of a number that each step logs."""

    def curve(result: Result) -> tuple[list[int], list[float | None]]:
        steps = result["steps"]
        return [step["step"] for step in steps], [step.get(name) for step in steps]

    return curve


def logged_over_training(name: str) -> Callable[[Result], tuple]:
    """Give the same curve over the part of the training that is done, which all arms share."""

    def curve(result: Result) -> tuple[list[float], list[float | None]]:
        steps, values = logged(name)(result)
        return [step / steps[-1] for step in steps], values

    return curve


def average(name: str) -> Callable[[Result], float]:
    """Give what reads the mean over steps of a number that each logs."""
    return lambda result: _mean([s[name] for s in result["steps"] if s.get(name) is not None])


def steps_to_lose(points: float) -> Callable[[Result], float]:
    """Give what reads the first step after which accuracy was so far below its start.

    Between two looks the fall is taken to be even. Where it never was so low this is the last
    look's step, a lower bound.
    """

    def read(result: Result) -> float:
        looks = result["watched"]
        least = looks[0]["accuracy"] - points
        for before, after in zip(looks, looks[1:], strict=False):
            if after["accuracy"] <= least:
                part = (before["accuracy"] - least) / (before["accuracy"] - after["accuracy"])
                return before["step"] + part * (after["step"] - before["step"])
        return looks[-1]["step"]

    return read


def _odds(result: Result) -> tuple[list[float], list[float]]:
    """Give the log-odds before training, and their shifts, a wording each."""
    first, last = result["watched"][0]["openings"], result["watched"][-1]["openings"]
    finite = [w for w in first if None not in (first[w]["logit"], last[w]["logit"])]
    return (
        [first[wording]["logit"] for wording in finite],
        [last[wording]["logit"] - first[wording]["logit"] for wording in finite],
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else NAN
