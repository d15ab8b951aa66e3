"""A record written as a run at once: read back bit for bit, and never half a run."""

import json

import pytest
import torch
from contents import contents
from records import assert_equal, random_record

from entropy_probe import heatmap, open_run
from entropy_probe.storage import saving
from entropy_probe.storage.errors import RunConflict
from entropy_probe.storage.saving import save_run


def test_a_record_comes_back_bit_for_bit(tmp_path):
    record = random_record(7)
    run = save_run(record, tmp_path / "run", facts=[{"step": i} for i in range(7)])
    assert_equal(open_run(tmp_path / "run").rollouts(), record)
    assert [json.loads(f)["step"] for f in run.samples()["facts"].to_pylist()] == list(range(7))
    assert (run.complete, run.manifest.status) == (True, "complete")
    assert "Forks" in heatmap(run.rollouts())


def test_many_rows_become_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "CHUNK_ROWS", 3)
    record = random_record(8)
    run = save_run(record, tmp_path / "run")
    assert run.chunks == [0, 1, 2]
    assert_equal(run.rollouts(), record)
    last = run[7]
    assert torch.equal(last.entropy, record[7].entropy[:, : last.tokens.shape[1]])
    assert bool(last.valid.any())


def test_a_taken_folder_is_replaced_only_where_asked(tmp_path):
    first, second = random_record(3), random_record(4, seed=1)
    save_run(first, tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(RunConflict, match="already holds a run"):
        save_run(second, tmp_path / "run")
    assert contents(tmp_path) == before
    save_run(second, tmp_path / "run", overwrite=True)
    assert_equal(open_run(tmp_path / "run").rollouts(), second)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    record = random_record(3)
    save_run(record, tmp_path / "run")
    before = contents(tmp_path)

    def fail(*args, **options):
        raise OSError("no")

    monkeypatch.setattr(saving, "write_manifest", fail)
    with pytest.raises(OSError, match="no"):
        save_run(record, tmp_path / "run", overwrite=True)
    assert contents(tmp_path) == before


def test_a_run_without_rows_or_with_other_facts_is_refused(tmp_path):
    record = random_record(3)
    with pytest.raises(ValueError, match="no rows to write"):
        save_run(record[torch.zeros(3, dtype=torch.bool)], tmp_path / "run")
    with pytest.raises(ValueError, match="facts of 3 rows, got 2"):
        save_run(record, tmp_path / "run", facts=[{}, {}])
    assert list(tmp_path.iterdir()) == []
