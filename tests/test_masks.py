"""The table and the page of the four selections, from lines that are there already."""

import json

import numpy as np
import pytest

from analyses.lines import read_lines
from analyses.organisms import masks


def line(arm, seed, after, *, model="organism:amenable"):
    """Give a run of two steps as the results hold it."""
    header = {
        "kind": "header", "model": model, "weights": "abc", "task": "arithmetic",
        "reward": "correct", "created": "then", "libraries": {"torch": "2"},
        "config": masks.settings(arm, seed, 2) | {"gradient_norm": 1.0},
    }  # fmt: skip
    log = [header, {"kind": "evaluation", "step": 0, "accuracy": 0.5}]
    for step in (1, 2):
        values = {"gradient_norm": step * 0.5, "mask_on_forks": 0.3 / step, "entropy_all": 0.1}
        log.append({"kind": "step", "step": step} | values)
    log.append({"kind": "evaluation", "step": 2, "accuracy": after})
    return {"arm": arm, "seed": seed, "steps": 2, "seconds": {"cpu": 10.0 + seed}, "log": log}


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "masks.jsonl"
    lines = [line("forks", seed, after) for seed, after in enumerate((0.6, 0.7, 0.8))]
    lines.append(line("forks", 0, 0.9, model="another"))
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_runs_that_are_there_are_only_read(results, tmp_path, capsys):
    before = results.read_bytes()
    words = ["--arms", "forks", "--seeds", "3", "--steps", "2", "--out", str(results)]
    page = tmp_path / "page.html"
    assert masks.main([*words, "--page", str(page)]) == 0
    assert results.read_bytes() == before
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("arm")
    # Mean .7, standard deviation .1: 4.303 * .1 / sqrt(3) to either side.
    assert row.split() == [
        "forks", "3", "0.500", "0.700", "(0.452", "to", "0.948)", "0.75", "0.300", "0.225", "11",
    ]  # fmt: skip
    text = page.read_text()
    assert row in text
    assert "forks (3 seeds)" in text
    assert "code strategy" in text


def test_another_model_is_another_run():
    here, there = line("all", 1, 0.5), line("all", 1, 0.5, model="another")
    assert masks.key(here) == ("organism:amenable", "all", 1, 2)
    assert masks.key(here) != masks.key(there)
    assert masks.best("organism:amenable") == pytest.approx(0.952, abs=5e-4)
    assert masks.best("another") is None


def test_one_seed_has_no_interval():
    mean, half = masks.interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(half).all()


def test_the_runs_that_are_committed_are_whole():
    runs = read_lines(masks.RESULTS)
    assert {masks.key(run)[1:3] for run in runs} >= {(a, s) for a in masks.ARMS for s in range(5)}
    for run in runs:
        config = run["log"][0]["config"]
        assert config["selection"]["select"] == masks.ARMS[run["arm"]]["select"]
        assert config["seed"] == run["seed"]
        steps = [entry for entry in run["log"] if entry["kind"] == "step"]
        assert [entry["step"] for entry in steps] == list(range(1, run["steps"] + 1))
