"""The arms of a trial: every control is there, as strong as the features, from one split alone."""

import dataclasses

import pytest
import torch
from dictionaries import tiny_dictionary

from entropy_probe import load
from entropy_probe.tasks import get_task
from sae_steering.arms import COLD, Plan, make_arms
from sae_steering.edits import feature_directions
from sae_steering.interventions import KINDS
from sae_steering.outcomes import Drawing, measure
from sae_steering.sae import dictionary

TASK = get_task("arithmetic")
DRAWING = Drawing(n=3, max_new_tokens=40, seed=2, batch_size=256)
PLAN = Plan(sizes=(0.5, 1.5), randoms=3, latents=1)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def organism():
    torch.set_num_threads(1)
    return load("organism:amenable-300k")


@pytest.fixture(scope="module")
def sae():
    made = tiny_dictionary(64, 48, seed=3)
    return dictionary(made.W_enc, made.b_enc, made.W_dec, made.b_dec, layer=1)


@pytest.fixture(scope="module")
def problems():
    return TASK.problems(16, split="train", seed=5)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def arms(organism, sae, problems, told):
    return make_arms(*organism, TASK, problems, sae, PLAN, drawing=DRAWING, progress=told.append)


def by_kind(arms):
    return {arm.kind: arm for arm in arms.interventions}


def test_every_control_is_there(arms, told):
    assert set(by_kind(arms)) == set(KINDS) - {"random direction"}
    assert arms.interventions[0].kind == "features"
    assert by_kind(arms)["low temperature"].temperature == COLD
    assert len(arms.randoms) == 3
    assert arms.ablations[0].steering.mode == "ablate"
    assert told[0] == "the base as it is"
    assert arms.about["told apart"] == "code against other ways"
    assert set(arms.about["features"]) == {"scores", "length", "tried"}


def added(sae, steering):
    strengths = torch.tensor(list(steering.features.values()))
    return strengths @ feature_directions(sae, list(steering.features))


def test_random_directions_and_features_are_as_long_as_the_edit(arms, sae):
    edit = by_kind(arms)["features"].steering
    length = float(added(sae, edit).norm())
    assert length == pytest.approx(arms.about["features"]["length"], rel=1e-5)
    for arm in arms.randoms:
        ((direction, strength),) = arm.steering.features.items()
        assert strength * float(direction.vector.norm()) == pytest.approx(length, rel=1e-5)
        assert (arm.steering.where, arm.steering.layer) == (edit.where, 1)
    other = by_kind(arms)["random latent"].steering
    assert float(added(sae, other).norm()) == pytest.approx(length, rel=1e-5)
    assert set(other.features) != set(edit.features)


def test_the_word_is_the_promoted_one_that_does_best(arms, organism, problems):
    words = arms.about["words"]
    forced = by_kind(arms)["token injection"]
    assert forced.prefix == max(words, key=words.get)
    found = measure(*organism, TASK, problems, forced, DRAWING)
    assert found.accuracy.value == words[forced.prefix]
    written = by_kind(arms)["prompt forcing"].prompt(problems[0])
    assert written == forced.prefix + problems[0].prompt


def test_strengths_are_chosen_by_right_answers(arms):
    for name in ("features", "mean difference", "shuffled labels"):
        tried = arms.about[name]["tried"]
        best = max(each["right"]["value"] for each in tried)
        (right,) = [
            each["right"]["value"]
            for each in tried
            if each["length"] == pytest.approx(arms.about[name]["length"])
        ]
        assert right == best


def test_features_and_strengths_can_be_given(organism, sae, problems):
    plan = dataclasses.replace(PLAN, features=(5, 9), strengths=(2.0, -1.0), where="forks")
    arms = make_arms(*organism, TASK, problems, sae, plan, drawing=DRAWING)
    edit = by_kind(arms)["features"].steering
    assert edit.features == {5: 2.0, 9: -1.0}
    assert "percentile 80 of a record of organism:amenable-300k" in arms.about["threshold"]
    assert edit.threshold.describe() == arms.about["threshold"]
    assert by_kind(arms)["other places"].steering.where == "non-forks"
    assert list(arms.ablations[0].steering.features) == [5, 9]
    named = make_arms(
        *organism, TASK, problems, sae, dataclasses.replace(PLAN, features=(5,), where="all"),
        drawing=DRAWING,
    )  # fmt: skip
    assert list(by_kind(named)["features"].steering.features) == [5]
    assert "other places" not in by_kind(named)


def test_labels_can_be_made_to_mean_nothing(organism, sae, problems, arms):
    plan = dataclasses.replace(PLAN, shuffle=4)
    found = make_arms(*organism, TASK, problems, sae, plan, drawing=DRAWING)
    assert found.about["told apart"] == "code against other ways, shuffled"
    assert set(by_kind(arms)) - set(by_kind(found)) == {"shuffled labels"}
    ours, theirs = (by_kind(a)["mean difference"].steering.features for a in (arms, found))
    assert not torch.allclose(*(next(iter(f)).vector for f in (ours, theirs)))


def test_rewards_that_mean_nothing_choose_strengths_and_words(organism, sae, problems, arms):
    assert arms.about["words, dealt out"] is None
    assert {each["dealt out"] for each in arms.about["features"]["tried"]} == {None}
    best_word = []
    for seed in range(3):
        plan = dataclasses.replace(PLAN, shuffle=seed, randoms=0, latents=0)
        found = make_arms(*organism, TASK, problems, sae, plan, drawing=DRAWING).about
        for name in ("features", "mean difference"):
            tried = found[name]["tried"]
            blind = {each["length"]: each["dealt out"]["value"] for each in tried}
            assert blind[found[name]["length"]] == max(blind.values())
            right = sum(each["right"]["value"] for each in tried)
            assert sum(blind.values()) == pytest.approx(right, abs=1e-3)  # four decimals each
        right, blind = found["words"], found["words, dealt out"]
        assert sum(right.values()) == pytest.approx(sum(blind.values()))
        best_word.append(max(right, key=right.get) == max(blind, key=blind.get))
    assert not all(best_word)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (1,), "strengths": (1.0, 2.0)}, "strengths belong to features"),
        ({"where": "nowhere"}, "where must be one of"),
        ({"by": "taste"}, "by must be one of"),
        ({"features": (4000,)}, "the dictionary has features 0 to 47"),
    ],
)
def test_plans_that_make_no_sense_are_refused(organism, sae, problems, changes, message):
    plan = dataclasses.replace(PLAN, **changes)
    with pytest.raises(ValueError, match=message):
        make_arms(*organism, TASK, problems[:4], sae, plan, drawing=DRAWING)
