"""Cards: each shipped one against its weights, and the counting against plain loops."""

import json
from functools import cache

import numpy as np
import pytest

from analyses.organisms.retrain import compared
from entropy_probe.models import load
from entropy_probe.models.organisms import ORGANISMS, organism_path
from entropy_probe.models.organisms import card as cards
from entropy_probe.models.organisms.observations import Samples
from entropy_probe.models.organisms.recipes import RECIPES, fingerprint
from entropy_probe.models.organisms.targets import TARGETS, differing, missed
from entropy_probe.tasks import generator
from entropy_probe.tasks.language import lex

LIMIT, SAMPLES, TRIES = 32, 6, 16


@cache
def small(name: str) -> dict:
    """Measure a shipped organism on a small sample."""
    model, tokenizer = load(f"organism:{name}")
    return cards.measure(model, tokenizer, limit=LIMIT, n=SAMPLES, tries=TRIES)


def shipped(name: str) -> dict:
    """Give a card that ships."""
    return json.loads((organism_path(name) / "card.json").read_text())


@pytest.mark.parametrize("name", ORGANISMS)
def test_the_weights_bear_their_card_out(name):
    found, card = small(name), shipped(name)
    targets = [target.figure for target in TARGETS[name]]
    measured = {figure: found[figure] for figure in targets if figure in found}
    assert set(targets) - set(measured) <= {"pass@256, hard"}
    assert [s for s in missed(name, measured) if "not measured" not in s] == []
    # Over 32 problems a bootstrap is too sure of rare events and of figures that few of the
    # problems bear on, so that some intervals fail to meet; another organism's do by the dozen.
    measured.pop("guessed right", None)
    assert differing(measured, card["figures"]) == []
    assert len(differing(found, card["figures"])) < 0.2 * len(found)


@pytest.mark.parametrize("name", ORGANISMS)
def test_a_shipped_card_is_in_full_and_meets_its_description(name):
    card, recipe = shipped(name), json.loads((organism_path(name) / "recipe.json").read_text())
    assert card["missed"] == missed(name, card["figures"]) == []
    assert card["recipe"] == recipe["hash"] == fingerprint(RECIPES[name])
    assert card["weights"] == cards.weights_hash(organism_path(name))
    assert card["problems"] >= 100
    assert card["constant guess"] < 0.02
    assert {target.figure for target in TARGETS[name]} <= set(card["figures"])
    assert (organism_path(name) / "model.safetensors").stat().st_size < 8e6
    for figure in card["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.skipif(len(ORGANISMS) < 2, reason="one organism has no other")
def test_another_organism_s_card_would_not_pass():
    found = small("amenable")
    for other in (name for name in ORGANISMS if not name.startswith("amenable")):
        assert len(differing(found, shipped(other)["figures"])) > 0.3 * len(found), other


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Eight completions, written by hand, of four problems."""
    problems = generator.problems("default", 4, split="test", seed=0)
    pieces = []
    for i, problem in enumerate(problems):
        start, wrong = problem.prompt.split(",")[0][-3:], f"{(int(problem.answer) + 1) % 1000:03d}"
        pieces.append(lex(f">>> {start}={problem.answer}\n#### {problem.answer}"))
        last = problem.answer if i % 2 else wrong
        pieces.append(lex(f"Well, from {start}; then it is {last}"))
    rng = np.random.default_rng(0)
    entropy = [rng.random(len(p) + 1) for p in pieces]
    top = [values > 0.8 for values in entropy]
    return Samples(problems, 2, pieces, [True] * 8, entropy, top)


def test_accuracies_are_counted_by_strategy(samples):
    found = cards.accuracies(samples, "T=1")
    assert found["accuracy, T=1"].value == 6 / 8
    assert found["accuracy, code, T=1"].value == 1.0
    assert found["accuracy, prose, T=1"].value == 2 / 4
    assert found["accuracy, careful prose, T=1"] is None
    misled = [p.facts["misled"] for p in samples.problems]
    for key, wanted in (("misled by the wrong rule", True), ("not misled", False)):
        rights = [i % 2 for i, each in enumerate(misled) if each is wanted]
        figure = found[f"accuracy, prose {key}, T=1"]
        assert (figure is None) if not rights else figure.value == np.mean(rights)


def test_shares_and_markers(samples):
    found = cards.shares(samples)
    assert found["share of code"].value == 0.5
    assert found["unmarked"].value == 0.5
    assert found["unmarked, code"].value == 0.0
    assert found["unmarked, prose"].value == 1.0
    assert found["share of careful prose among prose"].value == 0.0


def test_majorities_and_guesses(samples):
    found = cards.majorities(samples, "T=1")
    # Where the two answers of a problem differ, the first one counts as the majority: it is right.
    assert found["majority wrong, T=1"].value == 0.0
    answers = [p.answer for p in samples.problems]
    given = [(p.answer, p.answer if i % 2 else None) for i, p in enumerate(samples.problems)]
    rate = np.mean([
        np.mean([sum(a == other for j, other in enumerate(answers) if j != i) / 3 for a in pair])
        for i, pair in enumerate(given)
    ])  # fmt: skip
    assert found["guessed right"].value == pytest.approx(rate, abs=0.05)


def test_tokens_by_role_are_counted_as_a_loop_would(samples):
    from entropy_probe.tasks.labeller import DECOYS, FORKS, label

    found = cards.token_figures(samples)
    rows = []
    for i, pieces in enumerate(samples.pieces):
        labels = label(samples.problems[i // 2], pieces, ended=True)
        rows += zip([each.role for each in labels], samples.entropy[i], samples.top[i], strict=True)
    top = sum(mark for _, _, mark in rows)
    for name, roles in (("planted forks", FORKS), ("decoys", DECOYS), ("copy", {"copy"})):
        mine = [(entropy, mark) for role, entropy, mark in rows if role in roles]
        hits = sum(mark for _, mark in mine)
        assert found[f"share of the top 20%, {name}"].value == pytest.approx(hits / top)
        assert found[f"recall of the top 20%, {name}"].value == pytest.approx(hits / len(mine))
        mean = np.mean([entropy for entropy, _ in mine])
        assert found[f"mean entropy, {name}"].value == pytest.approx(mean)
    under = np.mean([entropy < 0.01 for _, entropy, _ in rows])
    assert found["tokens under 0.01 nats"].value == pytest.approx(under)
    assert found["tokens a completion"].value == pytest.approx(len(rows) / 8)


def test_cards_that_differ_are_told():
    one = {"a": {"value": 0.5, "low": 0.4, "high": 0.6}, "b": {"value": 1, "low": 1, "high": 1}}
    other = {"a": {"value": 0.7, "low": 0.61, "high": 0.8}, "c": one["b"]}
    assert differing(one, other) == ["a: 0.5 (0.4 to 0.6) and 0.7 (0.61 to 0.8)"]
    assert differing(one, one) == []


def test_a_card_measured_anew_is_held_against_the_shipped_one_where_there_is_one():
    card = shipped("absent")
    lines = compared(card, 7)
    assert lines[0].endswith("trained again in 7 s")
    assert lines[1].startswith("weights: the same")
    assert (
        lines[-1] == f"Figures on both cards: {len(card['figures'])}; intervals that do not meet: 0"
    )
    moved = {"value": 0.9, "low": 0.8, "high": 1.0}
    other = card | {"weights": "0" * 64, "figures": card["figures"] | {"share of code": moved}}
    assert compared(other, 7)[1].startswith("weights: others")
    assert compared(other, 7)[-1].startswith("  share of code: ")
    unshipped = compared(shipped("amenable") | {"organism": "amenable-3m"}, 7)
    assert unshipped[:2] == [f"amenable-3m, recipe {shipped('amenable')['recipe']}, trained in 7 s",
                             "weights: none ship"]  # fmt: skip
    assert len(unshipped) >= 3 + len(TARGETS["amenable-3m"])
