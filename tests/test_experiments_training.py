import json

import pytest
import torch

from analyses.experiments.training import execute, rounded
from analyses.experiments.watching import observe, openings
from entropy_probe import load, sample
from entropy_probe.tasks import get_task

SETTINGS = {
    "model": "organism:amenable-300k", "task": "arithmetic", "reward": "correct", "seed": 3,
    "config": {
        "steps": 2, "prompts": 4, "n": 4, "max_new_tokens": 72, "optimizer": "sgd", "lr": 0.02,
        "selection": {"select": "forks"}, "rollouts_every": 0,
    },
    "watch": {"problems": 24, "n": 2, "every": 1, "greedy": True, "memorised": 4, "positions": 24},
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return (*load("organism:amenable-300k", device="cpu"), get_task("arithmetic"))


@pytest.mark.slow
def test_a_training_is_watched_before_during_and_after():
    found = execute(SETTINGS)
    assert [look["step"] for look in found["watched"]] == [0, 1, 2]
    assert [step["step"] for step in found["steps"]] == [1, 2]
    first, middle, last = found["watched"]
    assert len(first["ways"]) == len(last["ways"]) == 48
    assert len(middle["ways"]) == 48
    assert {"clip_first", "truncated", "kept_of_forks"} <= set(found["steps"][0])
    assert sum(letter.isupper() for letter in first["ways"]) / 48 == pytest.approx(
        first["accuracy"], abs=1e-5
    )
    assert len(last["greedy"]["ways"]) == 24
    assert len(first["memorised"]["ways"]) == 8
    places = found["positions"]
    assert places["steps"] == [0, 1, 2]
    assert places["with_first"][0] == places["with_last"][-1] == 1.0
    assert places["with_first"][2] == places["with_last"][0] < 1.0
    assert len(places["change"]) == 20
    json.dumps(found, allow_nan=False)
    assert execute(SETTINGS) == found  # whatever came before


def test_a_learning_rate_of_0_changes_nothing_and_no_reward_trains_nothing():
    still = {"config": SETTINGS["config"] | {"lr": 0.0, "steps": 1}}
    watch = {"watch": {"problems": 24, "n": 2}}
    first, last = execute(SETTINGS | still | watch)["watched"]
    assert {**first, "step": 1} == last
    alone = execute(SETTINGS | watch | {"reward": None})
    assert [first] == alone["watched"]
    assert alone["steps"] == []


def test_what_is_observed_is_what_was_sampled(small):
    model, tokenizer, task = small
    problems = task.problems(12, split="test", seed=5)
    found = observe(model, tokenizer, task, problems, n=2, max_new_tokens=72, seed=1)
    rows = sample(
        model, tokenizer, [p.prompt for p in problems], n=2, max_new_tokens=72, seed=1,
        alternatives=0, residual_positions="none",
    )  # fmt: skip
    texts = [rows.completion(row) for row in range(24)]
    code = [text.startswith(">>> ") for text in texts]
    right = [task.verify(problems[i // 2], text) == 1 for i, text in enumerate(texts)]
    assert found["share"]["code"] == sum(code) / 24
    assert found["right"]["code"] == sum(r for r, c in zip(right, code, strict=True) if c) / sum(
        code
    )
    assert found["accuracy"] == sum(right) / 24
    mine = torch.tensor(code)
    within = found["by_strategy"]["code"]
    assert within["length"] == pytest.approx(float(rows.valid[mine].sum(1).double().mean()))
    assert within["entropy"] == pytest.approx(
        float(rows.entropy[mine][rows.valid[mine]].mean()), rel=1e-4
    )
    ends = [rows.tokens[row, rows.lengths[row] - 1].item() == 2 for row in range(24) if code[row]]
    assert within["truncated"] == pytest.approx(1 - sum(ends) / len(ends))


def test_a_forced_beginning_is_part_of_the_completion(small):
    model, tokenizer, task = small
    problems = task.problems(12, split="test", seed=5)
    how = {"n": 2, "max_new_tokens": 72, "seed": 1}
    found = observe(model, tokenizer, task, problems, prefix=">>> ", **how)
    assert found["share"]["code"] == 1.0
    assert found["accuracy"] > observe(model, tokenizer, task, problems, **how)["accuracy"]


def test_openings_are_the_models_own_probabilities(small):
    model, tokenizer, task = small
    problems = task.problems(30, split="test", seed=5)
    found = openings(model, tokenizer, task, problems)
    assert sum(wording["problems"] for wording in found.values()) == 30
    mine = [p for p in problems if p.facts["wording"] == "compute"]
    (code,) = tokenizer(">>> ", add_special_tokens=False)["input_ids"]
    share = []
    for problem in mine:
        ids = torch.tensor([tokenizer(problem.prompt)["input_ids"]])
        with torch.no_grad():
            share.append(model(ids).logits[0, -1].softmax(0)[code].double())
    share = torch.stack(share)
    assert found["compute"]["share"] == pytest.approx(float(share.mean()), rel=1e-4)
    assert found["compute"]["logit"] == pytest.approx(float(share.logit().mean()), rel=1e-3)
    assert openings(model, tokenizer, object(), problems) == {}


def test_rounding_leaves_no_number_that_json_has_not():
    value = {"a": [1.23456789, float("nan"), float("inf")], "b": (1, True, "x")}
    assert rounded(value) == {"a": [1.23457, None, None], "b": [1, True, "x"]}
