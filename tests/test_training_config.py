"""What a training run does: checked, saved, compared."""

import dataclasses
import json

import pytest
from words import quick

from entropy_probe.training.config import TrainConfig
from entropy_probe.training.options import Selection


def test_a_configuration_survives_json():
    config = quick(selection=Selection(select="random", fraction=0.3, seed=4), stop=("w1 ", 7))
    read = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert read == config
    assert read.differences(config) == []
    assert read.selection.fraction == 0.3


def test_some_keys_are_enough():
    config = TrainConfig.from_dict({"lr": 0.5, "selection": {"fraction": 0.1}})
    assert (config.lr, config.selection.fraction, config.steps) == (0.5, 0.1, TrainConfig().steps)


def test_differences_are_said():
    mine, other = quick(), quick(lr=0.5, selection=Selection(select="all"))
    said = mine.differences(other)
    assert len(said) == 2
    assert any(line == "lr was 0.01, now 0.5" for line in said)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1.0}, "no option 'learning_rate' of training: there are steps, "),
        ({"max_new_token": 1}, "did you mean 'max_new_tokens'"),
        ({"selection": {"ratio": 0.2}}, "no option 'ratio' of a selection"),
    ],
)
def test_unknown_keys_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)


def test_an_unknown_argument_is_an_error_too():
    with pytest.raises(TypeError, match="top_entropy_quantile"):
        TrainConfig(top_entropy_quantile=0.2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"n": 1}, "n must be a whole number of 2 or more"),
        ({"prompts": True}, "prompts must be a whole number"),
        ({"resample": -1}, "resample must be a whole number of 0 or more"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"lr": float("nan")}, "lr must be a number, 0 or more"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"temperature": 0.0}, "temperature must be a number, above 0"),
        ({"gradient_norm": 0.0}, "gradient_norm must be a number, above 0"),
        ({"momentum": 1.0}, "momentum must be below 1"),
        ({"optimizer": "adam"}, "optimizer must be one of .*got 'adam'"),
        ({"decay": "cosine"}, "decay must be one of"),
        ({"overlong": "mask"}, "overlong must be one of"),
        ({"baseline": "none"}, "baseline must be one of"),
        ({"old_logprobs": "old"}, "old_logprobs must be one of"),
        ({"overlong": "punish"}, "overlong_cache belongs to overlong='punish'"),
        ({"overlong_cache": 3}, "overlong_cache belongs to overlong='punish'"),
        ({"overlong": "punish", "overlong_cache": 9}, "at most max_new_tokens, which is 8"),
        ({"updates": 5}, "updates splits a batch by its prompts: expected at most 4, got 5"),
        ({"prompts": 41, "updates": 1}, "a batch of 41 prompts needs as many problems, got 40"),
        ({"pass_at": (5,)}, "pass_at must be 1 to evaluate_n, which is 4"),
        ({"evaluate_temperatures": (-1.0,)}, "evaluate_temperatures must be 0 or more"),
        ({"bf16": 1}, "bf16 must be True or False"),
        ({"selection": "forks"}, "selection must be a Selection"),
        ({"micro_batch_rows": 0}, "micro_batch_rows must be a whole number of 1 or more"),
        ({"micro_batch_rows": 4}, "micro_batch_rows=4 would not be read"),
        ({"selection": Selection(scope="micro_batch")}, "by micro-batches: pass micro_batch_rows"),
        ({"temperature": 0.7}, "selection by the rollouts' entropies has their temperature, 0.7"),
        ({"ratio": "sequence"}, "ratio='sequence' needs the current log-probability"),
    ],
)
def test_what_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        quick(**values)


def test_what_is_not_read_need_not_match():
    sure = Selection(select="all")
    assert quick(temperature=0.7, selection=sure, ratio="sequence").ratio == "sequence"
    old = Selection(entropy_source="old")
    assert quick(temperature=0.7, selection=old).selection.temperature == 1.0


def test_every_field_is_checked_or_free():
    free = {"selection", "stop", "evaluate_temperatures", "pass_at", "micro_batch_rows", "seed"}
    wrong = object()
    for field in dataclasses.fields(TrainConfig):
        if field.name not in free:
            with pytest.raises(ValueError, match=field.name):
                quick(**{field.name: wrong})
