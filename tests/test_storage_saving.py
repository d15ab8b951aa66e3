"""A record written as a run at once: read back bit for bit, and never half a run."""

import json
import multiprocessing
import os

import pytest
import torch
from contents import contents
from records import assert_equal, random_record

from entropy_probe import heatmap, open_run
from entropy_probe.storage import saving, staging
from entropy_probe.storage.errors import RunConflict
from entropy_probe.storage.locking import writing
from entropy_probe.storage.saving import put_in_place, save_run


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


def test_while_another_process_writes_nothing_is_replaced(tmp_path):
    record = random_record(3)
    save_run(record, tmp_path / "run")
    before = contents(tmp_path)
    with writing(tmp_path / "run"):
        with pytest.raises(RunConflict, match="another process is writing"):
            save_run(random_record(4), tmp_path / "run", overwrite=True)
        found = contents(tmp_path)
        found.pop("run/.lock")
    assert found == before == contents(tmp_path)


def test_a_second_writer_is_refused_and_the_first_one_goes_on(tmp_path):
    out = tmp_path / "run"
    with put_in_place(out, what="it", overwrite=False) as folder:
        for overwrite in (False, True):
            with pytest.raises(RunConflict, match="another process is writing"):
                save_run(random_record(3), out, overwrite=overwrite)
        assert folder.is_dir()
        save_run(random_record(2), tmp_path / "whole")
        for entry in (tmp_path / "whole").iterdir():
            entry.rename(folder / entry.name)
    assert_equal(open_run(out).rollouts(), random_record(2))


def test_a_run_that_came_meanwhile_is_not_replaced_unasked(tmp_path, monkeypatch):
    out = tmp_path / "run"
    check = saving.require_writable

    def late(path):
        monkeypatch.setattr(saving, "require_writable", check)
        check(path)
        save_run(random_record(3), path)

    monkeypatch.setattr(saving, "require_writable", late)
    with pytest.raises(RunConflict, match="already holds a run"):
        save_run(random_record(4), out)
    assert_equal(open_run(out).rollouts(), random_record(3))


def test_files_that_are_no_part_of_the_run_stay(tmp_path):
    out = tmp_path / "run"
    save_run(random_record(3), out)
    (out / "notes.md").write_text("mine")
    (out / "figures").mkdir()
    (out / "figures" / "one.png").write_bytes(b"1")
    (out / "report.html").write_text("of the run before")
    save_run(random_record(4), out, overwrite=True)
    assert (out / "notes.md").read_text() == "mine"
    assert (out / "figures" / "one.png").read_bytes() == b"1"
    assert not (out / "report.html").exists()
    assert_equal(open_run(out).rollouts(), random_record(4))


def test_the_folder_that_one_stands_in_is_written_and_stays_the_same_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_run(random_record(3), ".")
    save_run(random_record(4), ".", overwrite=True)
    assert_equal(open_run(".").rollouts(), random_record(4))
    assert_equal(open_run(tmp_path).rollouts(), random_record(4))


PARTS = {"run.json", "samples.parquet", "tokens.parquet", "activations"}
RENAMES = 2 * len(PARTS) + 1  # the old run's out, the folder that they are in, the new one's in


def stop_at(monkeypatch, number, stop):
    """Call something in place of the swap's rename of that number; give a list as long as many."""
    counts, rename = [], staging.Path.rename

    def counting(self, target):
        counts.append(1)
        return stop() if len(counts) == number + 1 else rename(self, target)

    monkeypatch.setattr(staging.Path, "rename", counting)
    return counts


@pytest.mark.parametrize("number", range(RENAMES + 1))
def test_an_interrupt_at_any_moment_leaves_the_run_that_was_there(tmp_path, monkeypatch, number):
    out, new = tmp_path / "run", random_record(4)
    save_run(random_record(3), out)
    (out / "notes.md").write_text("mine")
    before = contents(out)

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        counts = stop_at(patch, number, interrupt)
        if number < RENAMES:
            with pytest.raises(KeyboardInterrupt):
                save_run(new, out, overwrite=True)
            assert contents(out) == before
        else:
            save_run(new, out, overwrite=True)
            assert len(counts) == RENAMES  # so that every moment was tried
            assert_equal(open_run(out).rollouts(), new)
    assert {entry.name for entry in out.iterdir()} == PARTS | {"notes.md"}


@pytest.mark.parametrize("number", range(RENAMES))
def test_a_run_that_a_kill_took_away_comes_back_with_the_next_call(tmp_path, monkeypatch, number):
    out = tmp_path / "run"
    save_run(random_record(3), out)
    before = contents(out)
    killed(monkeypatch, number, out)
    with pytest.raises(RunConflict, match="already holds a run"):
        save_run(random_record(5), out)
    assert contents(out) == before
    save_run(random_record(5), out, overwrite=True)
    assert_equal(open_run(out).rollouts(), random_record(5))
    assert {entry.name for entry in out.iterdir()} == PARTS


@pytest.mark.parametrize("number", range(len(PARTS) + 1))
def test_a_first_run_that_was_killed_leaves_room_for_the_next(tmp_path, monkeypatch, number):
    out = tmp_path / "run"
    killed(monkeypatch, number, out)
    save_run(random_record(5), out)
    assert_equal(open_run(out).rollouts(), random_record(5))
    assert {entry.name for entry in out.iterdir()} == PARTS


def killed(monkeypatch, number, out):
    """Write a run in a process that is killed at a rename."""
    with monkeypatch.context() as patch:
        stop_at(patch, number, lambda: os._exit(9))
        child = multiprocessing.get_context("fork").Process(
            target=save_run, args=(random_record(4), out), kwargs={"overwrite": True}
        )
        child.start()
        child.join(120)
    assert child.exitcode == 9
