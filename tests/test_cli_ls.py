"""`probe ls`: every run of a folder, damaged ones too, and names that do no harm."""

import os
from pathlib import Path

import pytest
from commands import probe, tiny_folder, write_run
from hostile import record_of
from test_terminal import invisible

from entropy_probe.storage.staging import NEW


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def capture(out, *words):
    return probe(
        "capture", "--model", tiny_folder(), "-p", "w1 ", "-p", "w2 ", "--chunk-prompts", 1,
        "--max-new-tokens", 2, "--n", 3, *words, "-o", out, "-q",
    )  # fmt: skip


def test_runs_are_listed_with_what_is_there_of_them():
    capture("runs/whole")
    capture("runs/part")
    Path("runs/part/samples.parquet/chunk-00001.parquet").unlink()
    write_run(Path("deep/er/theirs"), record_of([b"a"], rows=4))
    write_run(Path("too/deep/er/theirs"), record_of([b"a"]))
    found = {run["run"]: run for run in probe("ls", "--json").json}
    assert set(found) == {"runs/whole", "runs/part"}
    deep = probe("ls", "deep", "--json").json
    assert deep[0].items() >= {
        "run": "deep/er/theirs", "kind": "import", "samples": 4, "status": "complete",
        "model": "organism:test", "created": "2026-01-02T03:04:05+00:00",
    }.items()  # fmt: skip
    whole, part = found["runs/whole"], found["runs/part"]
    assert (whole["samples"], whole["planned"], whole["status"]) == (6, 6, "complete")
    assert (part["samples"], part["planned"], part["status"]) == (3, 6, "not complete")
    assert whole["model"] == tiny_folder()
    lines = probe("ls", "runs").out.splitlines()
    assert lines[0].split()[:4] == ["run", "model", "samples", "status"]
    assert {line.split()[0]: line.split()[2] for line in lines[1:]} == {
        "runs/whole": "6/6", "runs/part": "3/6",
    }  # fmt: skip


def test_the_newest_comes_first():
    for name, day in (("a", "02"), ("b", "03"), ("c", "01")):
        write_run(Path(name), record_of([b"a"]))
        manifest = Path(name, "run.json")
        manifest.write_text(manifest.read_text().replace("2026-01-02", f"2026-01-{day}"))
    assert [run["run"] for run in probe("ls", "--json").json] == ["b", "a", "c"]


def test_a_run_itself_can_be_listed():
    write_run(Path("mine"), record_of([b"a"]))
    assert [run["run"] for run in probe("ls", "mine", "--json").json] == ["mine"]


def test_a_damaged_run_is_listed_as_such():
    write_run(Path("runs/good"), record_of([b"a"]))
    for name, content in (("bad", b"{"), ("new", b'{"schema_version": 99}'), ("odd", b"[]")):
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/run.json").write_bytes(content)
    write_run(Path("runs/cut"), record_of([b"a"]))
    Path("runs/cut/samples.parquet/chunk-00000.parquet").write_bytes(b"PAR1")
    found = {Path(run["run"]).name: run for run in probe("ls", "--json").json}
    assert {name: run["status"] for name, run in found.items()} == {
        "good": "complete", "bad": "damaged", "new": "damaged", "odd": "damaged",
        "cut": "damaged",
    }  # fmt: skip
    assert "schema version is 99" in found["new"]["why"]
    assert "damaged: it is not JSON" in probe("ls").out


def test_no_runs_is_a_code_of_its_own():
    Path("empty").mkdir()
    assert (probe("ls", "empty").code, probe("ls", "empty").out) == (5, "")
    assert probe("ls", "nothing").code == 2
    Path("file").touch()
    assert probe("ls", "file").code == 2


def test_names_are_inert():
    write_run(Path("a\x1b[31m\u202eb[/INST]"), record_of([b"a"], model="m\x1b[2J\n[/INST]"))
    os.mkdir(b"\xff\x9b31m")  # noqa: PTH102 - a name that is no text
    write_run(Path(os.fsdecode(b"\xff\x9b31m/run")), record_of([b"a"]))
    for words in ((), ("--json",)):
        result = probe("ls", *words)
        assert result.code == 0
        assert not invisible(result.out + result.err)
        assert len(result.out.splitlines()) == (3 if not words else 1)
    assert "⟨ESC⟩[31m⟨RLO⟩b[/INST]" in probe("ls").out


def test_where_there_is_nothing_json_is_one_document():
    Path("empty").mkdir()
    result = probe("ls", "empty", "--json")
    assert result.code == 5
    assert result.json["error"]["code"] == "nothing"


def test_a_run_that_is_not_put_in_place_yet_is_none():
    write_run(Path("mine"), record_of([b"a"]))
    write_run(Path("mine") / NEW, record_of([b"a"]))
    assert [run["run"] for run in probe("ls", "--json").json] == ["mine"]
