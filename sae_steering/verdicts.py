"""The two verdicts, by stated rules, from numbers alone: no model is asked here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from entropy_probe.figures import Figure, mean, ratio

from .controls import permutation_p

HALF, LEAST = 0.5, 0.2
"""A share of the gain counts from one half on, its interval above one fifth."""
LEAST_GAIN = 0.05
"""No share is formed of a gain whose lower bound is under 5 points."""
CHANCE = 0.01
"""Among random directions the features must be rarer than this."""

SHOWN, UNSPECIFIC, NOT_SHOWN = (
    "shown",
    "elicitable, not specific to these features",
    "not shown",
)

ELICITING = ("features", "mean difference", "token injection", "low temperature")
"""Kinds that bring no information that the base does not have."""
LABELLED = ("features", "mean difference")
"""Kinds that labels found: they count only if labels that mean nothing hardly find one as good."""
RIVALS = ("mean difference", "token injection", "low temperature")
"""Kinds that the features must do better than, besides random directions."""


@dataclass(frozen=True)
class Arm:
    """What one intervention gave on each problem."""

    name: str
    """Its name."""
    kind: str
    """A key of `interventions.KINDS`."""
    right: tuple[float, ...]
    """Mean reward of each problem, the problems in the same order everywhere."""


@dataclass(frozen=True)
class Blind:
    """What labels that mean nothing find in place of an arm, at its length."""

    reached: float
    """Accuracy under the arm, drawn as the others were."""
    others: tuple[float, ...]
    """Accuracy under what was found for each order of the labels."""

    @property
    def chance(self) -> float:
        """Give the permutation p of the arm among them."""
        return permutation_p(self.reached, self.others)


@dataclass(frozen=True)
class Trial:
    """The numbers that the verdicts are of."""

    base: tuple[float, ...]
    """Mean reward of each problem, the base model as it is."""
    trained: tuple[float, ...] | None
    """The same for its trained sibling; None where there is none."""
    arms: tuple[Arm, ...]
    """The interventions on the base."""
    reached: float | None = None
    """Accuracy under the features, drawn as the random directions were."""
    random: tuple[float, ...] = ()
    """Accuracy under each random direction of equal length."""
    blind: Mapping[str, Blind] = field(default_factory=dict)
    """Name of an arm that labels found -> what other orders of the labels find."""


@dataclass(frozen=True)
class Verdict:
    """What can be said, why, and what would change it."""

    statement: str
    """`SHOWN`, `UNSPECIFIC` or `NOT_SHOWN`."""
    why: tuple[str, ...]
    """The figures that decided."""
    would_change: tuple[str, ...]
    """What other figures would lead to another statement."""


@dataclass(frozen=True)
class Verdicts:
    """The two verdicts, and the figures that they rest on."""

    gain: Figure | None
    """Trained less base."""
    shares: dict[str, Figure | None]
    """Intervention -> share of the gain that it recovers; None where no share is formed."""
    ahead: dict[str, Figure]
    """Intervention -> how much better the features are than it, in reward."""
    chance: float | None
    """Permutation p of the features among random directions."""
    capability: Verdict
    """Is the capability in the base?"""
    carried: Verdict
    """Is it carried by these features?"""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return asdict(self)


def judge(trial: Trial) -> Verdicts:
    """Give both verdicts.

    Capability in the base is shown if an intervention that brings no new information (the
    features or a mean difference steered, a forced first token, a low temperature) recovers at
    least half of the trained gain, its interval above a fifth. A direction that labels found
    counts only if it is rare (p < 0.01) among those, as long, that shuffled labels find. That
    these features carry it is shown if they do so, better than the mean difference, token
    injection and low temperature (lower bound of the paired difference above 0), and rarer (p <
    0.01) than random directions and features of shuffled labels. Where they recover it, the
    capability is shown, and a control does as well, it is elicitable but not specific to them. No
    share is formed where the gain's lower bound is under 5 points.

    Raises:
        ValueError: numbers of other problems, or two arms of one name.
    """
    _check(trial)
    base = np.array(trial.base)
    gain = None if trial.trained is None else mean(np.array(trial.trained) - base)
    shares: dict[str, Figure | None] = dict.fromkeys(arm.name for arm in trial.arms)
    if gain is not None and gain.low >= LEAST_GAIN:
        whole = np.array(trial.trained) - base
        shares = {arm.name: share_of(np.array(arm.right) - base, whole) for arm in trial.arms}
    ours = [arm for arm in trial.arms if arm.kind == "features"]
    others = [arm for arm in trial.arms if ours and arm.kind != "features"]
    ahead = {arm.name: mean(np.array(ours[0].right) - np.array(arm.right)) for arm in others}
    chance = None
    if trial.reached is not None and trial.random:
        chance = permutation_p(trial.reached, trial.random)
    capability = _capability(trial, gain, shares)
    return Verdicts(
        gain, shares, ahead, chance,
        capability, _carried(trial, gain, shares, ahead, chance, capability.statement == SHOWN),
    )  # fmt: skip


def share_of(part: np.ndarray, whole: np.ndarray) -> Figure | None:
    """Give a part of a gain as its share, from differences of each problem, paired."""
    share = ratio(part, whole)
    return None if share is None else replace(share, n=len(part))


def recovers(share: Figure | None) -> bool:
    """Tell whether a share of the gain counts."""
    return share is not None and share.value >= HALF and share.low > LEAST


def _capability(trial: Trial, gain: Figure | None, shares: dict[str, Figure | None]) -> Verdict:
    """Say whether the base can already do what training made it do."""
    if (missing := _no_gain(gain)) is not None:
        return missing
    tried = [arm.name for arm in trial.arms if arm.kind in ELICITING]
    if not tried:
        return Verdict(
            NOT_SHOWN,
            ("no intervention was tried that brings no new information",),
            (f"one of them, tried: {', '.join(ELICITING)}",),
        )
    doubts = {
        arm.name: doubt
        for arm in trial.arms
        if arm.kind in LABELLED and recovers(shares[arm.name])
        and (doubt := _doubt(trial, arm.name)) is not None
    }  # fmt: skip

    def counts(name: str) -> bool:
        return recovers(shares[name]) and name not in doubts

    best = max(tried, key=lambda name: (counts(name), shares[name].value))
    why = tuple(f"{name}: {_percent(shares[name])} of the gain" for name in tried)
    why += tuple(doubts.values())
    if counts(best):
        change = f"a repetition in which {best}, and every other, {_falls_short()}"
        return Verdict(SHOWN, why, (change,))
    change = (
        f"an intervention without new information that recovers {HALF:.0%} or more, its interval "
        f"above {LEAST:.0%}: {best} comes nearest"
    )
    if doubts:
        change += f"; {', '.join(doubts)}: rarer than {CHANCE:g} among those of shuffled labels"
    return Verdict(NOT_SHOWN, why, (change,))


def _doubt(trial: Trial, name: str) -> str | None:
    """Say why what an arm recovers may be what any labels find, None where they do not."""
    found = trial.blind.get(name)
    if found is None:
        return f"{name} was not held against shuffled labels, so that it does not count"
    if (p := found.chance) < CHANCE:
        return None
    return (
        f"{name} does not count: among {len(found.others)} orders of labels that mean nothing it "
        f"has p = {p:.3g}"
    )


def _carried(
    trial: Trial,
    gain: Figure | None,
    shares: dict[str, Figure | None],
    ahead: dict[str, Figure],
    chance: float | None,
    elicited: bool,
) -> Verdict:
    """Say whether it is these features that carry it."""
    if (missing := _no_gain(gain)) is not None:
        return missing
    names = [arm.name for arm in trial.arms if arm.kind == "features"]
    if not names:
        return Verdict(NOT_SHOWN, ("no features were steered",), ("features, steered",))
    share = shares[names[0]]
    why = [f"{names[0]}: {_percent(share)} of the gain"]
    if not recovers(share):
        change = f"a share of {HALF:.0%} or more, its interval above {LEAST:.0%}"
        return Verdict(NOT_SHOWN, tuple(why), (change,))
    equal, absent = [], []
    for kind in RIVALS:
        rivals = [arm.name for arm in trial.arms if arm.kind == kind]
        absent += [] if rivals else [kind]
        why += [f"{names[0]} less {name}: {_points(ahead[name])}" for name in rivals]
        equal += [name for name in rivals if ahead[name].low <= 0]
    if chance is None or (chance >= CHANCE and len(trial.random) < 1 / CHANCE):
        absent.append(f"random direction ({len(trial.random)}, {round(1 / CHANCE)} are needed)")
    else:
        why.append(f"p = {chance:.3g} among {len(trial.random)} random directions")
        equal += ["random directions"] if chance >= CHANCE else []
    blind = trial.blind.get(names[0])
    if blind is None or (blind.chance >= CHANCE and len(blind.others) < 1 / CHANCE):
        absent.append(f"shuffled labels ({round(1 / CHANCE)} orders are needed)")
    else:
        why.append(f"p = {blind.chance:.3g} among {len(blind.others)} orders of shuffled labels")
        equal += ["features of shuffled labels"] if blind.chance >= CHANCE else []
    if equal:
        change = f"the features clearly ahead of {', '.join(equal)}: as it is, they do as well"
        return Verdict(UNSPECIFIC if elicited else NOT_SHOWN, tuple(why), (change,))
    if absent:
        why.append(f"not run: {', '.join(absent)}")
        return Verdict(NOT_SHOWN, tuple(why), (f"the controls that were not run: {absent}",))
    change = "a control that does as well, or a share that falls short in a repetition"
    return Verdict(SHOWN, tuple(why), (change,))


def _no_gain(gain: Figure | None) -> Verdict | None:
    """Give the verdict where there is no gain to speak of."""
    least = f"{100 * LEAST_GAIN:g} points or more"
    change = f"a trained sibling whose gain has a lower bound of {least}"
    if gain is None:
        return Verdict(
            NOT_SHOWN, ("there is no trained sibling, so no gain to recover",), (change,)
        )
    if gain.low < LEAST_GAIN:
        why = f"the trained gain is {_points(gain)}, its lower bound under {100 * LEAST_GAIN:g}"
        return Verdict(NOT_SHOWN, (f"{why}: no share is formed",), (change,))
    return None


def _falls_short() -> str:
    return f"recovers less than {HALF:.0%} or has an interval that reaches {LEAST:.0%}"


def _percent(figure: Figure) -> str:
    return f"{figure.value:.0%} ({figure.low:.0%} to {figure.high:.0%})"


def _points(figure: Figure) -> str:
    """Write a difference of rewards in points of a hundred."""
    value, low, high = (f"{100 * x:+.1f}" for x in (figure.value, figure.low, figure.high))
    return f"{value} points ({low} to {high})"


def _check(trial: Trial) -> None:
    """Refuse numbers that are not of the same problems."""
    counts = {"base": len(trial.base)} | {arm.name: len(arm.right) for arm in trial.arms}
    if trial.trained is not None:
        counts["trained"] = len(trial.trained)
    if len(set(counts.values())) > 1 or not trial.base:
        raise ValueError(f"every arm needs the same problems, one number each, got {counts}")
    names = [arm.name for arm in trial.arms]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"arms are told apart by their names: {doubled} occur twice")
    if len([arm for arm in trial.arms if arm.kind == "features"]) > 1:
        raise ValueError("the claim is about one arm of features, chosen beforehand: got several")


def reward_of_each(right: Sequence[Sequence[float]] | np.ndarray) -> tuple[float, ...]:
    """Give the mean reward of each problem, from the rewards of its completions."""
    return tuple(float(value) for value in np.asarray(right, dtype=float).mean(axis=1))
