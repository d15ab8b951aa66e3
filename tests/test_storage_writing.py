"""Runs begun, gone on with and replaced: what is there is never lost by accident."""

import pytest
from contents import contents
from records import random_record
from test_storage_plan import plan_of

from entropy_probe.storage.errors import NotARun, RunConflict, RunError
from entropy_probe.storage.parts import parts
from entropy_probe.storage.run import open_run
from entropy_probe.storage.writing import (
    begin,
    commit,
    drop_damaged,
    find_run,
    finish,
    require_writable,
)


def begun(path):
    return begin(path, plan_of(), libraries={"torch": "2"}, hardware={"cpus": 2})


def test_a_place_where_nothing_is_holds_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "killed" / ".tmp-new").mkdir(parents=True)
    for name in (".run.json.tmp-ab", ".lock", ".lock-1-of-2", ".check-x"):
        (tmp_path / "killed" / name).touch()
    for place in ("none", "empty", "killed", "deep/none"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            assert (
                find_run(tmp_path / place, **{"resume": False, "overwrite": False} | options)
                is None
            )


def test_a_run_is_found_only_when_it_is_asked_for(tmp_path):
    begun(tmp_path)
    assert find_run(tmp_path, resume=True, overwrite=False).missing == [0, 1]
    assert find_run(tmp_path, resume=False, overwrite=True).missing == [0, 1]
    with pytest.raises(RunConflict, match="already holds a run") as caught:
        find_run(tmp_path, resume=False, overwrite=False)
    assert "0 of its 2 chunks" in caught.value.why


def test_a_damaged_run_can_only_be_replaced(tmp_path):
    begun(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert find_run(tmp_path, resume=False, overwrite=True) is None
    for resume in (True, False):
        with pytest.raises(RunError, match="is damaged"):
            find_run(tmp_path, resume=resume, overwrite=False)


def test_what_is_no_run_is_in_the_way(tmp_path):
    (tmp_path / "notes").touch()
    for place in (tmp_path, tmp_path / "notes"):
        with pytest.raises(RunConflict, match="not a run"):
            find_run(place, resume=False, overwrite=True)


def test_looking_whether_a_place_can_be_written_changes_nothing(tmp_path):
    require_writable(tmp_path / "a" / "b" / "c")
    require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in ("file/run", "file", "x" * 300):
        with pytest.raises(RunError, match="cannot write to"):
            require_writable(tmp_path / place)


def test_a_run_says_where_its_numbers_come_from_after_its_first_chunk(tmp_path):
    run = begun(tmp_path)
    assert open_run(tmp_path).manifest.provenance is None
    commit(run, 1, random_record(2, seed=8))
    about = open_run(tmp_path).manifest.provenance
    assert (about["seed"], about["near_ties"]) == (8, 0)
    assert finish(run).manifest.status == "running"
    commit(run, 0, random_record(4, seed=8))
    assert open_run(tmp_path).manifest.status == "running"
    assert finish(run).manifest.status == "complete"


def test_beginning_again_removes_the_old_chunks_with_their_page_and_nothing_else(tmp_path):
    run = begun(tmp_path)
    commit(run, 0, random_record(4))
    for name in ("report.html", "notes.txt"):
        (tmp_path / name).touch()
    again = begun(tmp_path)
    assert again.missing == [0, 1]
    assert set(contents(tmp_path)) == {"run.json", "notes.txt"}


def test_damaged_chunks_and_leftovers_go_and_whole_ones_stay(tmp_path):
    run = begun(tmp_path)
    commit(run, 0, random_record(4, seed=1))
    commit(run, 1, random_record(2, seed=1))
    whole = contents(tmp_path)
    (tmp_path / ".run.json.tmp-ab").touch()
    assert drop_damaged(open_run(tmp_path)).missing == []
    assert contents(tmp_path) == whole
    # A chunk that holds other samples than the plan says is as bad as none.
    for name, file in parts(tmp_path, 0).items():
        file.write_bytes(parts(tmp_path, 1)[name].read_bytes())
    assert drop_damaged(open_run(tmp_path)).missing == [0]


def test_no_folder_is_no_run(tmp_path):
    with pytest.raises(NotARun):
        open_run(tmp_path / "none")
