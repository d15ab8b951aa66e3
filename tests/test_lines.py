import json
import subprocess
import sys

import pytest

from analyses.lines import Lines, add_line, read_lines


def test_a_key_is_computed_once_and_found_again(tmp_path, capsys):
    path, made = tmp_path / "folder" / "lines.jsonl", []

    def make():
        made.append(1)
        return {"value": 7}

    for _ in range(2):
        assert Lines(path).get("a", make) == {"key": "a", "value": 7}
    assert made == [1]
    assert json.loads(capsys.readouterr().out) == {"key": "a", "value": 7}


@pytest.mark.parametrize("rest", [b'{"key": "b", "va', b"{", b"\xff"])
def test_a_line_that_broke_off_is_left_out_and_goes_with_the_next(tmp_path, rest):
    path = tmp_path / "lines.jsonl"
    add_line(path, {"key": "a"})
    path.write_bytes(path.read_bytes() + rest)
    assert read_lines(path) == [{"key": "a"}]
    add_line(path, {"key": "c"})
    assert path.read_bytes() == b'{"key": "a"}\n{"key": "c"}\n'


def test_reading_changes_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"key": "a"}\n{"ke')
    Lines(path)
    assert path.read_bytes() == b'{"key": "a"}\n{"ke'
    assert read_lines(tmp_path / "none.jsonl") == []


def test_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "lines.jsonl"
    code = (
        "import sys; from pathlib import Path; from analyses.lines import add_line\n"
        "for i in range(40): add_line(Path(sys.argv[1]), {'key': sys.argv[2] + str(i) * 500})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len({line["key"] for line in read_lines(path)}) == 120
