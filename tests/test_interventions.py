"""Interventions on an organism: what is forced is answered with, and doses have responses."""

import dataclasses

import numpy as np
import pytest
import torch
from dictionaries import tiny_dictionary

from entropy_probe import load, sample, score
from entropy_probe.tasks import get_task
from sae_steering.controls import Splice, mean_difference
from sae_steering.edits import Direction
from sae_steering.interventions import KINDS, Intervention, Steering
from sae_steering.outcomes import Drawing, divergence, measure, repetition
from sae_steering.places import at_opening
from sae_steering.sweeps import best_dose, is_monotone, sweep

DRAWING = Drawing(n=4, max_new_tokens=48, seed=3, batch_size=128)
TASK = get_task("arithmetic")


@pytest.fixture(scope="module")
def organism():
    torch.set_num_threads(1)
    return load("organism:amenable")


@pytest.fixture(scope="module")
def problems():
    return TASK.problems(12, split="test", seed=5)


@pytest.fixture(scope="module")
def plain(organism, problems):
    return measure(*organism, TASK, problems, drawing=DRAWING)


@pytest.fixture(scope="module")
def direction(organism):
    """Give the difference between openings that chose code and those that chose prose."""
    prompts = [problem.prompt for problem in TASK.problems(48, split="train", seed=1)]
    rows = sample(
        *organism, prompts, n=2, max_new_tokens=1, residual_layers=[2], residual_positions="all"
    )
    code = [TASK.strategy(rows.completion(row)) == "code" for row in range(len(rows))]
    return mean_difference(rows.residuals[2], torch.tensor(code))


def test_without_an_intervention_it_is_a_sampling(organism, problems, plain):
    drawn = sample(
        *organism, [p.prompt for p in problems], n=4, max_new_tokens=48, seed=3, batch_size=128
    )
    assert torch.equal(plain.rollouts.tokens, drawn.tokens)
    right = [TASK.verify(problems[i // 4], text) for i, text in enumerate(plain.texts)]
    assert plain.right.reshape(-1).tolist() == right == plain.rollouts.rewards.tolist()
    assert plain.accuracy.value == pytest.approx(np.mean(right))
    shares = {way: plain.share(way).value for way in TASK.strategies}
    assert sum(shares.values()) == pytest.approx(1)
    weighed = sum(
        share * plain.accuracy_of(way).value for way, share in shares.items() if share > 0
    )
    assert weighed == pytest.approx(plain.accuracy.value)
    assert plain.kind is None


def test_a_forced_word_is_how_completions_begin(organism, problems):
    forced = Intervention("code first", "token injection", prefix=">>> ")
    found = measure(*organism, TASK, problems, forced, DRAWING)
    assert found.share("code").value == 1
    assert all(text.startswith(">>> ") for text in found.texts)
    assert found.accuracy.value > 0.85
    assert found.accuracy_of("prose") is None


def test_prompts_can_be_written_otherwise(organism, problems):
    def shout(problem):
        return problem.prompt.replace("What is", "Compute").replace("?", ".")

    other = Intervention("compute", "prompt forcing", prompt=shout)
    found = measure(*organism, TASK, problems, other, dataclasses.replace(DRAWING, n=1))
    wanted = sample(
        *organism, [shout(p) for p in problems], max_new_tokens=48, seed=3, batch_size=128
    )
    assert torch.equal(found.rollouts.tokens, wanted.tokens)


def test_a_low_temperature_is_the_intervention_s_own(organism, problems):
    greedy = Intervention("greedy", "low temperature", temperature=0.0)
    found = measure(*organism, TASK, problems, greedy, DRAWING)
    assert found.rollouts.provenance.temperature == 0
    assert len({text for text in found.texts[:4]}) == 1


def test_steering_along_the_mean_difference_moves_the_strategy(organism, problems, direction):
    steering = Steering(None, {direction: 1.0}, layer=2, where=at_opening)
    seen = []
    doses = sweep(
        *organism, TASK, problems, steering, [-3, 0, 3], drawing=DRAWING, progress=seen.append
    )
    assert seen == doses
    low, base, high = (dose.shares["code"].value for dose in doses)
    assert low < 0.2 < base < 0.8 < high
    assert is_monotone(doses, "code")
    assert not is_monotone(doses, "prose")
    assert doses[1].divergence.value == pytest.approx(0, abs=1e-5)
    assert min(doses[0].divergence.value, doses[2].divergence.value) > 0.01
    assert best_dose(doses) is doses[2]
    assert doses[2].to_dict()["accuracy"]["n"] == 12


def test_the_divergence_is_the_closed_form_at_the_first_token(organism, problems, direction):
    steering = Steering(None, {direction: 1.0}, layer=2, where=at_opening)
    arm = Intervention("steered", "mean difference", steering)
    drawing = dataclasses.replace(DRAWING, n=200, max_new_tokens=1)
    found = measure(*organism, TASK, problems[:2], arm, drawing)
    estimate = divergence(*organism, found.rollouts)
    model, tokenizer = organism
    exact = []
    for row in (0, 200):
        length = int(found.rollouts.prompt_lengths[row])
        ids = found.rollouts.tokens[row : row + 1, : length + 1]
        last = torch.arange(length + 1)[None] == length
        with steering.on(model) as steered:
            after = score(
                steered, tokenizer, ids, last, prompt_lengths=[length], alternatives=100
            ).alternatives
        with torch.no_grad():
            before = model(ids[:, :-1]).logits[0, -1].log_softmax(dim=-1)
        logs = after.logprobs[0, length]
        exact.append(float((logs.exp() * (logs - before[after.ids[0, length].long()])).sum()))
    assert estimate.value == pytest.approx(np.mean(exact), abs=0.1)
    assert np.mean(exact) > 0.1


def test_the_cost_of_deciding_step_by_step_is_counted(organism, problems, direction, plain):
    steering = Steering(None, {direction: 1.0}, layer=2, where="forks", threshold=0.3)
    found = measure(
        *organism, TASK, problems, Intervention("forks", "mean difference", steering), DRAWING
    )
    assert found.cost > 0
    assert plain.cost == 0


def test_repetition_counts_what_stood_there_before(plain):
    assert repetition(plain.rollouts) == plain.repetition < 0.05
    tokens = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4, 1], [7, 7, 7, 0, 0, 0, 0, 0, 0]])
    record = plain.rollouts[:2]
    width = record.tokens.shape[1]
    pad = torch.nn.functional.pad(tokens, (1, width - 10))
    valid = torch.zeros_like(pad, dtype=torch.bool)
    valid[0, 1:10], valid[1, 1:4] = True, True
    record = dataclasses.replace(
        record, tokens=pad, valid=valid, captured=valid & False, prompt_lengths=torch.tensor([1, 1])
    )
    assert repetition(record) == pytest.approx(2 / 6)


def test_steerings_can_be_scaled_and_turned():
    sae, push = tiny_dictionary(layer=1), Direction(torch.ones(32), "push")
    steering = Steering(sae, {3: 2.0, 4: -1.0}, mode="clamp", where="prompt")
    assert steering.times(0.5).features == {3: 1.0, 4: -0.5}
    turned = steering.along(push, 3.0)
    assert (turned.sae, turned.layer, turned.mode, turned.where) == (None, 1, "add", "prompt")
    assert turned.features == {push: 3.0}
    assert steering.describe() == "clamp feature 3 2, feature 4 -1 after layer 1, where=prompt"
    about = Intervention("a", "features", turned, temperature=0.5).describe()
    assert about == "add push 3 after layer 1, where=prompt; temperature 0.5"
    assert Intervention("s", "splice", Splice(sae)).describe() == "splice with the error"


@pytest.mark.parametrize("kind", ["random", *KINDS])
def test_an_intervention_says_what_it_does(kind):
    with pytest.raises(ValueError, match="kind must be one of|but nothing says which"):
        Intervention("a", kind)


def test_choices_from_nothing_are_refused(plain):
    with pytest.raises(ValueError, match="no doses"):
        best_dose([])
    with pytest.raises(ValueError, match="does not tell strategies apart"):
        dataclasses.replace(plain, strategies=None).share("code")
