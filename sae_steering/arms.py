"""The arms of a trial: the features at their strength, and every control, from one split alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from entropy_probe.tasks.problem import Problem, Task

from .blind import Blind, added, added_length, blind_arms, unit
from .choosing import Observed, choose_features, observe, units
from .controls import (
    Splice,
    elsewhere,
    opening_probabilities,
    promoted_tokens,
    random_directions,
    random_latents,
    similar_latents,
)
from .forks import Threshold, fork_threshold
from .interventions import Intervention, Steering
from .outcomes import Drawing
from .places import at_opening
from .sae import SparseDictionary
from .steering import ENTROPIC, WHERE, edit_of
from .strengths import SIZES, Chosen, begun, choose_strength, choose_word, prompted
from .sweeps import Dose

WORDS = 3
"""Tokens that features promote and that are tried as a forced beginning."""
COLD = 0.3
"""The low temperature."""


@dataclass(frozen=True)
class Arms:
    """What `gather_evidence` takes, and how it came about."""

    interventions: tuple[Intervention, ...]
    """The features first, then the controls."""
    randoms: tuple[Intervention, ...]
    """Random directions, each as long as what the features add."""
    ablations: tuple[Intervention, ...]
    """The features taken out, for the trained model."""
    blind: Blind
    """What labels that mean nothing put in place of the arms that labels found."""
    about: Mapping[str, Any]
    """On what, by what and with what figures everything was chosen: JSON values."""


@dataclass(frozen=True)
class Plan:
    """What is asked for; what is left open is chosen."""

    by: str = "choice"
    """What features are chosen by, see `choosing.BY`."""
    where: str = "opening"
    """The states that are changed, by name."""
    features: tuple[int, ...] = ()
    """Features to steer; none: those that tell most."""
    strengths: tuple[float, ...] = ()
    """Their strengths, one each; none: the same length for all that does best."""
    count: int = 1
    """Features to choose."""
    threshold: float | int | Threshold | None = None
    """Nats, for forks; None: the 80th percentile of the base, where it is chosen on."""
    randoms: int = 100
    """Random directions."""
    orders: int = 100
    """Orders of labels that mean nothing, for an arm that labels found and that recovers enough."""
    latents: int = 2
    """Features that are about as often active, each steered as strongly."""
    sizes: tuple[float, ...] = SIZES
    """Lengths that are tried, in mean lengths of the states."""
    seed: int = 0
    """Seed of random directions, features and label orders."""
    shuffle: int | None = None
    """Seed of labels that mean nothing, for everything: those of completions are put into another
    order, and the rewards that strengths and words are chosen by are dealt out anew among all that
    are tried. None: labels and rewards as they are."""


def make_arms(
    base,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    sae: SparseDictionary,
    plan: Plan | None = None,
    *,
    drawing: Drawing | None = None,
    progress: Callable[[str], None] | None = None,
) -> Arms:
    """Choose features, strengths and every control on the problems of one split.

    The controls are chosen as the features are: the mean difference at the strength that does
    best, the promoted word that does best, a feature for shuffled labels at the strength that does
    best. What is reported has to be measured on other problems.

    Args:
        base: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        task: what verifies answers.
        problems: to choose on.
        sae: the dictionary; its layer is where everything is added.
        plan: what is asked for.
        drawing: how completions are drawn.
        progress: called with what is being done.

    Raises:
        ValueError: a plan that makes no sense, or nothing to tell apart.
    """
    plan, drawing = plan or Plan(), Drawing() if drawing is None else drawing
    _check(plan, sae)
    say = progress or (lambda words: None)
    say("the base as it is")
    observed = observe(base, tokenizer, task, problems, sae, by=plan.by, drawing=drawing)
    if plan.shuffle is not None:
        observed = observed.relabelled(plan.shuffle)
    threshold = plan.threshold
    if plan.where in ENTROPIC:
        source = observed.outcome.rollouts if threshold is None else threshold
        threshold = fork_threshold(source)
    place = {"where": plan.where, "layer": sae.layer, "threshold": threshold}
    bench = _Bench(base, tokenizer, task, problems, sae, plan, drawing, place, say)
    features = bench.features(observed)
    edit = features.steering
    difference = bench.strongest(
        Steering(None, {unit(observed.difference()): 1.0}, **place), observed.size, order=1
    )
    shuffled = None if plan.shuffle is not None else bench.shuffled(observed)
    word, words = bench.word(edit, order=2)
    arms = [
        Intervention("features", "features", edit),
        Intervention("mean difference", "mean difference", difference.steering),
        *([begun(word), prompted(word)] if word else []),
        Intervention(f"temperature {COLD:g}", "low temperature", temperature=COLD),
        *_shuffled(shuffled),
        *_elsewhere(edit, plan),
        Intervention("splice", "splice", Splice(sae, sae.layer)),
        *_latents(sae, edit, observed, plan),
    ]
    about = {
        "problems": len(problems), "completions": drawing.n, "seed": drawing.seed,
        "told apart": observed.label, "by": plan.by if not plan.features else "given",
        "features": dict(features.about), "mean difference": dict(difference.about),
        "shuffled labels": None if shuffled is None else dict(shuffled.about), **words,
        "threshold": None if threshold is None else threshold.describe(),
    }  # fmt: skip
    blind = blind_arms(observed, sae, edit, difference.steering, orders=plan.orders, seed=plan.seed)
    return Arms(tuple(arms), _randoms(sae, edit, plan), _ablations(sae, edit), blind, about)


@dataclass(frozen=True)
class _Bench:
    """What every choice is made with."""

    base: Any
    """The model."""
    tokenizer: Any
    """Its tokenizer."""
    task: Task
    """What verifies answers."""
    problems: Sequence[Problem]
    """To choose on."""
    sae: SparseDictionary
    """The dictionary."""
    plan: Plan
    """What is asked for."""
    drawing: Drawing
    """How completions are drawn."""
    place: Mapping[str, Any]
    """Where everything is added: arguments of `Steering`."""
    say: Callable[[str], None]
    """Told what is being done."""

    def strongest(self, steering: Steering, size: float, order: int) -> Chosen:
        """Give a steering at the strength that does best; see `shuffle` for the order."""

        def tell(dose: Dose) -> None:
            self.say(
                f"{dose.accuracy.value:.1%} right with {steering.times(dose.strength).describe()}"
            )

        return choose_strength(
            self.base, self.tokenizer, self.task, self.problems, steering, size,
            sizes=self.plan.sizes, drawing=self.drawing, shuffle=self.shuffle(order), progress=tell,
        )  # fmt: skip

    def shuffle(self, order: int) -> tuple[int, int] | None:
        """Give the seed of rewards that mean nothing, another for each choice, where asked for."""
        return None if self.plan.shuffle is None else (self.plan.shuffle, order)

    def features(self, observed: Observed) -> Chosen:
        """Give the features that are asked for, or that tell most, at their strength."""
        plan, scored = self.plan, observed.table()
        lines = scored.lines(plan.features)
        if plan.strengths:
            given = dict(zip(plan.features, plan.strengths, strict=True))
            return Chosen(Steering(self.sae, given, **self.place), {"scores": lines})
        if plan.features:
            found = units(self.sae, plan.features)
        else:
            found, lines = choose_features(observed, self.sae, plan.count)
        return self._scored(found, lines, observed.size)

    def shuffled(self, observed: Observed) -> Chosen:
        """Give what the same choice finds where labels mean nothing, at its best strength.

        A generous control: its feature is chosen by labels that mean nothing, but its strength by
        the rewards that it really earns.
        """
        count = len(self.plan.features) or self.plan.count
        other = observed.relabelled(self.plan.seed)
        return self._scored(*choose_features(other, self.sae, count), observed.size)

    def _scored(self, found: dict[int, float], lines: list[dict[str, Any]], size: float) -> Chosen:
        """Give features at the strength that does best, with their scores."""
        chosen = self.strongest(Steering(self.sae, found, **self.place), size, order=0)
        return replace(chosen, about={"scores": lines} | dict(chosen.about))

    def word(self, edit: Steering, order: int) -> tuple[str, dict[str, Any]]:
        """Give the word, among those that the edit promotes, that completions best begin with."""
        prompts = [problem.prompt for problem in self.problems]
        before = opening_probabilities(self.base, self.tokenizer, prompts)
        with replace(edit, where=at_opening, threshold=None).on(self.base) as steered:
            after = opening_probabilities(steered, self.tokenizer, prompts)
        tokens = promoted_tokens(before, after, count=WORDS)
        return choose_word(
            self.base, self.tokenizer, self.task, self.problems, tokens, drawing=self.drawing,
            shuffle=self.shuffle(order),
            progress=lambda found: self.say(f"{found.accuracy.value:.1%} right: {found.name}"),
        )  # fmt: skip


def _check(plan: Plan, sae: SparseDictionary) -> None:
    """Refuse a plan that makes no sense."""
    if plan.strengths and len(plan.strengths) != len(plan.features):
        raise ValueError(
            f"strengths belong to features: {len(plan.features)} and {len(plan.strengths)} given"
        )
    if plan.where not in (*WHERE, *ENTROPIC):
        raise ValueError(f"where must be one of {(*WHERE, *ENTROPIC)}, got {plan.where!r}")
    edit_of(sae, dict.fromkeys(plan.features, 1.0), "add")  # says which it does not have


def _shuffled(chosen: Chosen | None) -> list[Intervention]:
    """Give what was chosen for labels that mean nothing; none where all labels are such."""
    if chosen is None:
        return []
    return [Intervention("shuffled labels", "shuffled labels", chosen.steering)]


def _elsewhere(edit: Steering, plan: Plan) -> list[Intervention]:
    """Give the same edit at other places; none where it is everywhere."""
    others = {
        "opening": elsewhere(at_opening, seed=plan.seed), "prompt": "generated",
        "generated": "prompt", "forks": "non-forks", "non-forks": "forks",
    }  # fmt: skip
    if plan.where not in others:
        return []
    return [Intervention("other places", "other places", replace(edit, where=others[plan.where]))]


def _latents(
    sae: SparseDictionary, edit: Steering, observed: Observed, plan: Plan
) -> list[Intervention]:
    """Give features that are about as often active as the first, steered at the same length."""
    first = next(iter(edit.features))
    near = similar_latents(observed.density, first)
    if not (count := min(plan.latents, len(near))):
        return []
    length = added_length(sae, edit)
    found = []
    for other in random_latents(observed.density, first, count, seed=plan.seed):
        steering = replace(edit, features=units(sae, [other])).times(length)
        found.append(Intervention(f"feature {other}", "random latent", steering))
    return found


def _randoms(sae: SparseDictionary, edit: Steering, plan: Plan) -> tuple[Intervention, ...]:
    drawn = random_directions(added(sae, edit), plan.randoms, seed=plan.seed)
    return tuple(Intervention(d.name, "random direction", edit.along(d, 1.0)) for d in drawn)


def _ablations(sae: SparseDictionary, edit: Steering) -> tuple[Intervention, ...]:
    """Give the features taken out everywhere."""
    out = Steering(sae, dict.fromkeys(edit.features, 1.0), edit.layer, "ablate")
    return (Intervention("features taken out", "features", out),)
