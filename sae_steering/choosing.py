"""Features and directions, chosen on one split of a task, to be reported on another."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.sampling import sample
from entropy_probe.scoring import score
from entropy_probe.tasks.problem import HasStrategies, Problem, Task

from .activities import CELLS
from .controls import mean_difference
from .edits import Direction, feature_directions
from .outcomes import Drawing, Outcome, measure
from .sae import SparseDictionary
from .score import choice_selectivity, outcome_selectivity, strategy_selectivity
from .tables import FeatureTable

BY = ("choice", "strategy", "outcome")
"""What features are chosen by: how they predict, at the last token of the prompt, which way is
taken; how they tell the ways apart later; how they tell right answers from wrong ones."""
LEAST_SHARE = 0.05
"""A way that fewer completions take is not among those that are compared."""


@dataclass(frozen=True)
class Observed:
    """What a base does on the problems that choices are made on."""

    by: str
    """One of `BY`."""
    label: str
    """What is told apart, in words."""
    positive: Bool[Tensor, " rows"]
    """Whether each completion is of the one kind."""
    states: Float[Tensor, "n d_model"]
    """States that features are scored on."""
    acts: Float[Tensor, "n d_sae"]
    """Their activations."""
    owners: Int[Tensor, "n each"]
    """Completions that each state belongs to: all of its prompt's, before the first token."""
    prompts: Int[Tensor, " n"]
    """Prompt of each state."""
    tokens: Int[Tensor, " n"]
    """Token that each state has just read."""
    places: Int[Tensor, " n"]
    """How many tokens of the completion it has seen."""
    given: Int[Tensor, " n"]
    """What is visible in the words of the prompt, a number a kind."""
    outcome: Outcome | None = field(default=None, repr=False)
    """The completions, where they are known."""

    @property
    def size(self) -> float:
        """Give the mean length of the states."""
        return float(self.states.norm(dim=1).mean())

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Give the share of the states at which each feature is active."""
        return (self.acts > 0).float().mean(dim=0)

    def relabelled(self, seed: int) -> "Observed":
        """Give the same with the completions' labels in another order: they mean nothing."""
        noise = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.positive), generator=noise)
        return replace(self, positive=self.positive[order], label=f"{self.label}, shuffled")

    def table(self) -> FeatureTable:
        """Score all features."""
        if self.by == "choice":
            share = self.positive[self.owners].float().mean(dim=1)
            return choice_selectivity(self.acts, share, given=self.given)
        function = strategy_selectivity if self.by == "strategy" else outcome_selectivity
        return function(
            self.acts, self.positive[self.owners[:, 0]], tokens=self.tokens, positions=self.places,
            clusters=self.prompts,
        )  # fmt: skip

    def difference(self) -> Direction:
        """Give the mean of the states of the one kind of completion, less that of the other."""
        each = self.owners.shape[1]
        labels = self.positive[self.owners].flatten()
        return mean_difference(self.states.repeat_interleave(each, dim=0), labels)


def observe(
    base,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    sae: SparseDictionary,
    *,
    by: str = "choice",
    drawing: Drawing | None = None,
) -> Observed:
    """Let a base answer, and read the states that features are scored on.

    The kinds of completion that are told apart are the way with the best answers against the
    others, where the task tells ways and two of them are taken; else right answers against wrong
    ones.

    Args:
        base: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        task: what verifies answers.
        problems: of the split that choices are made on.
        sae: the dictionary.
        by: one of `BY`.
        drawing: how completions are drawn.

    Raises:
        ValueError: nothing to tell apart.
    """
    if by not in BY:
        raise ValueError(f"by must be one of {BY}, got {by!r}")
    if sae.layer is None:
        raise ValueError("the dictionary does not say after which block it reads")
    drawing = Drawing() if drawing is None else drawing
    outcome = measure(base, tokenizer, task, problems, None, drawing)
    label, positive = _labels(outcome, task, by)
    read = _opening if by == "choice" else _later
    parts = read(base, tokenizer, problems, sae, outcome, drawing)
    given = torch.tensor(_kinds(problems))[parts["prompts"]]
    return Observed(by, label, positive, **parts, given=given, outcome=outcome)


def choose_features(
    observed: Observed, sae: SparseDictionary, count: int = 1
) -> tuple[dict[int, float], list[dict[str, Any]]]:
    """Give the features that tell most, each with the strength that adds a length of 1.

    They are those that are more active where the one kind of completion follows, so that adding
    them goes where states of that kind are.

    Returns:
        Feature -> strength, and the features' scores, best first.
    """
    scored = observed.table()
    column, middle = ("partial", 0.0) if observed.by == "choice" else ("matched", 0.5)
    best = [f for f in scored.best(count, by=column) if float(scored[column][f]) > middle]
    if len(best) < count:
        raise ValueError(
            f"only {len(best)} features of {len(scored)} are more active there, not {count}"
        )
    return units(sae, best), scored.lines(best)


def units(sae: SparseDictionary, features: Sequence[int]) -> dict[int, float]:
    """Give the strength at which each feature adds a length of 1."""
    lengths = feature_directions(sae, features).norm(dim=1).tolist()
    return {feature: 1 / length for feature, length in zip(features, lengths, strict=True)}


def _labels(outcome: Outcome, task: Task, by: str) -> tuple[str, Tensor]:
    """Say what is told apart, and of which kind each completion is."""
    ways = outcome.strategies
    names = list(task.strategies) if isinstance(task, HasStrategies) and ways is not None else []
    taken = [name for name in names if (ways == name).mean() >= LEAST_SHARE]
    if by != "outcome" and len(taken) > 1:
        best = max(taken, key=lambda name: outcome.accuracy_of(name).value)
        return f"{best} against other ways", torch.tensor((ways == best).flatten())
    if by == "strategy":
        raise ValueError(f"there are no two ways to tell apart: completions take {taken or 'none'}")
    right = torch.tensor((outcome.right > 0.5).flatten())
    if bool(right.all()) or not bool(right.any()):
        raise ValueError(
            f"{int(right.sum())} of {len(right)} answers are right: there is nothing to tell apart"
        )
    return "right against wrong answers", right


def _opening(
    base, tokenizer, problems: Sequence[Problem], sae: SparseDictionary, outcome: Outcome,
    drawing: Drawing,
) -> dict[str, Tensor]:  # fmt: skip
    """Read the last state of each prompt."""
    drawn = sample(
        base, tokenizer, [p.prompt for p in problems], max_new_tokens=1, alternatives=0,
        residual_layers=[sae.layer], residual_positions="all", batch_size=drawing.batch_size,
    )  # fmt: skip
    states = drawn.residuals[sae.layer].float().cpu()
    count = len(problems)
    last = drawn.tokens[torch.arange(count), drawn.prompt_lengths - 1]
    return {
        "states": states,
        "acts": sae.encode(states).float(),
        "owners": torch.arange(count * drawing.n).view(count, drawing.n),
        "prompts": torch.arange(count),
        "tokens": last,
        "places": torch.zeros(count, dtype=torch.long),
    }


def _later(
    base, tokenizer, problems: Sequence[Problem], sae: SparseDictionary, outcome: Outcome,
    drawing: Drawing,
) -> dict[str, Tensor]:  # fmt: skip
    """Read the states after the first token of each completion."""
    drawn = outcome.rollouts
    record = score(
        base, tokenizer, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths,
        groups=drawn.groups, residual_layers=[sae.layer], residual_positions="all",
        alternatives=0, batch_size=drawing.batch_size,
    )  # fmt: skip
    steps = torch.arange(record.valid.shape[1])
    later = record.captured & (steps[None, :] > record.prompt_lengths[:, None])
    row, place = later.nonzero(as_tuple=True)
    noise = torch.Generator().manual_seed(drawing.seed)
    some = torch.randperm(len(row), generator=noise)[: CELLS // sae.d_sae].sort().values
    row, place = row[some], place[some]
    states = record.residuals[sae.layer][later[record.captured]][some].float().cpu()
    return {
        "states": states,
        "acts": torch.cat([sae.encode(part).float() for part in states.split(4096)]),
        "owners": row[:, None],
        "prompts": record.groups[row],
        "tokens": record.tokens[row, place - 1],
        "places": place - record.prompt_lengths[row],
    }


def _kinds(problems: Sequence[Problem]) -> list[int]:
    """Number the wordings of problems, where all of them say theirs; else all are of one kind."""
    wordings = [problem.facts.get("wording") for problem in problems]
    if any(wording is None for wording in wordings):
        return [0] * len(problems)
    return np.unique(wordings, return_inverse=True)[1].tolist()
