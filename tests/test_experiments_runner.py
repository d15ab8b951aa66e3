import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analyses.experiments.analysis import Analysis, Arm, Run, Source, merged
from analyses.experiments.runner import RunError, compute_here, run_missing
from analyses.experiments.worker import compute
from analyses.lines import read_lines

ROOT = Path(__file__).parents[1]


def runs(count, **settings):
    return [Run("arm", seed, {"value": 3, **settings, "seed": seed}) for seed in range(count)]


def test_each_run_becomes_a_line_that_says_what_it_was_computed_with(tmp_path):
    path = tmp_path / "results.jsonl"
    run_missing("tests.planned_runs:double", runs(2), path, processes=2)
    lines = sorted(read_lines(path), key=lambda line: line["seed"])
    assert [line["result"] for line in lines] == [{"doubled": 6}, {"doubled": 7}]
    first = lines[0]
    assert first["settings"] == {"value": 3, "seed": 0}
    assert first["weights"] == "abc"
    assert first["key"] == runs(1)[0].key
    assert first["hardware"]["threads"] == "1"
    assert first["seconds"]["cpu"] >= 0
    assert first["seconds"]["wall"] >= 0
    assert {"torch", "numpy"} <= first["libraries"].keys()
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert (first["revision"] or "").rstrip("+") == head.stdout.strip()
    assert first["date"].startswith("20")


def test_a_second_call_computes_what_is_missing_alone(tmp_path):
    path, told = tmp_path / "results.jsonl", []
    run_missing("tests.planned_runs:double", runs(1), path)
    before = path.read_bytes()
    run_missing("tests.planned_runs:double", runs(2), path, tell=told.append)
    assert path.read_bytes().startswith(before)
    assert len(read_lines(path)) == 2
    assert [text.split(":")[0] for text in told] == ["arm, seed 1"]
    # Other settings are another run.
    run_missing("tests.planned_runs:double", runs(1, value=4), path)
    assert [line["result"]["doubled"] for line in read_lines(path)] == [6, 7, 8]


def test_a_run_that_fails_is_told_and_the_others_are_done(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(RunError, match=r"1 of 3 runs failed\narm, seed 1: .*a planted failure"):
        run_missing("tests.planned_runs:fail_at_one", runs(3), path)
    assert sorted(line["seed"] for line in read_lines(path)) == [0, 2]


def test_a_result_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        compute("tests.planned_runs:infinite", {})


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_runner_that_is_killed_leaves_no_run_behind_and_the_next_one_goes_on(tmp_path):
    path, started = tmp_path / "results.jsonl", tmp_path / "started"
    run_missing("tests.planned_runs:double", runs(1), path)
    waiting = {"started": str(started), "seed": 5}
    code = (
        "import sys, json; from pathlib import Path; from analyses.experiments.analysis import Run;"
        "from analyses.experiments.runner import run_missing;"
        "run_missing('tests.planned_runs:wait', [Run('arm', 5, json.loads(sys.argv[1]))],"
        " Path(sys.argv[2]))"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(waiting), str(path)], cwd=ROOT
    )
    wait_for(lambda: started.exists() and started.read_text())
    worker = int(started.read_text())
    told = []
    # While it is under way, another runner leaves it alone.
    run_missing("tests.planned_runs:double", [Run("arm", 5, waiting)], path, tell=told.append)
    assert told == ["arm, seed 5: under way elsewhere, or done"]
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    wait_for(lambda: not alive(worker))
    assert len(read_lines(path)) == 1
    run_missing(
        "tests.planned_runs:double", [*runs(1), Run("arm", 5, {"value": 1, "seed": 5})], path
    )
    assert len(read_lines(path)) == 2


def test_what_a_run_writes_at_its_end_is_told():
    with pytest.raises(RunError, match="No module named 'tests.nothing'"):
        compute_here("tests.nothing:here", {"seed": 0})


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_lines(tmp_path):
    if os.environ.get("PROBE_REQUIRE_RAY") != "1":
        pytest.importorskip("ray")
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    function = "analyses.experiments.training:rounded"
    run_missing(function, runs(2), here)
    run_missing(function, runs(2), there, ray="local")
    results = [sorted((x["key"], str(x["result"])) for x in read_lines(p)) for p in (here, there)]
    assert results[0] == results[1]
    assert len(results[0]) == 2


# An analysis as data


def analysis(**options):
    defaults = {
        "name": "none", "question": "?", "claim": Source("1", "it is so", "text"),
        "refuted_by": "nothing", "execute": "tests.planned_runs:double",
        "settings": {"a": {"b": 1, "c": 2}},
        "arms": (Arm("one", "", {"a": {"c": 3}}, seeds=2), Arm("two", "", {"d": 4}, seeds=3)),
        "measures": {}, "contrasts": (), "figures": lambda results: [],
    }  # fmt: skip
    return Analysis(**defaults | options)


def test_runs_go_seed_by_seed_and_their_settings_are_layers():
    found = analysis().runs()
    assert [(run.arm, run.seed) for run in found] == [
        ("one", 0), ("two", 0), ("one", 1), ("two", 1), ("two", 2),
    ]  # fmt: skip
    assert found[0].settings == {"a": {"b": 1, "c": 3}, "seed": 0}
    layered = analysis().runs(arms=["one"], seeds=1, base={"a": {"b": 5, "c": 5}}, over={"e": 1})
    assert [run.settings for run in layered] == [{"a": {"b": 5, "c": 3}, "e": 1, "seed": 0}]
    assert len(analysis().runs(seeds=4)) == 8
    assert analysis().minutes == pytest.approx(10.0)


def test_a_key_names_all_settings():
    keys = {Run("arm", 0, settings).key for settings in ({"a": 1}, {"a": 2}, {"a": 1, "b": 1})}
    assert len(keys) == 3
    assert Run("x", 0, {"a": 1, "b": 2}).key == Run("x", 0, {"b": 2, "a": 1}).key


def test_merging_takes_away_what_is_none():
    assert merged({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": None}) == {"a": {"b": 1, "d": 3}}
    below = {"a": {"b": 1}}
    merged(below, {"a": {"b": 2}})
    assert below == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"arms": (Arm("one", ""), Arm("one", ""))}, "two arms have one name"),
        ({"arms": ()}, "no arm 'one'"),
    ],
)
def test_what_cannot_be_run_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        analysis(**change).runs(arms=["one"])


@pytest.mark.parametrize("options", [{"role": "main"}, {"seeds": 0}])
def test_an_arm_that_the_tables_do_not_know_is_refused(options):
    with pytest.raises(ValueError, match="expected a role"):
        Arm("one", "", **options)


def test_a_source_says_how_far_it_was_read():
    with pytest.raises(ValueError, match="a source is read as"):
        Source("2506.01939", "it is so", "somewhat")
