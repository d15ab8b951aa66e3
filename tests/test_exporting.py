"""Exports: every row and number arrives in the other format, and no formula with them."""

import csv
import json
import math
import subprocess

import pyarrow.parquet as pq
import pytest
from contents import contents
from records import random_record
from test_storage_plan import plan_of

from entropy_probe.exporting import EXPORTS, export_run
from entropy_probe.storage.errors import RunConflict, RunError
from entropy_probe.storage.parts import parts
from entropy_probe.storage.run import open_run
from entropy_probe.storage.saving import save_run
from entropy_probe.storage.writing import begin, commit

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


@pytest.fixture
def run(tmp_path):
    """Give a run of two chunks, hostile tokens and rewards of which one is NaN."""
    path = tmp_path / "run"
    problems = [{"id": "=1", "answer": "-2", "facts": {"a": 1}}] * 3
    plan = plan_of(problems=problems)
    begin(path, plan, libraries={}, hardware={})
    for index, rows in enumerate((4, 2)):
        commit(open_run(path), index, random_record(rows, seed=index, longest=40))
    return open_run(path)


def test_parquet_is_the_tables_whole(run, tmp_path):
    out = export_run(run, tmp_path / "out")
    for name in ("samples", "tokens"):
        mine = pq.read_table(out / f"{name}.parquet")
        theirs = pq.read_table(run.path / f"{name}.parquet").replace_schema_metadata()
        assert mine.schema == theirs.schema
        assert str(mine.to_pylist()) == str(theirs.to_pylist())  # NaN equals NaN in print
    assert json.loads((out / "provenance.json").read_text()) == run.provenance.to_dict()


def test_csv_has_every_cell_and_no_formula(run, tmp_path):
    out = export_run(run, tmp_path / "out", "csv")
    for name in ("samples", "tokens"):
        table = pq.read_table(run.path / f"{name}.parquet")
        with (out / f"{name}.csv").open(newline="", encoding="utf-8") as handle:
            lines = list(csv.DictReader(handle))
        assert len(lines) == table.num_rows > 0
        for line, row in zip(lines, table.to_pylist(), strict=True):
            for column, value in row.items():
                cell = line[column]
                if isinstance(value, str):
                    assert cell == ("'" + value if value.startswith(FORMULAS) else value)
                    assert not cell.startswith(FORMULAS)
                elif isinstance(value, float) and not math.isnan(value):
                    assert float(cell) == value
                elif isinstance(value, bytes):
                    assert bytes.fromhex(cell) == value
                elif isinstance(value, list):
                    shown = [v.hex() if isinstance(v, bytes) else v for v in value]
                    assert json.loads(cell) == shown
                elif value is None:
                    assert cell == ""
    assert any(line["text"].startswith("'=") for line in lines)


def test_json_lines_hold_a_sample_each_with_its_tokens(run, tmp_path):
    out = export_run(run, tmp_path / "out.jsonl", "jsonl")
    text = out.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    lines = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    whole = run.rollouts()
    assert len(lines) == len(whole)
    for i, line in enumerate(lines):
        length = int(whole.lengths[i])
        assert line["token_id"] == whole.tokens[i, :length].tolist()
        pairs = zip(whole.entropy[i].tolist(), whole.valid[i].tolist(), strict=True)
        entropy = [value if known else None for value, known in pairs]
        assert line["entropy"] == entropy[:length]
        assert line["completion"] == whole.completion(i)
        assert line["facts"] == {"a": 1}
        reward = float(whole.rewards[i])
        assert line["reward"] == (None if math.isnan(reward) else reward)
        first = next((t for t in range(length) if whole.valid[i, t]), None)
        if first is not None:
            ids = whole.alternatives.ids[i, first].tolist()
            pieces = [whole.pieces[token].decode("utf-8", "replace") for token in ids]
            assert line["top_texts"][first] == pieces


@pytest.mark.parametrize("to", EXPORTS)
def test_halves_of_surrogate_pairs_do_not_stop_an_export(tmp_path, to):
    facts = {"messages": [[{"role": "user", "content": "hi \ud83d ✨"}], "\udc00"], "\ud800": 1}
    run = save_run(random_record(1), tmp_path / "run", facts=[facts])
    out = export_run(run, tmp_path / "out", to)
    if to == "jsonl":
        (line,) = out.read_bytes().decode("utf-8").splitlines()
        shown = {"messages": [[{"role": "user", "content": "hi \ufffd ✨"}], "\ufffd"], "\ufffd": 1}
        assert json.loads(line)["facts"] == shown
    elif to != "csv":
        assert json.loads(pq.read_table(out / "samples.parquet")["facts"][0].as_py()) == facts
    else:
        with (out / "samples.csv").open(newline="", encoding="utf-8") as handle:
            assert json.loads(next(csv.DictReader(handle))["facts"]) == facts


def test_the_datasets_folder_has_a_card_that_names_its_tables(run, tmp_path):
    out = export_run(run, tmp_path / "out", "datasets")
    card = (out / "README.md").read_text()
    assert card.startswith("---\nconfigs:")
    for name in ("samples", "tokens"):
        assert f"config_name: {name}" in card
        assert f"data_files: {name}.parquet" in card
        assert (out / f"{name}.parquet").is_file()


def test_the_datasets_folder_loads(run, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    out = export_run(run, tmp_path / "out", "datasets")
    tokens = datasets.load_dataset(str(out), "tokens", cache_dir=str(tmp_path / "cache"))["train"]
    assert tokens["token_id"][:] == pq.read_table(out / "tokens.parquet")["token_id"].to_pylist()
    assert len(datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]) == 6


@pytest.mark.parametrize("to", EXPORTS)
def test_what_is_there_stays_unless_it_is_to_be_replaced(run, tmp_path, to):
    out = export_run(run, tmp_path / "out", to)
    before = contents(tmp_path)
    with pytest.raises(RunConflict, match="already there"):
        export_run(run, out, to)
    assert contents(tmp_path) == before
    export_run(run, out, to, overwrite=True)
    assert contents(tmp_path) == before


def test_other_files_are_never_replaced(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(RunConflict, match="in the way"):
        export_run(run, tmp_path / "out", "jsonl", overwrite=True)
    export_run(run, tmp_path / "out", "csv", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "x"
    with pytest.raises(RunConflict, match="in the way"):
        export_run(run, tmp_path / "out" / "thesis.txt", "csv", overwrite=True)


@pytest.mark.parametrize("to", EXPORTS)
def test_a_damaged_run_and_an_unwritable_place_leave_nothing(run, tmp_path, to):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write to"):
        export_run(run, tmp_path / "file" / "out", to)
    parts(run.path, 1)["tokens"].write_bytes(b"gone")
    with pytest.raises(RunError, match="cannot be read"):
        export_run(run, tmp_path / "out", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_full_disk_leaves_nothing(run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:  # noqa: S603
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(RunError, match="cannot write to") as caught:
            export_run(run, disk / "out", "csv")
        assert "no space left" in caught.value.why
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_runs_without_samples_and_unknown_formats_are_refused(tmp_path):
    run = begin(tmp_path / "run", plan_of(), libraries={}, hardware={})
    with pytest.raises(RunError, match="no samples to export"):
        export_run(run, tmp_path / "out")
    with pytest.raises(ValueError, match="to must be one of"):
        export_run(run, tmp_path / "out", "xlsx")
