"""The strength, or the word, that does best on one split; or one that rewards say nothing about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from entropy_probe.figures import mean
from entropy_probe.tasks.problem import Problem, Task

from .interventions import Intervention, Steering
from .outcomes import Drawing, Outcome, measure
from .sweeps import Dose, best_dose, responses

SIZES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Lengths of what is added that are tried, in mean lengths of the states."""

Rewards = Float[np.ndarray, "problems n"]
Seed = int | tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """What was chosen."""

    steering: Steering
    """The edit, at the strength that did best."""
    about: Mapping[str, Any]
    """By what, with what scores, and what each strength did there: JSON values."""


def choose_strength(
    base,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    steering: Steering,
    size: float,
    *,
    sizes: Sequence[float] = SIZES,
    drawing: Drawing | None = None,
    shuffle: Seed | None = None,
    progress: Callable[[Dose], None] | None = None,
) -> Chosen:
    """Give a steering at the strength with the most right answers.

    Args:
        base: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        task: what verifies answers.
        problems: of the split that choices are made on.
        steering: what is added, each feature at a length of 1.
        size: mean length of the states.
        sizes: lengths that are tried, in that.
        drawing: how completions are drawn.
        shuffle: a seed, to choose by rewards that are dealt out anew among all strengths, so
            that which one is chosen means nothing; None to choose by what each has earned.
        progress: called with each dose that is done.
    """
    doses, rewards = [], []
    lengths = [size * each for each in sizes]
    for dose, outcome in responses(
        base, tokenizer, task, problems, steering, lengths, drawing=drawing
    ):
        doses.append(dose)
        rewards.append(outcome.right)
        if progress is not None:
            progress(dose)
    judged = doses if shuffle is None else blinded(doses, rewards, shuffle)
    best = best_dose(judged)
    tried = [
        {
            "length": dose.strength, "right": dose.accuracy.to_dict(),
            "dealt out": None if shuffle is None else blind.accuracy.to_dict(),
            "kl": dose.divergence.to_dict(),
        }
        for dose, blind in zip(doses, judged, strict=True)
    ]  # fmt: skip
    return Chosen(steering.times(best.strength), {"length": best.strength, "tried": tried})


def choose_word(
    base,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    tokens: Sequence[int],
    *,
    drawing: Drawing | None = None,
    shuffle: Seed | None = None,
    progress: Callable[[Outcome], None] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Give the word that completions best begin with, "" of none, and what each gave.

    Args:
        base: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        task: what verifies answers.
        problems: of the split that choices are made on.
        tokens: those of the words to choose from. One that is a part of a letter is left out: it
            cannot be put there as a text.
        drawing: how completions are drawn.
        shuffle: as for `choose_strength`.
        progress: called with what each word gave.

    Returns:
        The word, and as JSON values ``{"words": word -> accuracy, "words, dealt out": the same of
        the rewards that decided, where they were dealt out, else None}``.
    """
    words, rewards = _writable(tokenizer, tokens), []
    for word in words:
        found = measure(base, tokenizer, task, problems, begun(word), drawing)
        rewards.append(found.right)
        if progress is not None:
            progress(found)
    right = _means(words, rewards)
    blind = None if shuffle is None else _means(words, dealt_out(rewards, shuffle))
    decided = right if blind is None else blind
    best = max(decided, key=decided.__getitem__, default="")
    return best, {"words": right, "words, dealt out": blind}


def begun(word: str) -> Intervention:
    """Give the intervention by which completions begin with a word."""
    return Intervention(f"begin with {word!r}", "token injection", prefix=word)


def prompted(word: str) -> Intervention:
    """Give the intervention by which prompts begin with a word, before the problem."""

    def write(problem: Problem) -> str:
        return word + problem.prompt

    return Intervention(f"prompt begins with {word!r}", "prompt forcing", prompt=write)


def blinded(doses: Sequence[Dose], rewards: Sequence[Rewards], seed: Seed) -> list[Dose]:
    """Give doses with the accuracies of rewards that were dealt out anew among all of them.

    Everything else about a dose stays as it is.
    """
    dealt = dealt_out(rewards, seed)
    return [
        replace(dose, accuracy=mean(part.mean(axis=1)))
        for dose, part in zip(doses, dealt, strict=True)
    ]


def dealt_out(rewards: Sequence[Rewards], seed: Seed) -> list[Rewards]:
    """Give the rewards of several arms pooled and dealt out again, in an order from a seed.

    Each arm gets as many as it had, whoever earned them: labels that mean nothing, for rewards.
    """
    if not rewards:
        return []
    pooled = np.concatenate([part.ravel() for part in rewards])
    np.random.default_rng(seed).shuffle(pooled)
    ends = np.cumsum([part.size for part in rewards])[:-1]
    dealt = np.split(pooled, ends)
    return [new.reshape(old.shape) for new, old in zip(dealt, rewards, strict=True)]


def _writable(tokenizer, tokens: Sequence[int]) -> list[str]:
    """Give the texts of tokens that their text stands for."""
    texts = [tokenizer.decode([token]) for token in tokens]
    return [
        text
        for token, text in zip(tokens, texts, strict=True)
        if tokenizer.encode(text, add_special_tokens=False) == [token]
    ]


def _means(words: Sequence[str], rewards: Sequence[Rewards]) -> dict[str, float]:
    accuracies = (mean(part.mean(axis=1)).value for part in rewards)
    return dict(zip(words, accuracies, strict=True))
