"""The README says what the package does: its commands exist, its code runs, its tree is there."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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


@pytest.mark.parametrize(
    "line", [line for b in blocks("sh") for line in b.splitlines() if line.startswith("probe ")]
)
def test_every_command_and_option_exists(line, capsys):
    from entropy_probe.cli import main

    words = shlex.split(line, comments=True)[1:]
    assert main([words[0], "--help"]) == 0
    text = capsys.readouterr().out
    for word in words[1:]:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), (line, word)


def test_the_layout_is_there():
    (tree,) = [b for b in re.findall(r"```\n(.*?)```", README, re.DOTALL) if "rollout.py" in b]
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT if not line.startswith(" ") else folder
        path = folder / name
        assert path.exists(), name
        if name.endswith("/") and not line.startswith(" "):
            folder = path


def test_module_lines_equal_the_modules_docstrings():
    (tree,) = [b for b in re.findall(r"```\n(.*?)```", README, re.DOTALL) if "rollout.py" in b]
    for line in tree.splitlines():
        if line.startswith("  ") and line.split()[0].endswith(".py"):
            name, words = line.split(maxsplit=1)
            first = (ROOT / "entropy_probe" / name).read_text(encoding="utf-8").splitlines()[0]
            assert first.startswith(f'"""{words[0].upper()}{words[1:]}'), name
