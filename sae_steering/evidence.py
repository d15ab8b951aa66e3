"""Is it in the base, and do these features carry it? One trial, measured, judged and written."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from entropy_probe.figures import Figure
from entropy_probe.storage.files import replacing
from entropy_probe.tasks.problem import Problem, Task

from .interventions import Intervention
from .outcomes import Drawing, Outcome, measure
from .verdicts import (
    LABELLED,
    LEAST_GAIN,
    Arm,
    Blind,
    Trial,
    Verdicts,
    judge,
    recovers,
    reward_of_each,
    share_of,
)

SCHEMA = 1
"""Version of what `Evidence.to_dict` gives."""


@dataclass(frozen=True)
class Evidence:
    """What was measured, and what follows from it."""

    about: dict[str, Any]
    """Models, task, how completions were drawn, and what each intervention does."""
    trial: Trial
    """The numbers that the verdicts are of."""
    verdicts: Verdicts
    """The two verdicts."""
    removed: dict[str, Figure | None]
    """What is taken out of the trained model -> share of the gain that goes with it."""
    outcomes: dict[str, Outcome] = field(repr=False)
    """Name -> what was answered; "base" and "trained" among them. Not part of the JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the completions as JSON values."""
        return {
            "schema": SCHEMA,
            "about": self.about,
            "accuracy": {name: asdict(found.accuracy) for name, found in self.outcomes.items()},
            "verdicts": self.verdicts.to_dict(),
            "removed": {n: None if f is None else asdict(f) for n, f in self.removed.items()},
            "trial": asdict(self.trial),
        }


def gather_evidence(
    base,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    interventions: Sequence[Intervention],
    *,
    trained=None,
    randoms: Sequence[Intervention] = (),
    blind: Mapping[str, Callable[[], Sequence[Intervention]]] | None = None,
    ablations: Sequence[Intervention] = (),
    drawing: Drawing | None = None,
    random_drawing: Drawing | None = None,
    chosen: Mapping[str, Any] | None = None,
    progress: Callable[[Outcome], None] | None = None,
) -> Evidence:
    """Measure a base, its trained sibling and interventions on the same problems, and judge.

    Features and strengths have to be chosen on other problems than these: what was chosen because
    it did well here does well here.

    Args:
        base: the model that is asked whether it can.
        tokenizer: the tokenizer of both.
        task: what verifies the answers.
        problems: the problems to report on.
        interventions: on the base; at most one of kind "features", and the controls beside it.
        trained: the sibling whose gain over the base is to be explained; None without one.
        randoms: steering along random directions of equal length, 100 or more for a verdict.
        blind: name of an intervention that labels found -> makes those that labels in orders
            without meaning find, 100 or more; asked only of one that recovers enough to count.
        ablations: on the trained model: does taking the features out take the gain with them?
        drawing: how completions are drawn.
        random_drawing: how they are for random directions and shuffled labels, and for the arm
            beside them; by default one completion a problem.
        chosen: how features, strengths and controls were chosen, as `make_arms` tells it.
        progress: called with each outcome.

    Raises:
        ValueError: numbers that do not fit each other; see `judge`.
    """
    drawing = Drawing() if drawing is None else drawing
    few = Drawing(**asdict(drawing) | {"n": 1}) if random_drawing is None else random_drawing
    report = progress or (lambda outcome: None)

    def answered(model, arm: Intervention | None = None, how: Drawing = drawing) -> Outcome:
        outcome = measure(model, tokenizer, task, problems, arm, how)
        report(outcome)
        return outcome

    outcomes = {"base": answered(base)}
    if trained is not None:
        outcomes["trained"] = answered(trained)
    outcomes |= {arm.name: answered(base, arm) for arm in interventions}
    features = [arm for arm in interventions if arm.kind == "features"]
    drawn = [answered(base, arm, few).accuracy.value for arm in randoms if features]
    reached = answered(base, features[0], few).accuracy.value if drawn else None
    trial = Trial(
        reward_of_each(outcomes["base"].right),
        None if trained is None else reward_of_each(outcomes["trained"].right),
        tuple(Arm(a.name, a.kind, reward_of_each(outcomes[a.name].right)) for a in interventions),
        reached,
        tuple(drawn),
    )
    held, shares = {}, judge(trial).shares
    for arm in interventions:
        if arm.kind in LABELLED and arm.name in (blind or {}) and recovers(shares[arm.name]):
            others = [answered(base, other, few).accuracy.value for other in blind[arm.name]()]
            held[arm.name] = Blind(answered(base, arm, few).accuracy.value, tuple(others))
    trial = replace(trial, blind=held)
    verdicts, removed = judge(trial), {}
    if trained is not None:
        without = {f"{arm.name}, trained": answered(trained, arm) for arm in ablations}
        outcomes |= without
        removed = {name: _removed(trial, found, verdicts) for name, found in without.items()}
    about = {
        "base": outcomes["base"].rollouts.provenance.to_dict(),
        "trained": None if trained is None else outcomes["trained"].rollouts.provenance.to_dict(),
        "task": task.name,
        "problems": len(problems),
        "drawing": asdict(drawing),
        "random_drawing": asdict(few),
        "interventions": {arm.name: arm.describe() for arm in (*interventions, *ablations)},
        "chosen": None if chosen is None else dict(chosen),
        "costs": {name: found.cost for name, found in outcomes.items() if found.cost},
    }
    return Evidence(about, trial, verdicts, removed, outcomes)


def write_evidence(evidence: Evidence, folder: str | Path) -> Path:
    """Write ``evidence.json`` and the page ``evidence.html`` into a folder; give the page's path.

    Args:
        evidence: what `gather_evidence` gave.
        folder: made where it is missing; files of these names are replaced, each at once.
    """
    from .pages import evidence_page

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "evidence.json") as path:
        text = json.dumps(evidence.to_dict(), indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    with replacing(folder / "evidence.html") as path:
        path.write_text(evidence_page(evidence), encoding="utf-8", errors="replace")
    return folder / "evidence.html"


def _removed(trial: Trial, without: Outcome, verdicts: Verdicts) -> Figure | None:
    """Give the share of the trained gain that goes with what is taken out."""
    if verdicts.gain is None or verdicts.gain.low < LEAST_GAIN:
        return None
    trained = np.array(trial.trained)
    lost = trained - np.array(reward_of_each(without.right))
    return share_of(lost, trained - np.array(trial.base))
