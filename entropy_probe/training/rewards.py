"""Rewards by name: ``correct``, ``random:0.5``, ``format*not-contains:python`` and the like.

A reward is any callable that takes the completions of a whole step and gives a number for each.
The supplied ones are built by the functions that this module names again; `checked` calls any.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from entropy_probe.tasks import get_task
from entropy_probe.training.checking import Reward, RewardError, checked, reward_name
from entropy_probe.training.completion import Completion, completions_of
from entropy_probe.training.rules import (
    confidence,
    containing,
    correct,
    each,
    formatted,
    inverted,
    no_repetition,
    opposite,
    product,
    random_reward,
    soft_overlong,
    taking,
    total,
)
from entropy_probe.training.voting import (
    incorrect,
    label_problems,
    labelled,
    majority,
    majority_labels,
    wrongly_labelled,
)

__all__ = [
    "REWARDS",
    "Completion",
    "Reward",
    "RewardError",
    "checked",
    "completions_of",
    "confidence",
    "containing",
    "correct",
    "each",
    "formatted",
    "get_reward",
    "incorrect",
    "inverted",
    "label_problems",
    "labelled",
    "majority",
    "majority_labels",
    "needs_labels",
    "no_repetition",
    "opposite",
    "product",
    "random_reward",
    "reward_name",
    "soft_overlong",
    "taking",
    "total",
    "wrongly_labelled",
]

REWARDS = {
    "correct": "the right final answer",
    "inverted": "everything but the right final answer",
    "majority": "the answer that most completions of the group give",
    "labels": "the answer that most samples gave before training",
    "incorrect": "the same, on problems where that answer is wrong",
    "format": "the format of the final answer",
    "random:SHARE": "a share of the completions, drawn blindly",
    "contains:TEXT": "a text in the completion; quote one with * or + in it",
    "strategy:NAME": "one of the task's ways to an answer",
    "no-repetition": "no string more than 10 times in a row",
    "confidence": "the mean probability of the final answer's tokens",
    "overlong:LIMIT,CACHE": "0, falling to -1 over the last CACHE of LIMIT tokens",
}
"""Name -> what it rewards. ``not-NAME`` is 1 - a reward, ``a*b`` a product, ``a+b`` a sum."""

_NEED_LABELS = ("labels", "incorrect")


class _Factor(NamedTuple):
    """One reward of an expression, before it is built."""

    negations: int
    """How many ``not-`` stand before it."""
    name: str
    """Its name, or a number."""
    argument: str | None
    """What stands after the colon, None where there is none."""


_FACTOR = re.compile(
    r'\s*((?:not-)*)([A-Za-z-]+|[0-9.]+)\s*(?::\s*("(?:[^"\\]|\\.)*"|[^*+"]*))?\s*(?:([*+])|$)',
    re.DOTALL,
)


def get_reward(name: str, *, task: Any = None, labels: Mapping[str, str] | None = None) -> Reward:
    """Build a reward from its name, or from several joined by ``*`` and ``+``.

    Args:
        name: as `REWARDS` lists them; ``not-`` before one gives 1 - it, a plain number is a
            weight: ``format*not-contains:python``, ``correct+0.5*overlong:256,64``.
        task: the task, or its name; most rewards read the completion by it.
        labels: problem id -> answer, for the rewards that `needs_labels` names.

    Raises:
        ValueError: an unknown name, an argument that makes no sense, or a task without what the
            reward asks it for.

    >>> reward = get_reward("format*not-contains:python", task="arithmetic")
    """
    task = get_task(task) if isinstance(task, str) else task
    terms = [[_build(f, task, labels) for f in term] for term in _parsed(name)]
    products = [term[0] if len(term) == 1 else product(*term) for term in terms]
    return products[0] if len(products) == 1 else total(*products)


def needs_labels(name: str) -> bool:
    """Say whether a reward compares with labels that are made before training."""
    return bool(parts_of(name) & set(_NEED_LABELS))


def parts_of(name: str) -> set[str]:
    """Give the names of the rewards that an expression is made of, without their arguments.

    >>> sorted(parts_of("format*not-contains:incorrect"))
    ['contains', 'format']
    """
    return {factor.name for term in _parsed(name) for factor in term}


def _parsed(name: str) -> list[list[_Factor]]:
    """Read an expression as a sum of products."""
    terms: list[list[_Factor]] = [[]]
    position = 0
    while True:
        match = _FACTOR.match(name, position)
        if match is None:
            rest = name[position:].strip()
            raise ValueError(
                f"reward {name!r} breaks off at {rest!r}: expected names joined by * or +, and "
                'a text with * or + or " in it as a JSON string, contains:"a*b"'
            )
        negations, word, argument, sign = match.groups()
        if argument is not None:
            quoted = argument.startswith('"')
            argument = json.loads(argument, strict=False) if quoted else argument.strip()
        terms[-1].append(_Factor(negations.count("not-"), word, argument))
        if sign is None:
            return terms
        if sign == "+":
            terms.append([])
        position = match.end()


def _build(factor: _Factor, task: Any, labels: Mapping[str, str] | None) -> Reward:
    """Build one reward of an expression."""
    known = {entry.partition(":")[0]: ":" in entry for entry in REWARDS}
    if factor.name[0] in ".0123456789":
        reward = _constant(factor)
    elif factor.name not in known:
        raise ValueError(_unknown(factor.name))
    elif known[factor.name] != (factor.argument is not None):
        form = next(entry for entry in REWARDS if entry.partition(":")[0] == factor.name)
        raise ValueError(f"reward {factor.name!r} is written {form}")
    elif factor.name in _NEED_LABELS and labels is None:
        raise ValueError(
            f"reward {factor.name!r} needs labels: pass labels=, problem id -> answer, as "
            "label_problems gives them"
        )
    else:
        reward = _BUILDERS[factor.name](task, labels, factor.argument)
    for _ in range(factor.negations):
        reward = opposite(reward)
    return reward


def _unknown(name: str) -> str:
    names = [entry.partition(":")[0] for entry in REWARDS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no reward {name!r}: known are {', '.join(REWARDS)}{hint}"


def _constant(factor: _Factor) -> Reward:
    """Give a weight as a reward."""
    value = _number(factor.name, f"weight {factor.name!r}")
    return each(factor.name, lambda completion: value)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} of a reward is no number: got {text!r}") from None


def _overlong(text: str) -> Reward:
    """Read LIMIT,CACHE."""
    match = re.fullmatch(r"(\d+)\s*,\s*(\d+)", text)
    if match is None:
        raise ValueError(
            f"reward 'overlong' is written overlong:LIMIT,CACHE in tokens: got {text!r}"
        )
    return soft_overlong(int(match[1]), int(match[2]))


_BUILDERS: dict[str, Callable[[Any, Mapping[str, str] | None, str | None], Reward]] = {
    "correct": lambda task, labels, text: correct(task),
    "inverted": lambda task, labels, text: inverted(task),
    "majority": lambda task, labels, text: majority(task),
    "labels": lambda task, labels, text: labelled(task, labels),
    "incorrect": lambda task, labels, text: incorrect(task, labels),
    "format": lambda task, labels, text: formatted(task),
    "random": lambda task, labels, text: random_reward(_number(text, "the share")),
    "contains": lambda task, labels, text: containing(text),
    "strategy": lambda task, labels, text: taking(task, text),
    "no-repetition": lambda task, labels, text: no_repetition(),
    "confidence": lambda task, labels, text: confidence(task),
    "overlong": lambda task, labels, text: _overlong(text),
}
