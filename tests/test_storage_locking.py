"""Who may write a run directory: one process, or the shards of one plan, each once."""

import multiprocessing
import time

import pytest

from entropy_probe.storage import locking
from entropy_probe.storage.errors import RunConflict, RunError
from entropy_probe.storage.locking import writing


def test_locks_of_the_dead_and_of_the_done_do_not_hold(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on nowhere\n")
    with writing(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(RunConflict), writing(tmp_path):
            pass
        with pytest.raises(RunConflict), writing(tmp_path, shard=(1, 2)):
            pass
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path):
        pass


def test_shards_share_and_each_comes_once(tmp_path):
    with writing(tmp_path, shard=(1, 2)), writing(tmp_path, shard=(2, 2)):
        with pytest.raises(RunConflict), writing(tmp_path, shard=(1, 2)):
            pass
        with pytest.raises(RunConflict), writing(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_goes_and_one_that_was_there_stays(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "new"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with writing(tmp_path / "old"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_place_without_room_for_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write to"), writing(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks on the file system"), writing(tmp_path):
        (tmp_path / "run.json").touch()


def count_up(path, times):
    """Add one to a number in a file, without any care, but as the only writer."""
    for _ in range(times):
        while True:
            try:
                with writing(path):
                    value = int((path / "number").read_text())
                    (path / "number").write_text(str(value + 1))
                break
            except RunConflict:
                time.sleep(0.001)


def test_writers_that_keep_coming_and_going_never_overlap(tmp_path):
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=count_up, args=(tmp_path, 25)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert (tmp_path / "number").read_text() == "75"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]
