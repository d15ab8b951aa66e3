"""The lines of an analysis, as its figures and verdicts read them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.claims import Contrast, Verdict, judge

from .analysis import Analysis


@dataclass(frozen=True)
class Line:
    """What one run left behind."""

    arm: str
    """The arm's name."""
    seed: int
    """The seed."""
    settings: Mapping[str, Any]
    """What the run was given."""
    result: Mapping[str, Any]
    """What it gave."""
    about: Mapping[str, Any]
    """Weights, libraries, hardware, revision, seconds and date."""

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> "Line":
        """Read a line of the file."""
        own = ("arm", "seed", "settings", "result")
        about = {name: value for name, value in line.items() if name not in own}
        return cls(**{name: line[name] for name in own}, about=about)


class Results:
    """The runs of an analysis that are there, by arm and seed."""

    def __init__(self, analysis: Analysis, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take lines of runs that the analysis asks for; each arm's are put in order of seed."""
        self.analysis = analysis
        found = sorted((Line.from_dict(line) for line in lines), key=lambda line: line.seed)
        self._lines = {arm.name: [x for x in found if x.arm == arm.name] for arm in analysis.arms}

    def __len__(self) -> int:
        """Count the runs."""
        return sum(map(len, self._lines.values()))

    def runs(self, arm: str) -> list[Line]:
        """Give an arm's runs, in order of their seeds; none is an empty list."""
        self.analysis.arm(arm)
        return list(self._lines[arm])

    def values(self, arm: str, measure: Callable[[Mapping[str, Any]], float]) -> dict[int, float]:
        """Give seed -> a number read from the run's result."""
        return {line.seed: float(measure(line.result)) for line in self.runs(arm)}

    def pairs(
        self,
        arm: str,
        other: str,
        measure: Callable[[Mapping[str, Any]], float],
        against: Callable[[Mapping[str, Any]], float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give the numbers of two arms, ``[seeds]`` each, over the seeds that both have.

        Args:
            arm: the one.
            other: the other.
            measure: reads the one's number from a run's result.
            against: reads the other's; by default it is the same.
        """
        ours, theirs = self.values(arm, measure), self.values(other, against or measure)
        both = sorted(ours.keys() & theirs.keys())
        return np.array([ours[s] for s in both]), np.array([theirs[s] for s in both])

    def verdicts(self) -> list[Verdict]:
        """Give the verdicts, as the analysis has them made."""
        return (self.analysis.verdicts or Results.judged)(self)

    def judged(self) -> list[Verdict]:
        """Give a verdict a contrast, those without runs left out."""
        return judge(self.analysis.contrasts, self.compared)

    def compared(self, contrast: Contrast) -> tuple[np.ndarray, np.ndarray]:
        """Give the measure of a contrast in both its arms, over the seeds that both have."""
        measures = self.analysis.measures
        against = measures[contrast.against] if contrast.against else None
        return self.pairs(contrast.arm, contrast.other, measures[contrast.measure], against)
