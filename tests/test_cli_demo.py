"""`probe demo`: the shipped model on real problems, no network, nobody's work lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import files_under, no_sockets, probe

from entropy_probe import heatmap, load, open_run, sample
from entropy_probe.planted import roles_of_run
from entropy_probe.tasks import get_task


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    no_sockets(monkeypatch)


def test_it_runs_the_shipped_model_and_leaves_a_run_and_its_page():
    result = probe("demo")
    assert (result.code, result.last) == (0, "probe-demo/report.html")
    run = open_run("probe-demo")
    found = run.rollouts()
    task = get_task("arithmetic")
    problems = task.problems(6)
    model, tokenizer = load("organism:amenable", device="cpu")
    wanted = sample(
        model, tokenizer, [p.prompt for p in problems], n=4, max_new_tokens=96, residual_layers=[-1]
    )
    assert run.complete
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.entropy, wanted.entropy)
    rewards = [task.verify(problems[i // 4], wanted.completion(i)) for i in range(24)]
    assert found.rewards.tolist() == rewards
    assert 0 < sum(rewards) < 24
    rollouts = run.rollouts(residuals=False)
    page = heatmap(rollouts, roles=roles_of_run(run, rollouts))
    assert Path(result.last).read_text() == page
    assert "Planted fork (solid line above)" in page
    assert f"{sum(rewards):.0f} of 24 answers right" in result.err
    assert "next: " in result.err
    lines = [line.split() for line in result.err.splitlines() if line.startswith("  probe ")]
    assert [line[1] for line in lines] == ["forks", "show", "capture"]
    for line in lines[:2]:
        assert probe(*line[1:]).code == 0


def test_an_earlier_demo_is_replaced():
    first = probe("demo", "--limit", 2, "--n", 3, "--json").json
    Path("probe-demo/notes.txt").write_text("mine")
    second = probe("demo", "--limit", 3, "--n", 1, "--json").json
    assert (first["samples"], second["samples"]) == (6, 3)
    assert len(open_run("probe-demo")) == 3
    assert Path("probe-demo/notes.txt").read_text() == "mine"


def test_somebodys_run_is_not_replaced_unless_told_to():
    probe(
        "capture", "--model", "organism:amenable", "--task", "arithmetic", "--limit", 2,
        "--max-new-tokens", 5, "-o", "probe-demo", "-q",
    )  # fmt: skip
    before = files_under(Path("probe-demo"))
    result = probe("demo")
    assert result.code == 2
    assert "holds a run that is no demo" in result.told[0]
    assert files_under(Path("probe-demo")) == before
    assert probe("demo", "--limit", 1, "--n", 1, "--overwrite").code == 0


def test_what_is_no_run_is_never_replaced():
    Path("probe-demo").mkdir()
    Path("probe-demo/thesis.tex").write_text("all of it")
    for words in ((), ("--overwrite",)):
        result = probe("demo", *words)
        assert result.code == 2
        assert "taken by something that is not a run" in result.told[0]
    assert files_under(Path("probe-demo")) == {"thesis.tex": b"all of it"}
    assert probe("demo", "-o", "/proc/demo").code == 1


def test_it_opens_no_socket_in_a_process_of_its_own():
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a socket was opened')\n"
        "socket.socket.__init__ = refuse\n"
        "from entropy_probe.cli import main\n"
        "sys.exit(main(['demo', '--limit', '1', '--n', '1', '-o', 'demo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "demo/report.html\n"), done.stderr
