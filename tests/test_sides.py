"""Both sides of a steering: figures are those of the records, paired by prompt."""

import numpy as np
import pytest
import torch

from entropy_probe import load
from entropy_probe.figures import mean
from entropy_probe.tasks import get_task
from sae_steering.edits import Direction
from sae_steering.forks import Threshold
from sae_steering.interventions import Steering
from sae_steering.outcomes import Drawing
from sae_steering.sides import LEAST_PROMPTS, Measure, compare

TASK = get_task("arithmetic")
DRAWING = Drawing(n=2, max_new_tokens=30, seed=6)
SHORT = Drawing(n=2, max_new_tokens=10, seed=6)
PUSH = Direction(torch.linspace(-1, 1, 64), "push")
STEERING = Steering(None, {PUSH: 3.0}, layer=1, where="opening")


@pytest.fixture(scope="module")
def organism():
    torch.set_num_threads(1)
    return load("organism:amenable-300k")


@pytest.fixture(scope="module")
def problems():
    return TASK.problems(6, split="test", seed=3)


@pytest.fixture(scope="module")
def sides(organism, problems):
    return compare(*organism, problems, STEERING, task=TASK, drawing=DRAWING)


def test_figures_are_those_of_the_records(sides, problems):
    found = {measure.name: measure for measure in sides.measures}
    right = [
        [TASK.verify(problems[i // 2], side.completion(i)) for i in range(12)]
        for side in (sides.plain, sides.steered)
    ]
    plain, steered = (np.array(each).reshape(6, 2).mean(axis=1) for each in right)
    assert found["right"].plain == mean(plain)
    assert found["right"].difference == mean(steered - plain)
    assert sides.steered.rewards.tolist() == right[1]
    shares = [m.steered.value for name, m in found.items() if name.startswith("share of")]
    assert sum(shares) == pytest.approx(1)
    entropy = [
        float(side.entropy[row][side.valid[row]].mean())
        for side in (sides.plain, sides.steered)
        for row in range(12)
    ]
    nats = found["entropy, nats, by completion"]
    assert nats.plain.value == pytest.approx(np.mean(entropy[:12]))
    assert nats.steered.value == pytest.approx(np.mean(entropy[12:]))
    assert {measure.prompts for measure in sides.measures} == {6}


def test_the_edit_is_recorded_and_nothing_of_forks(sides):
    assert sides.edit == "add push 3 after layer 1, where=opening"
    assert sides.steered.provenance.edit == sides.edit
    assert sides.plain.provenance.edit is None
    assert (sides.threshold, sides.edited, sides.recomputed) == (None, None, 0)


def test_the_threshold_of_forks_is_the_unsteered_side_s(organism):
    steering = Steering(None, {PUSH: 3.0}, layer=1, where="forks")
    prompts = ["Compute 473, plus 8, minus 9.\n", "What is 12, plus 4?\n"]
    found = compare(*organism, prompts, steering, drawing=SHORT)
    entropy = found.plain.entropy[found.plain.valid].sort(descending=True).values
    assert found.threshold.nats == float(entropy[-(-len(entropy) // 5) - 1])
    assert "4 completions of organism:amenable-300k as it is, seed 6" in found.threshold.origin
    assert found.recomputed > 0
    assert bool(found.edited.any())
    assert not bool((found.edited & ~found.steered.valid).any())
    assert [m.name for m in found.measures][0] == "tokens a completion"  # nothing was judged
    given = Steering(None, {PUSH: 3.0}, layer=1, where="forks", threshold=Threshold(90.0, "high"))
    none = compare(*organism, prompts, given, drawing=SHORT)
    assert torch.equal(none.plain.tokens, none.steered.tokens)
    assert none.threshold.origin == "high"


def test_nothing_edited_changes_nothing(organism, problems):
    nothing = Steering(None, {PUSH: 0.0}, layer=1)
    found = compare(*organism, problems[:2], nothing, task=TASK, drawing=SHORT)
    measures = {measure.name: measure for measure in found.measures}
    assert measures["completions changed"].steered.value == 0
    assert measures["KL from as it is, nats a token"].steered.value == pytest.approx(0, abs=1e-5)


def test_the_divergence_is_of_the_temperature_asked_for(organism, problems):
    drawing = Drawing(n=2, max_new_tokens=8, temperature=0.6)
    nothing = Steering(None, {PUSH: 0.0}, layer=1)
    found = compare(*organism, problems[:2], nothing, drawing=drawing, task=TASK)
    (nats,) = [m.steered.value for m in found.measures if m.name.startswith("KL")]
    assert nats == pytest.approx(0, abs=1e-5)
    greedy = Drawing(n=1, max_new_tokens=8, temperature=0.0)
    found = compare(*organism, problems[:2], nothing, drawing=greedy, task=TASK)
    names = [m.name for m in found.measures]
    assert not any(name.startswith("KL") for name in names)


def test_few_prompts_have_no_interval():
    few, many = (
        Measure("x", None, mean([0.0, 1.0]), mean([1.0, 1.0]), prompts)
        for prompts in (LEAST_PROMPTS - 1, LEAST_PROMPTS)
    )
    assert few.words() == ["x", "", "0.500", "+1.000"]
    assert many.words() == ["x", "", "0.500 (0.000 to 1.000)", "+1.000 (+1.000 to +1.000)"]
    assert few.to_dict()["steered"] == {"value": 0.5, "low": None, "high": None, "n": 2}
    assert few.to_dict()["plain"] is None
