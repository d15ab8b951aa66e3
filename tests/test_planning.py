"""Plans made from prompts, problems and records: checked before anything is computed."""

import pytest
import torch
from records import random_record
from test_storage_plan import SAMPLE, SCORE
from tiny import VOCAB, tiny_model, tiny_tokenizer

from entropy_probe.planning import plan_samples, plan_scores, rows_of
from entropy_probe.storage.plan import Plan
from entropy_probe.tasks import Problem


@pytest.fixture(scope="module")
def made():
    return tiny_model(), tiny_tokenizer()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"n": 0}, "n must be"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"fraction": 0.0}, "fraction must be"),
        ({"fraction": 2.0}, "fraction must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"seed": True}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"alternatives": VOCAB + 1}, "alternatives must be at most 97"),
        ({"residual_layers": [3]}, "layer"),
        ({"residual_positions": "some"}, "residual_positions must be"),
        ({"stop": [""]}, "stop takes"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(made, changes, match):
    with pytest.raises(ValueError, match=match):
        plan_samples(*made, ["w1 "], SAMPLE | changes)


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([], "no prompts"),
        (["w1 ", ""], "prompt 1 is empty"),
        (["w1 " * 128], "prompt 0 has 128 tokens, but the model's context is 128"),
        ([[5, VOCAB]], "prompt 0 has token ids outside 0 to 96"),
        (["w1 \ud800"], "half of a surrogate pair at character 3"),
        ([{"role": "user"}], "must be a text"),
        ("w1 ", "got a single str"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(made, prompts, match):
    with pytest.raises(ValueError, match=match):
        plan_samples(*made, prompts, SAMPLE)


def test_a_plan_says_what_it_was_made_for(made):
    plan = plan_samples(*made, ["w1 ", [4, 5]], SAMPLE | {"residual_layers": [-1, 0]}, revision="r")
    assert plan.arguments["residual_layers"] == [2, 0]
    assert (plan.kind, plan.dtype, plan.device, plan.revision) == ("sample", "float32", "cpu", "r")
    assert plan.threads == torch.get_num_threads()
    assert plan.inputs == ["w1 ", [4, 5]]
    assert plan.differences(Plan.from_dict(plan.to_dict())) == []


def test_layers_that_nothing_is_kept_of_are_none(made):
    plan = plan_samples(*made, ["w1 "], SAMPLE | {"residual_positions": "none"})
    assert plan.arguments["residual_layers"] == []


def test_other_weights_are_another_plan(made):
    mine = plan_samples(*made, ["w1 "], SAMPLE)
    theirs = plan_samples(tiny_model(seed=1), made[1], ["w1 "], SAMPLE)
    assert mine.differences(theirs)[0].startswith("weights was")


@pytest.mark.parametrize(("n", "batch", "chunk"), [(1, 4, 256), (16, 64, 16), (300, 4, 1)])
def test_a_chunk_is_a_few_batches(made, n, batch, chunk):
    plan = plan_samples(*made, ["w1 "], SAMPLE | {"n": n, "batch_size": batch})
    assert plan.chunk == chunk
    assert plan_samples(*made, ["w1 "], SAMPLE, chunk_prompts=7).chunk == 7


def test_problems_bring_their_answers_and_need_a_task(made):
    problem = Problem(prompt="w1 ", answer="3", id="p", facts={"steps": (1, 2)})
    plan = plan_samples(*made, [problem], SAMPLE, task="arithmetic")
    assert plan.inputs == ["w1 "]
    assert plan.task == "arithmetic"
    assert plan.problems == [{"id": "p", "answer": "3", "facts": {"steps": [1, 2]}}]
    for prompts, task in (([problem], None), ([problem, "w1 "], "arithmetic")):
        with pytest.raises(ValueError, match="problems need the task"):
            plan_samples(*made, prompts, SAMPLE, task=task)
    with pytest.raises(ValueError, match="task= verifies its own problems"):
        plan_samples(*made, ["w1 "], SAMPLE, task="arithmetic")


def test_rows_of_a_record_hold_all_that_scoring_needs():
    record = random_record(6)
    rows = rows_of(record)
    for i, row in enumerate(rows):
        assert row["tokens"] == record.tokens[i, : len(row["tokens"])].tolist()
        mask = torch.zeros(record.tokens.shape[1], dtype=torch.bool)
        for start, stop in row["valid"]:
            mask[start:stop] = True
        assert torch.equal(mask, record.valid[i])
        assert (row["prompt_length"], row["group"]) == (record.prompt_lengths[i], record.groups[i])
    rewards = [row["reward"] for row in rows]
    assert rewards[0] is None
    assert torch.equal(torch.tensor(rewards[1:]), record.rewards[1:])


def test_an_infinite_reward_cannot_be_kept_and_says_so():
    record = random_record(3)
    record.rewards[1] = float("-inf")
    with pytest.raises(ValueError, match="reward of row 1 is -inf"):
        rows_of(record)


@pytest.mark.parametrize(
    ("changes", "row", "match"),
    [
        ({"temperature": 0.0}, {}, "temperature must be above 0"),
        ({"fraction": 0.0}, {}, "fraction must be"),
        ({"batch_size": 0}, {}, "batch_size must be"),
        ({}, {"tokens": [1, VOCAB]}, "row 1 has token ids outside"),
        ({}, {"tokens": [1] * 129}, "row 1 has 129 tokens"),
    ],
)
def test_scoring_is_checked_before_it_begins(made, changes, row, match):
    good = {"tokens": [1, 2], "valid": [[1, 2]], "prompt_length": 1, "group": 0, "reward": None}
    with pytest.raises(ValueError, match=match):
        plan_scores(made[0], [good, good | row], SCORE | changes)


def test_a_plan_with_nothing_to_score_is_refused(made):
    row = {"tokens": [1], "valid": [], "prompt_length": 1, "group": 0, "reward": None}
    with pytest.raises(ValueError, match="no token to score"):
        plan_scores(made[0], [row], SCORE)
