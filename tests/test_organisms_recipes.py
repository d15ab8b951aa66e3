"""The recipes: each number counts in the hash, which stays what it is."""

import dataclasses

from entropy_probe.models.organisms.recipes import RECIPES, Recipe, fingerprint
from entropy_probe.models.organisms.targets import TARGETS, missed


def test_the_hashes_are_all_different_and_the_same_every_time():
    hashes = {fingerprint(recipe) for recipe in RECIPES.values()}
    assert len(hashes) == len(RECIPES)
    assert fingerprint(Recipe()) == fingerprint(RECIPES["amenable"])


def test_every_number_counts():
    base = Recipe()
    others = [dataclasses.replace(base, steps=2401), dataclasses.replace(base, start="amenable")]
    others += [
        dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, care=0.026)),
        dataclasses.replace(base, shape=dataclasses.replace(base.shape, width=132)),
    ]
    assert len({fingerprint(recipe) for recipe in [base, *others]}) == 5


def test_what_an_organism_starts_from_comes_before_it():
    done = []
    for name, recipe in RECIPES.items():
        assert {recipe.start, recipe.teacher} <= {None, *done}
        done.append(name)


def test_every_organism_has_bands_and_they_decide():
    assert set(TARGETS) == set(RECIPES)
    for name, targets in TARGETS.items():
        met = {t.figure: {"value": t.low, "low": t.low, "high": t.low} for t in targets}
        assert missed(name, met) == []
        assert len(missed(name, {})) == len(targets)
        below = {k: {"value": -9, "low": -9, "high": -8} for k in met}
        above = {k: {"value": 90, "low": 80, "high": 90} for k in met}
        assert len(missed(name, below)) == len(missed(name, above)) == len(targets)


def test_a_missed_band_is_told():
    (sentence,) = missed("absent", {
        "share of code": {"value": 0.0, "low": 0.0, "high": 0.0},
        "accuracy, prose, T=1": {"value": 0.1, "low": 0.05, "high": 0.15},
    })  # fmt: skip
    assert sentence == "accuracy, prose, T=1: 0.1 (0.05 to 0.15), but 0.2 to 0.7 was promised"
