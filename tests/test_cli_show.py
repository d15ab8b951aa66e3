"""`probe show`: a run and its samples in the terminal, text that does no harm."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from commands import probe, tiny_folder, write_run
from hostile import HOSTILE, record_of
from test_terminal import invisible

from entropy_probe import open_run
from entropy_probe.viewing.page import heatmap
from entropy_probe.viewing.terminal import terminal_heatmap


@pytest.fixture
def run(tmp_path):
    record = record_of([b"t%d " % i for i in range(9)], rows=5)
    write_run(tmp_path / "run", record[:2], record[2:])
    return tmp_path / "run"


def test_a_sample_is_drawn_with_the_forks_of_the_run(run):
    result = probe("show", run, "--sample", 3, "--width", 80, "--top", 2)
    rollouts = open_run(run).rollouts()
    assert result.code == 0
    assert result.out == terminal_heatmap(rollouts, row=3, width=80, top=2, color=False)
    assert result.out != terminal_heatmap(rollouts[3], width=80, top=2, color=False)


def test_color_on_request_only_where_there_is_no_terminal(run, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in probe("show", run, "--sample", 0).out
    assert "\x1b[" in probe("show", run, "--sample", 0, "--color").out


def test_a_sample_as_json(run):
    found = probe("show", run, "--sample", 4, "--json").json
    rollouts = open_run(run).rollouts()
    assert found["sample"] == 4
    assert len(found["tokens"]) == int(rollouts.lengths[4])
    for t, line in enumerate(found["tokens"]):
        assert line["token_id"] == int(rollouts.tokens[4, t])
        assert line["is_prompt"] == (t == 0)
        known = [line[name] for name in ("entropy", "logprob", "rank")]
        if t == 0:
            assert known == [None, None, None]
        else:
            fields = (rollouts.entropy, rollouts.logprobs, rollouts.ranks)
            assert known == [float(f[4, t]) for f in fields]


def test_what_json_lacks_is_null(tmp_path):
    record = record_of([b"a", b"b"], rows=2)
    record = dataclasses.replace(
        record,
        logprobs=record.logprobs - torch.tensor([0, math.inf, 0]),
        ranks=record.ranks - torch.tensor([0, 0, 1]),
        rewards=torch.tensor([math.nan, 1]),
    )
    write_run(tmp_path / "run", record)
    first, second = probe("show", tmp_path / "run", "--sample", 0, "--json").json["tokens"][1:]
    assert (first["logprob"], first["rank"], second["rank"]) == (None, 0, None)
    assert [s["reward"] for s in probe("show", tmp_path / "run", "--json").json["list"]] == [
        None,
        1,
    ]
    assert probe("show", tmp_path / "run").code == 0


def test_a_run_is_shown_with_its_facts_and_samples(run):
    result = probe("show", run, "--top", 4)
    rollouts = open_run(run).rollouts()
    assert "5 of 5 samples, complete" in result.out
    assert any(line.split() == ["Model", "organism:test"] for line in result.out.splitlines())
    assert "and 1 more samples" in result.out
    found = probe("show", run, "--json").json
    assert (found["samples"], found["planned"], found["tokens"]) == (5, 5, 45)
    assert found["forks"] == math.ceil(0.2 * 45)
    assert sum(line["forks"] for line in found["list"]) == found["forks"]
    assert [line["reward"] for line in found["list"]] == rollouts.rewards.tolist()
    assert found["list"][0]["text"] == "t0 t1 t2 t3 t4 t5 t6 t7 t8 "
    assert found["provenance"]["model"] == "organism:test"


@pytest.mark.parametrize("sample", [5, -1])
def test_a_sample_that_is_not_there_is_told(run, sample):
    result = probe("show", run, "--sample", sample)
    assert (result.code, result.out) == (2, "")
    assert "the run has samples 0 to 4" in result.told[1]


def test_samples_keep_their_numbers_where_chunks_are_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = probe(
        "capture", "--model", tiny_folder(), "-p", "w1 ", "-p", "w2 ", "-p", "w3 ", "--n", 2,
        "--chunk-prompts", 1, "--max-new-tokens", 6, "-o", "run", "-q",
    )  # fmt: skip
    assert made.code == 0
    whole = {s: probe("show", "run", "--sample", s, "--json").json["tokens"] for s in range(6)}
    Path("run/samples.parquet/chunk-00001.parquet").unlink()
    for sample in (0, 1, 4, 5):
        found = probe("show", "run", "--sample", sample, "--json").json["tokens"]
        assert [t["token_id"] for t in found] == [t["token_id"] for t in whole[sample]]
    for sample, why in ((2, "its chunk has not been computed yet"), (6, "samples 0 to 5")):
        result = probe("show", "run", "--sample", sample)
        assert (result.code, why in result.told[1]) == (2, True)
    assert [line["sample"] for line in probe("show", "run", "--json").json["list"]] == [0, 1, 4, 5]
    assert "4 of 6 samples, not complete" in probe("show", "run").out
    places = [p for line in probe("forks", "run", "--json").json["list"] for p in line["where"]]
    for place in places:
        assert whole[place["sample"]][place["position"]]["entropy"] is not None
    assert {place["sample"] for place in places} <= {0, 1, 4, 5}
    report = probe("report", "run", "--samples", 2)
    assert "the others: probe show run --sample 4" in report.err
    assert "the run is not complete: 4 of 6 samples are there" in report.err


def test_hostile_text_is_inert(tmp_path):
    folder = tmp_path / "run\x1b[31m\u202e[/INST]"
    write_run(folder, record_of(HOSTILE, model="m\x1b]0;owned\x07\u202e[/INST]"))
    for words in ((), ("--sample", 0), ("--json",), ("--sample", 1, "--json"), ("--sample", 9)):
        result = probe("show", folder, *words)
        assert result.code == (2 if words == ("--sample", 9) else 0), result.err
        assert not invisible(result.out + result.err)
    assert "[/INST]" in probe("show", folder, "--sample", 0).out
    write_run(tmp_path / "short", record_of([b"\x1b[31m", "\u202e".encode()]))
    excerpt = probe("show", tmp_path / "short").out
    assert "⟨ESC⟩[31m⟨RLO⟩" in excerpt
    assert not invisible(excerpt)
    assert "m⟨ESC⟩]0;owned⟨BEL⟩⟨RLO⟩[/INST]" in probe("show", folder).out


def test_rollouts_are_named_as_on_the_page(tmp_path):
    record = record_of([b"a", b"b"], rows=5)
    record = dataclasses.replace(record, groups=torch.tensor([7, 3, 7, 3, 3]))
    write_run(tmp_path / "run", record)
    lines = probe("show", tmp_path / "run").out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("sample "))
    shown = [line.split()[:2] for line in lines[at + 1 : at + 6]]
    page = heatmap(open_run(tmp_path / "run").rollouts())
    names = re.findall(r"<h3[^>]*>Rollout (.*?)</h3>", page)
    assert sorted(names) == sorted(name for _, name in shown)
    assert shown == [["0", "1.1"], ["1", "2.1"], ["2", "1.2"], ["3", "2.2"], ["4", "2.3"]]
