"""What shuffled labels find: as long as the arm's, other than it, and asked for only in need."""

import numpy as np
import pytest
import torch
from dictionaries import tiny_dictionary
from test_choosing import planted

from entropy_probe import load, sample
from entropy_probe.tasks import get_task
from sae_steering import evidence
from sae_steering.blind import added_length, blind_arms
from sae_steering.choosing import choose_features
from sae_steering.edits import Direction
from sae_steering.interventions import Intervention, Steering
from sae_steering.outcomes import Outcome
from sae_steering.sae import dictionary
from sae_steering.verdicts import NOT_SHOWN, SHOWN

TASK = get_task("arithmetic")
ORDERS = 6


@pytest.fixture
def sae():
    made = tiny_dictionary(16, 12)
    return dictionary(made.W_enc, made.b_enc, made.W_dec, made.b_dec, layer=0)


def edits(sae, observed, count=1):
    """Give the arms that the right labels find, at lengths of 3 and 5."""
    found, _ = choose_features(observed, sae, count)
    features = Steering(sae, found, where="opening")
    features = features.times(3 / added_length(sae, features))
    vector = observed.difference().vector
    unit = Direction(vector / vector.norm(), "mean difference")
    return features, Steering(None, {unit: 5.0}, 0, where="opening")


@pytest.mark.parametrize("count", [1, 2])
def test_they_are_as_long_and_at_the_same_places(sae, count):
    observed = planted()
    blind = blind_arms(observed, sae, *edits(sae, observed, count), orders=ORDERS)
    for arm in blind["features"]():
        assert added_length(sae, arm.steering) == pytest.approx(3, rel=1e-5)
        assert len(arm.steering.features) == count
    lengths, vectors = [], []
    for arm in blind["mean difference"]():
        ((direction, strength),) = arm.steering.features.items()
        lengths.append(strength * float(direction.vector.norm()))
        vectors.append(direction.vector)
    assert lengths == pytest.approx([5.0] * ORDERS, rel=1e-5)
    assert not any(torch.allclose(vectors[0], other) for other in vectors[1:])
    arms = [arm for make in blind.values() for arm in make()]
    assert {arm.kind for arm in arms} == {"shuffled labels"}
    assert {arm.steering.where for arm in arms} == {"opening"}
    assert len({arm.name for arm in arms}) == ORDERS


def test_orders_are_those_of_the_seed_and_none_is_that_of_a_control(sae):
    observed = planted()
    arms = edits(sae, observed)

    def drawn(seed):
        made = blind_arms(observed, sae, *arms, orders=2, seed=seed)["mean difference"]()
        return torch.stack([next(iter(arm.steering.features)).vector for arm in made])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.allclose(drawn(3), drawn(4))
    control = observed.relabelled(3).difference().vector
    assert not any(torch.allclose(row, control / control.norm()) for row in drawn(3))
    assert blind_arms(observed, sae, *arms, orders=0) == {}


@pytest.mark.parametrize(
    ("others", "asked", "statement"),
    [(0.5, ["features"], SHOWN), (0.9, ["features"], NOT_SHOWN)],
)
def test_only_an_arm_that_would_count_is_held_against_them(monkeypatch, others, asked, statement):
    """Features recover all of a gain from .5 to .9, the mean difference nothing of it."""
    record = sample(*load("organism:amenable-300k"), ["Compute 473, plus 8."], max_new_tokens=1)
    problems = TASK.problems(400, split="test", seed=0)
    reached = {"trained": 0.9, "features": 0.9, "mean difference": 0.5}

    def measure(model, tokenizer, task, problems, arm, how):
        name = model if arm is None else arm.name
        accuracy = reached.get(name, others if "order" in name else 0.5)
        right = np.random.default_rng(len(name)).random((400, how.n)) < accuracy
        return Outcome(name, None, right.astype(float), [], None, record)

    monkeypatch.setattr(evidence, "measure", measure)
    push = Steering(None, {Direction(torch.ones(4), "push"): 1.0}, 0)
    asks = []

    def made(name):
        asks.append(name)
        return [Intervention(f"order {i}", "shuffled labels", push) for i in range(120)]

    found = evidence.gather_evidence(
        "base", None, TASK, problems,
        [Intervention("features", "features", push),
         Intervention("mean difference", "mean difference", push)],
        trained="trained", blind={name: lambda name=name: made(name) for name in reached},
    )  # fmt: skip
    assert asks == asked == list(found.trial.blind)
    assert len(found.trial.blind["features"].others) == 120
    assert found.verdicts.capability.statement == statement
    assert found.to_dict()["trial"]["blind"]["features"]["reached"] == pytest.approx(0.9, abs=0.05)
