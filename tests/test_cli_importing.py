"""`probe import`: the words around the importers, which have tests of their own."""

import json
from pathlib import Path

import pytest
from commands import files_under, probe, tiny_folder

from entropy_probe import open_run
from entropy_probe.storage.locking import writing


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -3.0}]
    content = [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}}
    Path("theirs.json").write_text(json.dumps({"model": "m\x1b[31m", "choices": [choice]}))


def test_a_file_becomes_a_run():
    result = probe("import", "theirs.json")
    assert (result.code, result.out) == (0, "runs/theirs\n")
    assert "entropies are lower bounds" in result.err
    assert "\x1b" not in result.err
    run = open_run("runs/theirs")
    assert (len(run), run.provenance.source) == (1, "import")
    assert probe("forks", "runs/theirs").code == 0
    given = probe("import", "theirs.json", "--format", "openai", "-o", "mine", "--json").json
    assert given == {
        "run": "mine", "samples": 1, "skipped": 0, "source": "import",
        "missing_mass": open_run("mine").provenance.missing_mass,
    }  # fmt: skip


def test_what_is_left_out_is_said():
    good = json.loads(Path("theirs.json").read_text())
    bare = {"choices": [{"logprobs": None}]}
    lines = [good, bare, {"custom_id": "a", "response": None, "error": {}}, good]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = probe("import", "p.jsonl")
    assert (result.code, result.out) == (0, "runs/p\n")
    assert "2 of 4 left out: errors, or without numbers per token" in result.err
    given = probe("import", "p.jsonl", "--json", "-o", "again").json
    assert (given["samples"], given["skipped"]) == (2, 2)
    assert "left out" not in probe("import", "theirs.json").err


def test_a_writer_is_not_overwritten_and_files_of_ones_own_stay():
    probe("import", "theirs.json", "-o", "run")
    Path("run/notes.md").write_text("mine")
    before = files_under(Path("run"))
    with writing(Path("run")):
        refused = probe("import", "theirs.json", "-o", "run", "--overwrite")
        assert refused.code == 2
        assert "another process is writing" in refused.told[0]
    assert files_under(Path("run")) == before
    assert probe("import", "theirs.json", "-o", "run", "--overwrite").code == 0
    assert Path("run/notes.md").read_text() == "mine"


@pytest.mark.parametrize(("given", "name"), [(".", "mine"), ("..", "outer"), ("../mine", "mine")])
def test_a_folder_that_one_stands_in_gives_the_run_its_name(monkeypatch, given, name):
    line = {"schema_version": 1, "step": 1, "token_ids": [5, 6], "loss_mask": [False, True]}
    line |= {"entropy": [0.0, 0.5], "trainer_logprobs": [0.0, -1.0]}
    Path("outer/mine").mkdir(parents=True)
    Path("outer/mine/rank_0.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.chdir("outer/mine")
    result = probe("import", given)
    assert (result.code, result.out) == (0, f"runs/{name}\n"), result.err


def test_a_run_fills_the_empty_folder_that_one_stands_in(monkeypatch):
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    result = probe("import", "../theirs.json", "-o", ".")
    assert (result.code, result.out) == (0, ".\n"), result.err
    assert len(open_run(".")) == 1


def test_texts_alone_are_scored_next():
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = {"step": [1, 1], "prompt": ["w1 w2 ", "w3 "], "completion": ["w4 w5 ", "w6 w7 "]}
    pq.write_table(pa.table(rows), "completions.parquet")
    result = probe("import", "completions.parquet", "-o", "texts")
    assert result.code == 0, result.err
    assert "next: probe score texts --model MODEL" in result.err
    reading = probe("report", "texts")
    assert reading.code == 1
    assert "probe score" in " ".join(reading.told)
    scored = probe("score", "texts", "--model", tiny_folder(), "-o", "scored")
    assert scored.code == 0, scored.err
    assert "texts does not tell its temperature: scoring at 1" in scored.err
    again = probe("score", "texts", "--model", tiny_folder(), "-o", "at", "--temperature", 0.5)
    assert "does not tell" not in again.err
    assert open_run("at").provenance.entropy_temperature == 0.5
    assert int(open_run("scored").rollouts().valid.sum()) == 4


def test_a_tokenizer_gives_texts_to_ids():
    line = {"schema_version": 1, "step": 1, "token_ids": [5, 6, 7]}
    line |= {"loss_mask": [False, True, True], "entropy": [0.0, 0.5, 0.25]}
    line |= {"trainer_logprobs": [0.0, -1.0, -2.0]}
    Path("export.jsonl").write_text(json.dumps(line) + "\n")
    result = probe("import", "export.jsonl", "--tokenizer", tiny_folder(), "-o", "run")
    assert result.code == 0, result.err
    assert open_run("run").rollouts().completion(0) == "w2 w3 "


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("nothing.json",), 1, "no such file"),
        (("theirs.json", "--format", "trl"), 1, "cannot be imported"),
        (("theirs.json", "--format", "xml"), 2, "'--format'"),
        (("theirs.json", "--tokenizer", "./nothing"), 1, "no folder './nothing'"),
        (("theirs.json", "-o", "/proc/x"), 1, "cannot write to '/proc/x'"),
        (("odd.json",), 1, "looks like none of"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(words, code, text):
    Path("odd.json").write_text('{"a": 1}')
    before = files_under(Path())
    result = probe("import", *words, "--json")
    assert result.code == code, result.err
    assert text in " ".join(result.told)
    assert text in result.json["error"]["message"]
    assert files_under(Path()) == before
