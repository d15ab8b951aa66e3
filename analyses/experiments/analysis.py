"""An analysis as data: the question, whose claim it is, the arms, and what the lines are read as.

ANALYSIS = Analysis(
    name="fork_rl", question="...", claim=Source("2506.01939", "...", "text"), ...
    execute="analyses.experiments.training:execute",   # settings -> a JSON-able dict
    settings={"model": "organism:amenable", "task": "arithmetic", ...},
    arms=(Arm("forks", "the top 20% of tokens", {"config": {"selection": {...}}}, seeds=8), ...),
    contrasts=(Contrast(...), ...),
    figures=figures, verdicts=verdicts,
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.claims import Contrast, Verdict

    from .results import Results

READ = ("text", "abstract", "secondary")
ROLES = ("primary", "exploratory", "positive control", "negative control")


@dataclass(frozen=True)
class Source:
    """A paper, and what it says to the question."""

    arxiv: str
    """Its number, as in 2506.01939; or in words what it is, where it has none."""
    says: str
    """The claim, in a sentence."""
    read: str
    """How far it was read: "text", "abstract" or "secondary"."""
    stands: str = "claim"
    """"claim" for the sentence that is tested, or "for" or "against" it."""

    def __post_init__(self) -> None:
        """Refuse words that the tables do not know."""
        if self.read not in READ or self.stands not in ("claim", "for", "against"):
            raise ValueError(
                f"a source is read as {READ} and stands as claim, for or against: got "
                f"{self.read!r}, {self.stands!r}"
            )


@dataclass(frozen=True)
class Arm:
    """One kind of run."""

    name: str
    """What lines, figures and contrasts call it."""
    about: str
    """What is done in it, in a few words."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it has otherwise than the analysis; mappings are merged, all else is replaced."""
    seeds: int = 3
    """How often it runs: with the seeds 0, 1, 2, ..., which pair it with the other arms."""
    minutes: float = 2.0
    """Of one core, a run."""
    role: str = "exploratory"
    """"primary", "exploratory", "positive control" or "negative control"."""

    def __post_init__(self) -> None:
        """Refuse a role that the tables do not know, and an arm that never runs."""
        if self.role not in ROLES or self.seeds < 1:
            raise ValueError(
                f"arm {self.name!r}: expected a role of {ROLES} and seeds of 1 or more, got "
                f"{self.role!r}, {self.seeds}"
            )


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    """The arm's name."""
    seed: int
    """The seed, which the settings hold too."""
    settings: dict[str, Any]
    """All that `execute` is given."""

    @property
    def key(self) -> str:
        """Give what its line is found by; other settings are another run."""
        text = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.arm} {self.seed} {digest}"


@dataclass(frozen=True)
class Analysis:
    """One claim of the literature, and how it is put to the test in miniature."""

    name: str
    """The module's name, and that of its results."""
    question: str
    """What is asked."""
    claim: Source
    """Who says what."""
    refuted_by: str
    """Which outcome would speak against it."""
    execute: str
    """``module:function``: takes a run's settings, gives a JSON-able dict. An entry ``weights`` of
    it is taken to be the fingerprint of the weights that the run began with."""
    settings: Mapping[str, Any]
    """What all runs share. ``model`` and ``task``, where they are, can be replaced by the user."""
    arms: Sequence[Arm]
    """The kinds of runs, in the order in which they are run and shown."""
    measures: "Mapping[str, Callable[[Mapping[str, Any]], float]]"
    """Name -> the number that is read from a run's result; NaN where there is none."""
    contrasts: "Sequence[Contrast]"
    """What is compared, by arms and measures: at most three of them primary."""
    figures: "Callable[[Results], list[tuple[str, go.Figure]]]"
    """Gives (element id, figure) of each figure; the ids are fixed."""
    verdicts: "Callable[[Results], list[Verdict]] | None" = None
    """Gives the verdicts; None for those of the contrasts, seed by seed (`Results.judged`)."""
    quick: Mapping[str, Any] = field(default_factory=dict)
    """What ``--quick`` merges over every run's settings, so that one seed takes a minute."""
    quick_arms: Sequence[str] = ()
    """The arms of ``--quick``; all of them if there is none."""
    evidence: Sequence[Source] = ()
    """Later papers, for and against."""
    discussion: str = ""
    """What to make of a difference to the paper, in a few sentences; no figures, which change."""
    untested: str = ""
    """What cannot be tested here."""

    def __post_init__(self) -> None:
        """Refuse two arms of one name, and contrasts of what there is not."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two arms have one name among {names}")
        for contrast in self.contrasts:
            self.arm(contrast.arm), self.arm(contrast.other)
            for measure in (contrast.measure, contrast.against or contrast.measure):
                if measure not in self.measures:
                    raise ValueError(
                        f"{self.name}: contrast {contrast.name!r} reads {measure!r}, known are "
                        f"{', '.join(self.measures)}"
                    )

    @property
    def minutes(self) -> float:
        """Give the core-minutes of all runs."""
        return math.fsum(arm.seeds * arm.minutes for arm in self.arms)

    def arm(self, name: str) -> Arm:
        """Give an arm by its name.

        Raises:
            ValueError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = ", ".join(arm.name for arm in self.arms)
        raise ValueError(f"{self.name} has no arm {name!r}: there are {names}")

    def runs(
        self,
        *,
        arms: Sequence[str] = (),
        seeds: int | None = None,
        base: Mapping[str, Any] | None = None,
        over: Mapping[str, Any] | None = None,
    ) -> list[Run]:
        """Give the runs, seed by seed, so that what is cut off is even over the arms.

        Args:
            arms: names of those wanted; all if there is none.
            seeds: at most so many an arm; by default as many as each says.
            base: merged over what all runs share: a user's model; an arm's own settings stay.
            over: merged over every run's settings, last of all.
        """
        wanted = [self.arm(name) for name in arms] or list(self.arms)
        most = max(arm.seeds for arm in wanted) if seeds is None else seeds
        return [
            Run(arm.name, seed, self._settings(arm, seed, base or {}, over or {}))
            for seed in range(most)
            for arm in wanted
            if seed < arm.seeds or seeds is not None
        ]

    def _settings(
        self, arm: Arm, seed: int, base: Mapping[str, Any], over: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Give the settings of a run, layer upon layer."""
        settings: Mapping[str, Any] = self.settings
        for layer in (base, arm.settings, over, {"seed": seed}):
            settings = merged(settings, layer)
        return dict(settings)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Give a mapping with another laid over it: mappings in it are merged, all else replaced.

    A value None takes the entry away.

    >>> merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": None})
    {'a': {'b': 1, 'c': 4}}
    """
    found = dict(below)
    for name, value in above.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = merged(found[name], value)
        else:
            found[name] = value
    return found
