"""A configuration in TRL's words."""

import importlib.util
import os

import pytest
from words import quick

from entropy_probe.training.equivalents import not_in_trl, trl_arguments
from entropy_probe.training.options import Selection
from entropy_probe.training.presets import preset

ODD = {
    "selection": Selection(select="random", fraction=0.3), "resample": 1, "overlong": "punish",
    "overlong_cache": 4, "baseline": "leave_one_out", "gradient_rule": "match", "stop": ("w1 ",),
    "decay": "linear", "evaluate_every": 1, "beta": 0.1, "updates": 2, "epochs": 3, "scale": "none",
}  # fmt: skip


def test_a_run_like_trl_s_has_nothing_else():
    config = quick(selection=preset("trl"), micro_batch_rows=4, prompts=8, n=4)
    assert not_in_trl(config) == []
    found = trl_arguments(config, processes=2)
    assert found["top_entropy_quantile"] == 0.2
    assert found["per_device_train_batch_size"] == 4
    assert found["gradient_accumulation_steps"] == 4
    assert found["steps_per_generation"] == 4


def test_all_tokens_are_a_quantile_of_1():
    config = quick(selection=Selection(select="all"))
    assert trl_arguments(config)["top_entropy_quantile"] == 1.0
    assert not_in_trl(config) == []


@pytest.mark.parametrize(
    ("average", "loss"), [("step", "dapo"), ("sequence", "grpo"), ("micro_batch", "bnpo")]
)
def test_means_of_means_are_losses_of_its_own(average, loss):
    selection = Selection(select="all", average=average)
    rows = 4 if average == "micro_batch" else None
    config = quick(selection=selection, prompts=8, n=4, micro_batch_rows=rows)
    assert trl_arguments(config)["loss_type"] == loss
    assert not_in_trl(config) == []
    dropped = quick(
        selection=selection, prompts=8, n=4, micro_batch_rows=rows, overlong="drop",
    )  # fmt: skip
    assert len(not_in_trl(dropped)) == (average != "step")


def test_what_it_lacks_is_said():
    said = "\n".join(not_in_trl(quick(**ODD)))
    for word in (
        "select='random'", "normalizer='selected'", "entropy_source='rollout'", "scope='global'",
        "rule='exact'", "mask_kl", "resample", "punish", "leave_one_out", "match", "decay", "stop",
        "evaluate",
    ):  # fmt: skip
        assert word in said
    assert len(not_in_trl(quick())) == 4


def test_a_fixed_threshold_is_said_and_not_a_quantile():
    config = quick(selection=Selection(rule="threshold", threshold=0.5))
    assert trl_arguments(config)["top_entropy_quantile"] == 1.0
    said = not_in_trl(config)
    assert sum("threshold=0.5: a share, and no threshold in nats" in line for line in said) == 1
    assert not any("scope=" in line or "rule=" in line for line in said)  # nothing reads them


@pytest.mark.parametrize(
    ("sizes", "processes", "micro", "steps", "said"),
    [
        ((3, 4, 1, 64), 1, 12, 1, ["micro_batch_rows=64: micro-batches are of equal size, 12 of"]),
        ((3, 4, 1, 8), 1, 6, 2, ["micro_batch_rows=8: micro-batches are of equal size, 6 of 12"]),
        ((3, 4, 1, 4), 1, 4, 3, []),
        ((5, 4, 3, None), 1, 4, 1, ["prompts=5: batches are of equal size, 12 completions in 3"]),
        ((5, 4, 2, 5), 1, 5, 2, []),
        ((5, 6, 2, None), 2, 6, 1, ["prompts=5: batches are of equal size, 24 completions in 4"]),
    ],
)
def test_batches_are_such_as_trl_can_split(sizes, processes, micro, steps, said):
    prompts, n, updates, rows = sizes
    config = quick(
        prompts=prompts, n=n, updates=updates, micro_batch_rows=rows,
        selection=preset("swift") if rows else Selection(select="all"),
    )  # fmt: skip
    found = trl_arguments(config, processes=processes)
    assert found["per_device_train_batch_size"] == micro
    assert found["gradient_accumulation_steps"] == steps
    assert found["steps_per_generation"] == updates * steps
    assert micro * updates * steps * processes % n == 0  # TRL's own check
    told = [x for x in not_in_trl(config, processes=processes) if "equal size" in x]
    assert len(told) == len(said)
    assert all(line.startswith(start) for line, start in zip(told, said, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        ODD,
        {"optimizer": "adamw", "overlong": "drop"},
        {"selection": preset("swift"), "micro_batch_rows": 64},
        {"selection": preset("swift"), "micro_batch_rows": 7},
        {"selection": Selection(rule="threshold", threshold=0.5)},
    ],
)
def test_trl_takes_them(tmp_path, options):
    if importlib.util.find_spec("trl") is None and "PROBE_REQUIRE_TRL" not in os.environ:
        pytest.skip("needs the extra trl")
    from trl import GRPOConfig

    config = quick(prompts=4, n=4, **{k: v for k, v in options.items() if k != "prompts"})
    found = trl_arguments(config)
    taken = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **found)
    for name, value in found.items():
        got = getattr(taken, name)
        assert getattr(got, "value", got) == value, name
    # As many completions are generated at a time as a batch of ours has, and used as often.
    assert taken.generation_batch_size == config.prompts * config.n
    assert taken.max_steps == config.total_updates
