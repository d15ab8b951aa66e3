"""The log: lines, cut where a resumed run begins, handed on."""

import importlib.machinery
import json
import math
import sys
import types

import pytest
from tiny import tiny_model, tiny_tokenizer
from words import Words, quick

from entropy_probe.training.journal import (
    Journal,
    default_log,
    logged_choices,
    read_log,
    trackio_log,
)
from entropy_probe.training.trainer import train


def test_lines_are_written_and_handed_on(tmp_path):
    heard = []
    journal = Journal(tmp_path / "run", [heard.append])
    journal.write("step", {"step": 1, "loss": math.nan, "roles": {"a": 0.5, "b": math.inf}})
    journal.write("step", {"step": 2, "of": (1, 2)})
    assert read_log(tmp_path / "run") == journal.lines == heard
    assert heard[0] == {"kind": "step", "step": 1, "loss": None, "roles": {"a": 0.5, "b": None}}
    journal.close()


def test_what_came_after_a_checkpoint_is_written_again(tmp_path):
    first = Journal(tmp_path, [])
    first.write("step", {"step": 1})
    length = first.safe()
    first.write("step", {"step": 2, "lost": True})
    first.close()
    again = Journal(tmp_path, [], start=length)
    again.write("step", {"step": 2})
    again.close()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    assert "lost" not in read_log(tmp_path)[1]


def test_the_last_header_says_what_a_run_does(tmp_path):
    journal = Journal(tmp_path, [])
    assert logged_choices(tmp_path) == {}
    for count in (1, 2):
        journal.write("header", {"config": {"resample": count}})
        journal.write("step", {"step": count})
    assert logged_choices(tmp_path) == {"resample": 2}
    journal.close()


def test_a_line_that_was_being_written_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st')
    assert read_log(tmp_path) == [{"step": 1}]


def test_without_a_folder_lines_are_kept():
    journal = Journal(None, [])
    journal.write("step", {"step": 1})
    assert (journal.safe(), journal.lines) == (0, [{"kind": "step", "step": 1}])
    journal.close()


@pytest.fixture
def sent(monkeypatch):
    """Stand in for trackio; give what it is sent."""
    sent = []
    run = types.SimpleNamespace(log=lambda values, step: sent.append((step, values)))
    board = types.ModuleType("trackio")
    board.__spec__ = importlib.machinery.ModuleSpec("trackio", None)

    def init(project, name, config, resume):
        sys.stdout.write("* hello\n")
        sent.append((project, name, config))
        assert resume == "allow"
        return run

    board.init = init
    monkeypatch.setitem(sys.modules, "trackio", board)
    return sent


def test_trackio_gets_the_numbers(sent, capsys):
    log = trackio_log("forks", "mine", {"lr": 1})
    assert sent == []
    log({"kind": "header", "weights": "a"})
    assert capsys.readouterr() == ("", "* hello\n")
    log({"kind": "step", "step": 3, "loss": 0.5, "threshold": None, "roles": {"a": 1}})
    log({"kind": "evaluation", "step": 3, "temperature": 0.6, "accuracy": 0.25})
    assert sent == [
        ("forks", "mine", {"lr": 1}),
        (3, {"step/loss": 0.5}),
        (3, {"evaluation T=0.6/accuracy": 0.25}),
    ]


def test_it_is_the_default_where_it_is_installed(sent, tmp_path):
    options = {"steps": 1, "prompts": 2, "n": 2}
    heard = []
    for number, log in enumerate((None, heard.append)):
        train(
            tiny_model(), tiny_tokenizer(), Words(), config=quick(**options),
            out=tmp_path / f"run {number}", log=log,
        )  # fmt: skip
    assert [entry[:2] for entry in sent[:1]] == [("entropy-probe", "run 0")]
    assert [step for step, _ in sent[1:]] == [1]
    assert [line["kind"] for line in heard] == ["header", "step"]
    assert default_log(None, {}) is None


def test_without_trackio_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert default_log(tmp_path, {}) is None
    with pytest.raises(ModuleNotFoundError, match="trackio"):
        trackio_log("a", "b", {})


def test_lines_are_json_for_anyone(tmp_path):
    journal = Journal(tmp_path, [])
    journal.write("header", {"text": "ä\n\u2028"})
    journal.close()
    (line,) = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {"kind": "header", "text": "ä\n\u2028"}
