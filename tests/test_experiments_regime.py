"""The search for a rate: what is trained, and that a second call goes on."""

import pytest

from analyses.experiments import regime
from entropy_probe.training.config import TrainConfig

LOOK = {"accuracy": 0.5, "share": {"code": 0.25}, "right": {"code": 0.75, "prose": 0.4}}


def looked(logits, **changes):
    openings = {name: {"logit": value} for name, value in zip("ab", logits, strict=True)}
    return LOOK | changes | {"openings": openings}


@pytest.fixture
def computed(monkeypatch):
    """Replace the training; give the settings of each run."""
    asked = []

    def compute(execute, settings):
        asked.append(settings)
        after = looked((-2.0, 3.0), accuracy=0.625)
        result = {"watched": [looked((-1.0, 1.0)), after], "steps": [{"clip_kept": 0.03125}]}
        return {"result": result, "seconds": {"cpu": 7.4}}

    monkeypatch.setattr(regime, "compute_here", compute)
    return asked


def test_runs_are_made_once_and_told_in_a_line_each(computed, tmp_path, capsys):
    out = ["--results", str(tmp_path / "regime.jsonl"), "--processes", "1"]
    assert regime.main([*out, "--only", "sgd 0.004, 24 prompts"]) == 0
    assert regime.main([*out, "--only", "sgd 0.004, 24 prompts", "--seeds", "2"]) == 0
    assert [settings["seed"] for settings in computed] == list(regime.SEEDS)
    *_, line, other = capsys.readouterr().out.splitlines()
    assert line.startswith("sgd 0.004, 24 prompts, seed 900")
    assert "right 0.500 0.625  code 0.250 0.250  right in code 0.750 0.750" in line
    # (-1 -> -2) and (1 -> 3): shifts -1 and +2
    assert "slope +1.500  shift +0.500  clipped 0.0312  7 s" in line
    assert other.startswith("sgd 0.004, 24 prompts, seed 901")


def test_every_run_of_the_grid_can_be_trained(computed, tmp_path):
    assert regime.main(["--results", str(tmp_path / "all.jsonl")]) == 0
    configs = [TrainConfig.from_dict(settings["config"]) for settings in computed]
    assert len(configs) == len(regime.GRID)
    assert {(config.updates, config.clip_high) for config in configs} == {(8, 0.2)}
    assert {config.prompts for config in configs} == {24, 48, 64}
    assert all(settings["reward"] == "random:0.5" for settings in computed)
