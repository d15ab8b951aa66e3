"""A run put in place of another: the parts of a run alone move, and leftovers are sorted out."""

import pytest

from entropy_probe.storage.staging import NEW, discard, is_settled, settle, swap

PARTS = ("run.json", "samples.parquet", "tokens.parquet")


def fill(folder, content):
    folder.mkdir(exist_ok=True)
    for name in PARTS:
        (folder / name).write_text(content)


def held(folder):
    return {entry.name: entry.read_text() for entry in folder.iterdir() if entry.is_file()}


def test_the_new_parts_take_the_place_of_the_old_ones(tmp_path):
    fill(tmp_path, "old")
    for name in ("report.html", "notes.md"):
        (tmp_path / name).write_text("old")
    fill(tmp_path / NEW, "new")
    assert not is_settled(tmp_path)
    swap(tmp_path)
    settle(tmp_path)
    assert held(tmp_path) == dict.fromkeys(PARTS, "new") | {"notes.md": "old"}
    assert is_settled(tmp_path)


def test_a_run_that_never_became_whole_goes(tmp_path):
    fill(tmp_path, "old")
    (tmp_path / NEW).mkdir()
    (tmp_path / NEW / "tokens.parquet").write_text("new")
    settle(tmp_path)
    assert held(tmp_path) == dict.fromkeys(PARTS, "old")
    assert is_settled(tmp_path)


@pytest.mark.parametrize("arrived", range(len(PARTS)))
def test_a_run_that_arrived_in_part_goes_and_the_one_before_comes_back(tmp_path, arrived):
    fill(tmp_path / ".tmp-old", "old")
    fill(tmp_path / NEW, "new")
    for name in PARTS[::-1][:arrived]:
        (tmp_path / NEW / name).rename(tmp_path / name)
    settle(tmp_path)
    assert held(tmp_path) == dict.fromkeys(PARTS, "old")
    assert is_settled(tmp_path)


def test_what_is_begun_anew_keeps_no_leftovers(tmp_path):
    for name in (NEW, ".tmp-old", ".tmp-taken"):
        fill(tmp_path / name, "old")
    discard(tmp_path)
    assert list(tmp_path.iterdir()) == []
