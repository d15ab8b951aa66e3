"""The README says what the package does: its commands exist, its code runs, its tree is there."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def blocks(language):
    return [text for name, text in FENCED if name == language]


def layout():
    (tree,) = [text for text in blocks("") if "rollout.py" in text]
    return tree.splitlines()


def test_python_blocks_run():
    found = blocks("python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), {})


def test_set_up_takes_two_commands():
    for mark in ("# main", "# tests"):
        (block,) = [b for b in blocks("sh") if b.startswith(mark)]
        assert len(block.strip().splitlines()) == 2
        assert "-c constraints.txt" in block


def test_the_table_of_presets_is_the_programs():
    from entropy_probe.training.presets import presets_table

    assert presets_table().strip() in README


@pytest.mark.parametrize(
    "line", [line for b in blocks("sh") for line in b.splitlines() if line.startswith("probe ")]
)
def test_every_command_and_option_exists(line, capsys):
    from entropy_probe.cli import main

    words = shlex.split(line, comments=True)[1:]
    assert main([words[0], "--help"]) == 0
    text = capsys.readouterr().out
    if "COMMAND [ARGS]" in text:  # a group of verbs
        assert main([*words[:2], "--help"]) == 0
        text = capsys.readouterr().out
    for word in words[1:]:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), (line, word)


def test_the_layout_is_there():
    folder = ROOT
    for line in layout():
        name = line.split()[0]
        path = (folder if line.startswith(" ") else ROOT) / name
        assert path.exists(), name
        if not line.startswith(" "):
            folder = path


def test_module_lines_equal_the_modules_docstrings():
    for line in layout():
        if line.startswith("  ") and line.split()[0].endswith(".py"):
            name, words = line.split(maxsplit=1)
            first = (ROOT / "entropy_probe" / name).read_text(encoding="utf-8").splitlines()[0]
            assert first.startswith(f'"""{words[0].upper()}{words[1:]}'), name
