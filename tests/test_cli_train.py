"""`probe train`: what it is given, what it shows, how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields

import huggingface_hub
import pytest
from commands import probe, tiny_folder, write_hub

from entropy_probe import open_run
from entropy_probe.advantages import BASELINES, SCALES
from entropy_probe.cli.training import CONFIG, PRESETS, SELECTION
from entropy_probe.loss import NORMALIZERS, RATIOS
from entropy_probe.models import load
from entropy_probe.training import config, options
from entropy_probe.training.choosing import CHOICES
from entropy_probe.training.collecting import NothingToLearn
from entropy_probe.training.config import TrainConfig
from entropy_probe.training.journal import read_log
from entropy_probe.training.options import Selection
from entropy_probe.training.pooling import QUANTILES
from entropy_probe.training.presets import PRESETS as SELECTIONS

MODEL = ("--model", tiny_folder(), "--task", "arithmetic")
QUICK = ("--steps", 2, "--prompts", 2, "--n", 2, "--max-new-tokens", 4, "--problems", 4)


def dry(*words):
    result = probe("train", *MODEL, "--problems", 16, "--dry-run", "--json", *words)
    assert result.code == 0, result.err
    return result.json


def test_every_choice_is_an_option_and_its_default_is_said():
    assert {f.name for f in fields(TrainConfig)} == {*CONFIG, "selection"}
    internal = {"count", "temperature", "seed"}  # they follow the rule, and the run's own
    assert {f.name for f in fields(Selection)} == {*SELECTION} | internal
    assert set(PRESETS) == set(SELECTIONS)
    selection = Selection()
    for name, (_, text) in (SELECTION | CONFIG).items():
        if name in CONFIG:
            (field,) = (f for f in fields(TrainConfig) if f.name == name)
            default = field.default if field.default is not MISSING else field.default_factory()
        else:
            default = getattr(selection, name)
        if isinstance(default, bool):
            default = "yes" if default else "no"
        if default not in (None, ()):
            shown = default[0] if isinstance(default, tuple) else default
            assert text.endswith(f"[default: {shown}]"), name


def test_choices_are_those_of_the_library():
    known = {
        "select": tuple(CHOICES), "scope": options.SCOPES, "rule": options.RULES,
        "quantile": QUANTILES, "entropy_source": options.SOURCES, "normalizer": NORMALIZERS,
        "average": options.AVERAGES, "optimizer": config.OPTIMIZERS, "decay": config.DECAYS,
        "gradient_rule": config.GRADIENT_RULES, "overlong": config.OVERLONG, "ratio": RATIOS,
        "baseline": BASELINES, "scale": SCALES, "old_logprobs": ("rollout", "recomputed"),
    }  # fmt: skip
    given = {k: kind for k, (kind, _) in (SELECTION | CONFIG).items() if isinstance(kind, tuple)}
    assert given == known


def test_a_dry_run_shows_what_would_be_done(tmp_path):
    shown = dry("--select", "bottom", "--fraction", 0.3, "--lr", 0.5, "-o", tmp_path / "run")
    assert shown["config"]["selection"]["select"] == "bottom"
    assert (shown["config"]["selection"]["fraction"], shown["config"]["lr"]) == (0.3, 0.5)
    assert TrainConfig.from_dict(shown["config"]).to_dict() == shown["config"]
    assert shown["memory"]["weights"] > 0
    assert shown["trl"]["learning_rate"] == 0.5
    assert any("select='bottom'" in line for line in shown["not_in_trl"])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_can_be_read():
    result = probe("train", *MODEL, "--problems", 16, "--dry-run", "--reward", "format")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert ["reward", "format"] in lines
    assert ["selection.select", '"forks"'] in lines
    assert ["top_entropy_quantile", "0.2"] in lines


def test_a_preset_is_a_selection_that_options_add_to():
    shown = dry("--preset", "trl", "--fraction", 0.1, "--micro-batch-rows", 4)
    expected = SELECTIONS["trl"].selection.to_dict() | {"fraction": 0.1}
    assert shown["config"]["selection"] == expected
    assert dry("--temperature", 0.7)["config"]["selection"]["temperature"] == 0.7
    assert dry("--temperature", 0.7, "--select", "all")["config"]["selection"]["temperature"] == 1.0


def test_the_selection_has_the_temperature_of_the_sampling_unless_it_names_one(tmp_path):
    file = tmp_path / "config.json"

    def temperatures(values, *words):
        file.write_text(json.dumps(values))
        shown = dry("--config", file, *words)["config"]
        assert shown["temperature"] != 1.0
        return shown["temperature"], shown["selection"]["temperature"]

    cool, preset = {"temperature": 0.7}, ("--preset", "trl", "--micro-batch-rows", 4)
    assert temperatures(cool) == (0.7, 0.7)
    assert temperatures(cool, *preset) == (0.7, 0.7)
    assert temperatures(cool, "--temperature", 0.5) == (0.5, 0.5)
    assert temperatures(cool, "--select", "random") == (0.7, 1.0)
    assert temperatures(cool, "--preset", "lightrft") == (0.7, 1.0)
    own = {"temperature": 1.0, "entropy_source": "old"}
    assert temperatures(cool | {"selection": own}) == (0.7, 1.0)
    assert temperatures(cool | {"selection": own}, "--temperature", 0.5) == (0.5, 1.0)
    assert temperatures(cool | {"selection": own}, *preset) == (0.7, 0.7)
    whole = dry("--temperature", 0.7)["config"]  # as a run keeps it
    assert temperatures(whole) == (0.7, 0.7)
    assert temperatures(whole, "--temperature", 0.5) == (0.5, 0.5)
    file.write_text(json.dumps({"temperature": 0.7, "selection": {"temperature": 0.9}}))
    said = probe("train", *MODEL, "--config", file, "--dry-run").told[1]
    assert "has their temperature, 0.7: got 0.9; give both the same" in said


def test_a_file_can_hold_the_options(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"lr": 0.25, "steps": 7, "selection": {"fraction": 0.4}}))
    shown = dry("--config", file, "--steps", 9)["config"]
    assert (shown["lr"], shown["steps"], shown["selection"]["fraction"]) == (0.25, 9, 0.4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "arithmetic"), "there is no model to run"),
        (("--model", "x"), "there are no problems to train on"),
        ((*MODEL[:2], "--task", "algebra"), "no task 'algebra'"),
        ((*MODEL, "--reward", "luck"), "no reward 'luck'"),
        ((*MODEL, "--fractoin", "0.2"), "does not know it"),
        ((*MODEL, "--select", "top"), "'top' is not one of"),
        ((*MODEL, "--updates", "17"), "updates splits a batch by its prompts"),
        ((*MODEL, "--preset", "paper"), "pass micro_batch_rows"),
        ((*MODEL, "--select", "all", "--fraction", "0.2"), "would not be read"),
        (("--resume",), "there is no -o"),
        (("--resume", "-o", "nowhere"), "it holds no train.json"),
        (("--resume", "-o", "run", "--config", "c.json"), "the file 'c.json' would not be read"),
    ],
)
def test_wrong_usage_is_told(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = probe("train", *words)
    assert result.code == 2
    assert said in result.told[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", '{"step": 3}'])
def test_a_file_that_holds_no_options_is_told(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    result = probe("train", *MODEL, "--config", tmp_path / "c.json", "--dry-run")
    assert result.code == 2
    assert all(result.told)


def test_it_trains_and_goes_on(tmp_path):
    """The tiny model has no words for the task: every answer is wrong, and nothing is learnt."""
    out = tmp_path / "run"
    result = probe("train", *MODEL, *QUICK, "--rollouts-prompts", 1, "-o", out)
    assert result.code == 0, result.err
    assert result.last == str(out)
    assert "step 2/2: reward 0.000" in result.err
    assert f"next: probe report {out}/rollouts/step-00001" in result.err
    assert len(open_run(out / "rollouts" / "step-00001")) == 2
    lines = read_log(out)
    assert [line["kind"] for line in lines] == ["header", "step", "step"]
    again = probe("train", *MODEL, *QUICK, "-o", out)
    assert again.code == 2
    assert "already holds a training run" in again.told[0]
    other = probe("train", "--resume", "-o", out, "--lr", 0.5)
    assert (other.code, "lr was 1e-06, now 0.5" in other.told[1]) == (2, True)
    same = probe("train", "--resume", "-o", out, "--json")
    assert same.code == 0
    assert same.json["steps"] == 2
    assert read_log(out) == lines


def test_it_goes_on_with_the_revision_that_it_was_begun_with(tmp_path, monkeypatch):
    commits = write_hub(tmp_path / "hub", "some/model", main=1.0, second=1.1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    out, begin = tmp_path / "run", ("train", "--model", "some/model", "--revision", "second")
    result = probe(*begin, *MODEL[2:], *QUICK, "-o", out)
    assert result.code == 0, result.err
    assert json.loads((out / "train.json").read_text())["revision"] == commits["second"]
    shutil.rmtree(out / "checkpoints")  # with one, the weights are those there
    again = probe("train", "--resume", "-o", out, "--json")
    assert again.code == 0, again.err
    other = probe("train", "--resume", "-o", out, "--revision", "main")
    assert (other.code, "the weights before training was" in other.told[1]) == (2, True)


def test_it_trains_in_float32_unless_told_otherwise(monkeypatch):
    asked = []

    def loading(*given, dtype, **how):
        asked.append(dtype)
        return load(*given, dtype=dtype, **how)

    monkeypatch.setattr("entropy_probe.models.load", loading)
    dry()
    refused = probe("train", *MODEL, "--dry-run", "--dtype", "bfloat16")
    assert asked == ["float32", "bfloat16"]
    assert refused.code == 2
    assert "in bfloat16" in refused.err
    assert "--dtype float32" in refused.err


def test_the_way_on_where_nothing_differs_draws_more_often(tmp_path, monkeypatch):
    def fail(*given, **how):
        raise NothingToLearn("the rewards are equal")

    monkeypatch.setattr("entropy_probe.training.trainer.train", fail)
    monkeypatch.setattr("entropy_probe.cli.train._steps", lambda path: 7)
    result = probe("train", *MODEL, *QUICK, "--resample", 2, "-o", tmp_path / "run")
    assert result.code == 4
    assert result.told[2] == f"go on: probe train --resume --resample 8 -o {tmp_path / 'run'}"


def test_what_stops_it_is_told_with_what_is_saved(tmp_path):
    """With resampling, a task in which nothing differs ends the run."""
    out = tmp_path / "run"
    result = probe("train", *MODEL, *QUICK, "--resample", 1, "-o", out)
    assert result.code == 2
    assert "rewards are equal within each of 4 groups" in result.told[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_step_with_the_way_on(tmp_path, number):
    out = tmp_path / "run"
    words = [
        "train", "--model", "organism:amenable-300k", "--task", "arithmetic", "--steps", "100",
        "--prompts", "2", "--n", "2", "--max-new-tokens", "72", "--lr", "0.01", "-o", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "entropy_probe", *words], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    log = out / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 4, said
    assert f"fix:   go on: probe train --resume -o {out}" in said
    (saved,) = (out / "checkpoints").iterdir()
    done = int(saved.name.removeprefix("step-"))
    assert [line["step"] for line in read_log(out)[1:]] == list(range(1, done + 1))


@pytest.mark.slow
def test_on_an_organism_from_end_to_end(tmp_path):
    out = tmp_path / "run"
    result = probe(
        "train", "--model", "organism:amenable", "--task", "arithmetic", "--steps", 3,
        "--prompts", 8, "--n", 4, "--max-new-tokens", 72, "--optimizer", "sgd", "--lr", 0.01,
        "--evaluate-every", 3, "--evaluate-problems", 20, "--rollouts-every", 2,
        "-o", out, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.json["steps"] == 3
    assert 0.4 < result.json["accuracy"] <= 1
    lines = [line for line in read_log(out) if line["kind"] == "step"]
    for line in lines:
        assert line["kept_share"] == pytest.approx(0.2, abs=0.002)
        assert line["mask_on_forks"] > 0.1
        assert line["mask_on_decoys"] > 0.1
    page = tmp_path / "page.html"
    assert probe("report", out / "rollouts" / "step-00002", "-o", page).code == 0
    assert "step 2 of" in page.read_text()
    assert probe("capture", "--model", result.json["checkpoint"], "-p", "3", "--n", 1,
                 "--max-new-tokens", 2, "-o", tmp_path / "rows").code == 0  # fmt: skip
