"""`probe export`: the words around `export_run`, which has tests of its own."""

import json
from pathlib import Path

import pytest
from commands import files_under, probe, write_run
from hostile import record_of


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), record_of([b"a ", b"b"], rows=3))


@pytest.mark.parametrize(
    ("to", "out"),
    [("parquet", "run-parquet"), ("csv", "run-csv"), ("jsonl", "run.jsonl"),
     ("datasets", "run-datasets")],
)  # fmt: skip
def test_every_format_has_a_place(to, out):
    result = probe("export", "run", "--to", to)
    assert (result.code, result.out) == (0, f"{out}\n")
    given = probe("export", "run/", "--to", to, "-o", "there", "--json").json
    assert given == {"export": "there", "to": to, "samples": 3}
    if to == "jsonl":
        lines = [json.loads(line) for line in Path(out).read_text().splitlines()]
        assert [line["completion"] for line in lines] == ["a b"] * 3
        assert Path("there").read_bytes() == Path(out).read_bytes()
    else:
        assert files_under(Path("there")).keys() == files_under(Path(out)).keys()


@pytest.mark.parametrize(("stood_in", "run"), [("run", "."), ("run/tokens.parquet", "..")])
def test_the_run_one_stands_in_is_exported_beside_it(monkeypatch, stood_in, run):
    beside = Path("run.jsonl").resolve()
    monkeypatch.chdir(stood_in)
    assert Path(probe("export", run, "--to", "jsonl").out.strip()) == beside
    assert beside.exists()


def test_an_earlier_export_is_kept_unless_told_otherwise():
    probe("export", "run", "--to", "csv")
    Path("run-csv/samples.csv").write_text("edited")
    refused = probe("export", "run", "--to", "csv")
    assert refused.code == 2
    assert "already there" in refused.told[0]
    assert Path("run-csv/samples.csv").read_text() == "edited"
    assert probe("export", "run", "--to", "csv", "--overwrite").code == 0
    assert Path("run-csv/samples.csv").read_text() != "edited"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("nothing",), 2, "is not a run directory"),
        (("run", "--to", "xml"), 2, "'--to'"),
        (("run", "-o", "/proc/x"), 1, "cannot write"),
        (("empty",), 5, "none of its chunks"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(words, code, text):
    Path("empty").mkdir()
    Path("empty/run.json").write_bytes(Path("run/run.json").read_bytes())
    before = files_under(Path())
    result = probe("export", *words)
    assert result.code == code, result.err
    assert text in " ".join(result.told)
    assert files_under(Path()) == before
