"""Plans: chunks cover the inputs once, what differs is said, nonsense is refused."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.storage.plan import Plan

SAMPLE = {
    "n": 2, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
    "residual_layers": [1], "residual_positions": "forks", "alternatives": 3, "seed": 0,
    "batch_size": 4, "stop": [], "fraction": 0.2,
}  # fmt: skip
SCORE = {
    "temperature": 1.0, "residual_layers": [], "residual_positions": "none", "alternatives": 3,
    "seed": 0, "batch_size": 4, "fraction": 0.2,
}  # fmt: skip
ROW = {"tokens": [1, 2], "valid": [[1, 2]], "prompt_length": 1, "group": 0, "reward": None}


def plan_of(inputs=("a", "b", "c"), *, chunk=2, n=2, **changes):
    arguments = SAMPLE | {"n": n}
    return Plan("sample", "m", "w", list(inputs), arguments, chunk, 1, **changes)


@given(inputs=st.integers(1, 40), chunk=st.integers(1, 50), n=st.integers(1, 5))
def test_chunks_hold_every_sample_once_and_in_order(inputs, chunk, n):
    plan = plan_of(range(inputs), chunk=chunk, n=n)
    rows = [row for index in range(plan.chunks) for row in plan.samples_of(index)]
    assert rows == list(range(inputs * n)) == list(range(plan.samples))
    assert all(len(plan.inputs_of(i)) == chunk for i in range(plan.chunks - 1))
    with pytest.raises(ValueError, match="the plan has chunks"):
        plan.samples_of(plan.chunks)


def test_a_plan_survives_json():
    plan = plan_of(["a", [{"role": "user", "content": "\ud800"}], [1, 2]], origin="elsewhere")
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_scored_rows_are_a_sample_each():
    plan = Plan("score", "m", "w", [ROW] * 3, SCORE, 2, 1)
    assert (plan.samples, plan.chunks, plan.samples_of(1)) == (3, 2, range(2, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "score", "arguments": SCORE, "inputs": [ROW]}, "kind was"),
        ({"weights": "other"}, "weights was 'w', now 'other'"),
        ({"dtype": "bfloat16"}, "dtype was"),
        ({"chunk": 3}, "chunk was 2, now 3"),
        ({"task": "t"}, "task was None"),
        ({"arguments": SAMPLE | {"seed": 1}}, "seed was 0, now 1"),
        ({"arguments": SAMPLE | {"compile": True}}, "compile was None, now True"),
        ({"inputs": ["a", "b", "x"]}, "inputs are not"),
        ({"problems": [{"id": "1", "answer": "2", "facts": {}}] * 3}, "answers or facts"),
    ],
)
def test_what_would_compute_something_else_is_a_difference(changes, words):
    mine = plan_of()
    assert mine.differences(plan_of()) == []
    (difference, *_) = mine.differences(dataclasses.replace(mine, **changes))
    assert words in difference


def test_what_touches_the_last_bits_only_is_none():
    mine = plan_of()
    other = dataclasses.replace(mine, threads=7, device="cuda", model="moved", revision="r")
    assert mine.differences(other) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "guess"}, "kind must be one of"),
        ({"inputs": []}, "nothing to do"),
        ({"chunk": 0}, "a chunk must hold"),
        ({"arguments": {"n": 1}}, "missing or unknown"),
        ({"arguments": SAMPLE | {"head": "liger"}}, r"missing or unknown: \['head'\]"),
        ({"arguments": SAMPLE | {"n": 0}}, "n must be 1 or more"),
        ({"problems": [{}] * 3}, "a problem must have"),
        ({"problems": [{"id": "1", "answer": "2", "facts": {}}]}, "1 problems do not go with 3"),
        ({"kind": "score", "arguments": SCORE, "inputs": [{}]}, "a row to score must have"),
    ],
)
def test_a_plan_that_could_not_be_carried_out_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(plan_of(), **changes)


def test_fields_that_are_not_known_are_refused():
    values = plan_of().to_dict()
    with pytest.raises(ValueError, match=r"missing or unknown: \['new'\]"):
        Plan.from_dict(values | {"new": 1})
    del values["chunk"]
    with pytest.raises(ValueError, match=r"missing or unknown: \['chunk'\]"):
        Plan.from_dict(values)


@pytest.mark.parametrize(
    "changes", [{"chunk": "2"}, {"threads": None}, {"inputs": 3}, {"arguments": []}, {"task": 1}]
)
def test_values_of_the_wrong_kind_are_refused_on_reading(changes):
    with pytest.raises(ValueError, match=f"the plan's {next(iter(changes))} makes no sense"):
        Plan.from_dict(plan_of().to_dict() | changes)
