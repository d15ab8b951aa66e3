"""What is within reach, counted on an organism and against the card and the checker."""

import math

import numpy as np
import pytest

from analyses.experiments.distilling import written
from analyses.experiments.reach import execute, matching_temperature, mean_entropy, solved, under
from entropy_probe import load, sample
from entropy_probe.tasks import get_task
from entropy_probe.tasks.checker import check
from entropy_probe.tasks.language import lex
from entropy_probe.tasks.verifier import verify

HOW = {"n": 3, "max_new_tokens": 40, "seed": 1}


@pytest.fixture(scope="module")
def organism():
    return load("organism:amenable")


@pytest.fixture(scope="module")
def problems():
    return get_task("arithmetic").problems(8, split="test", seed=4)


def test_counts_are_those_of_verifier_and_checker(organism, problems):
    found = solved(*organism, get_task("arithmetic"), problems, temperature=1.0, **HOW)
    rows = sample(*organism, [p.prompt for p in problems], alternatives=0, **HOW)
    right, valid = np.zeros(8, int), np.zeros(8, int)
    for row in range(len(rows)):
        problem, text = problems[row // 3], rows.completion(row)
        right[row // 3] += verify(problem, text) == 1
        valid[row // 3] += verify(problem, text) == 1 and check(problem, lex(text)).valid
    assert found["right"] == right.tolist()
    assert found["valid"] == valid.tolist()
    assert 0 < sum(found["valid"]) <= sum(found["right"]) < 24
    pairs = [pair for each in found["ways"].values() for pair in each]
    assert sum(taken for taken, _ in pairs) == 24
    assert sum(good for _, good in pairs) == sum(found["right"])
    assert 0 <= found["guess"] < 0.05


def test_the_matching_temperature_gives_the_entropy(organism, problems):
    prompts = [p.prompt for p in problems]
    target = mean_entropy(*organism, prompts, 1.6, **HOW)
    found = matching_temperature(*organism, prompts, target, **HOW)
    assert found == pytest.approx(1.6, abs=0.15)


def test_a_model_is_as_likely_under_itself_as_it_is(organism, problems):
    model, tokenizer = organism
    other, _ = load("organism:shallow")
    prompts = [p.prompt for p in problems]
    same = under(model, model, tokenizer, prompts, **HOW)
    assert same["own"] == same["base"]
    assert same["own"] == sorted(same["own"])
    assert same["own"][0] >= 1.0
    foreign = under(model, other, tokenizer, prompts, **HOW)
    assert foreign["base"] == same["base"]
    assert foreign["own"][9] > same["own"][9]


def test_texts_of_a_teacher_are_valid_and_their_prompts_have_no_loss(organism):
    _, tokenizer = organism
    texts = written("organism:taught", tokenizer, "arithmetic:long", 6, 0)
    assert 6 <= len(texts) <= 12
    for ids, weights in texts:
        assert len(ids) == len(weights)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert ">>> " in text
        first = weights.index(1.0)
        assert tokenizer.decode(ids[:first], skip_special_tokens=True).endswith((".\n", "?\n"))
        assert all(w == 1.0 for w in weights[first:])


SETTINGS = {
    "model": "organism:shallow", "task": "arithmetic:middle", "seed": 0, "max_new_tokens": 72,
    "problems": 6, "n": 4, "evaluate": {"near": "own", "far": "arithmetic:long"},
}  # fmt: skip


@pytest.mark.slow
def test_distillation_moves_what_is_reached():
    still = execute(SETTINGS | {"problems": 20})
    recipe = {"teacher": "organism:amenable", "task": "arithmetic:long", "problems": 200,
              "steps": 60, "batch": 32, "lr": 1e-3}  # fmt: skip
    moved = execute(SETTINGS | {"problems": 20, "learn": "distil", "distil": recipe})
    assert moved["distilled"]["losses"][1] < moved["distilled"]["losses"][0]
    assert sum(moved["reach"]["far"]["valid"]) > sum(still["reach"]["far"]["valid"])
    assert math.isfinite(moved["perplexity"]["own"][9])


@pytest.mark.slow
def test_steps_are_kept_and_what_is_named_is_asked_at_the_bases_entropy():
    config = {
        "steps": 2, "prompts": 4, "n": 4, "max_new_tokens": 40, "optimizer": "sgd", "lr": 0.02,
        "rollouts_every": 0,
    }  # fmt: skip
    how = {"learn": "reward", "reward": "correct", "config": config, "match": ["far"]}
    found = execute(SETTINGS | how)
    assert [step["step"] for step in found["steps"]] == [1, 2]
    assert set(found["reach"]) == {"near", "far"}
    assert set(found["matched"]["reach"]) == {"far"}
