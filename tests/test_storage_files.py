"""Files that appear whole or not at all."""

import errno
import os

import pytest

from entropy_probe.storage.files import is_full, remove_leftovers, replacing


def write_half(target, error):
    with replacing(target) as temporary:
        temporary.write_text("half")
        raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "file"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(error):
        write_half(target, error)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_exclusively_only_the_first_writer_gets_through(tmp_path):
    target = tmp_path / "file"
    with replacing(target, exclusive=True) as temporary:
        temporary.write_text("first")
    with pytest.raises(FileExistsError), replacing(target, exclusive=True) as temporary:
        temporary.write_text("second")
    assert target.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert names(tmp_path) == ["file"]


def test_leftovers_of_killed_writers_are_told_from_other_files(tmp_path):
    for name in (".file.tmp-12", ".file.tmp-ab", ".file2.tmp-1", "file", ".file"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "file")
    assert names(tmp_path) == [".file", ".file2.tmp-1", "file"]


def test_a_full_disk_is_recognised_whoever_says_so():
    assert is_full(OSError(errno.ENOSPC, "no space"))
    assert is_full(OSError(errno.EDQUOT, "quota"))
    assert is_full(ValueError("I/O error: No space left on device (os error 28)"))
    assert not is_full(OSError(errno.EACCES, "denied"))
    assert not is_full(ValueError("os error 2"))


def test_a_pipe_stays_a_pipe_and_a_link_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a device or a pipe"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_text() == "new"
    assert names(tmp_path) == ["folder", "link", "pipe"]
