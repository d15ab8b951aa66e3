"""Accuracy and pass@k on held-out problems, against counting."""

from itertools import combinations

import pytest
from tiny import tiny_model, tiny_tokenizer
from words import Words

from entropy_probe import sample
from entropy_probe.training.evaluation import evaluate

MODEL, TOKENIZER, TASK = tiny_model(), tiny_tokenizer(), Words()


def test_it_counts_what_the_verifier_says():
    problems = TASK.problems(7)
    found = evaluate(
        MODEL, TOKENIZER, TASK, problems, n=4, pass_ks=(1, 2, 4, 8), max_new_tokens=5, seed=2,
        temperature=0.7,
    )  # fmt: skip
    rows = sample(
        MODEL, TOKENIZER, [p.prompt for p in problems], n=4, max_new_tokens=5, seed=2,
        temperature=0.7,
    )  # fmt: skip
    right = [TASK.verify(None, rows.completion(i)) for i in range(28)]
    groups = [right[i : i + 4] for i in range(0, 28, 4)]
    assert 0 < sum(right) < 28
    assert found["accuracy"] == pytest.approx(sum(right) / 28)
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    for k in (1, 2, 4):
        hit = [any(chosen) for group in groups for chosen in combinations(group, k)]
        assert found[f"pass@{k}"] == pytest.approx(sum(hit) / len(hit))
    assert "pass@8" not in found
    assert (found["problems"], found["n"], found["temperature"]) == (7, 4, 0.7)
    assert found["length"] == pytest.approx(int(rows.valid.sum()) / 28)


def test_greedy_takes_one():
    found = evaluate(MODEL, TOKENIZER, TASK, TASK.problems(5), temperature=0.0, max_new_tokens=3)
    assert found["n"] == 1
    assert found["accuracy"] * 5 == pytest.approx(round(found["accuracy"] * 5))


def test_what_is_cut_is_counted():
    short = evaluate(MODEL, TOKENIZER, TASK, TASK.problems(6), max_new_tokens=2)
    assert short["truncated"] > 0.8
    ended = evaluate(MODEL, TOKENIZER, TASK, TASK.problems(6), max_new_tokens=2, stop=("w",))
    assert ended["truncated"] < 0.2
