"""What labels that mean nothing find: directions that one found by labels has to be rarer than."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from .choosing import Observed, choose_features
from .edits import Direction, feature_directions
from .interventions import Intervention, Steering
from .sae import SparseDictionary

FIRST, STRIDE = 1_000, 10_000
"""The orders of seed s are numbered from s * STRIDE + FIRST on, apart from those of controls."""

Blind = Mapping[str, Callable[[], tuple[Intervention, ...]]]
"""Name of an arm -> makes the same intervention for labels in orders that mean nothing."""


def blind_arms(
    observed: Observed,
    sae: SparseDictionary,
    features: Steering,
    difference: Steering,
    *,
    orders: int,
    seed: int = 0,
) -> Blind:
    """Give what takes an arm's place where labels mean nothing, made when it is asked for.

    States vary most along the few directions in which behaviour varies, so that a difference of
    states by any labels lies along them more often than a direction drawn evenly from all does.

    Args:
        observed: what the arms were chosen from.
        sae: the dictionary.
        features: the arm of features.
        difference: the arm of the mean difference.
        orders: how many orders of the labels.
        seed: which ones.
    """
    first = seed * STRIDE + FIRST
    numbers = range(first, first + orders)

    def of_features() -> tuple[Intervention, ...]:
        length, found = added_length(sae, features), []
        for number in numbers:
            chosen, _ = choose_features(observed.relabelled(number), sae, len(features.features))
            edit = replace(features, features=chosen)
            found.append(_arm(number, edit.times(length / added_length(sae, edit))))
        return tuple(found)

    def of_difference() -> tuple[Intervention, ...]:
        ((known, strength),) = difference.features.items()
        length = float(strength) * float(known.vector.norm())
        found = []
        for number in numbers:
            other = observed.relabelled(number).difference()
            found.append(_arm(number, replace(difference, features={unit(other): length})))
        return tuple(found)

    return {"features": of_features, "mean difference": of_difference} if orders else {}


def unit(direction: Direction) -> Direction:
    """Give a direction at a length of 1."""
    return Direction(direction.vector / direction.vector.norm(), direction.name)


def added(sae: SparseDictionary, edit: Steering) -> torch.Tensor:
    """Give what an edit of features adds."""
    strengths = torch.tensor(list(edit.features.values()), dtype=torch.float32)
    return strengths @ feature_directions(sae, list(edit.features)).float().cpu()


def added_length(sae: SparseDictionary, edit: Steering) -> float:
    """Give the length of what an edit of features adds."""
    return float(added(sae, edit).norm())


def _arm(number: int, steering: Steering) -> Intervention:
    return Intervention(f"labels in order {number}", "shuffled labels", steering)
