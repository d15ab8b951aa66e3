"""Verbs of other packages: listed without being imported, and broken ones harm nothing else."""

import sys
import time
from importlib import metadata

import click
import pytest
from commands import probe

from entropy_probe.cli.group import VERBS
from entropy_probe.cli.plugins import GROUP, help_line, load, owner, plugins

COMMAND = '''
"""Counts."""
import sys

import click

print("imported", file=sys.stderr)


@click.command()
def count():
    """Count to three.

    Not further.
    """
    click.echo("1 2 3")
'''


@pytest.fixture
def others(tmp_path, monkeypatch):
    """Install a package, in a folder of its own, with the verbs that a test gives it."""

    def install(verbs, files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        about = tmp_path / "other_probe-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-probe\nVersion: 1.0\n")
        lines = [f"[{GROUP}]", *(f"{name} = {target}" for name, target in verbs.items())]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    for name in [n for n in sys.modules if n.partition(".")[0] == "other_probe"]:
        del sys.modules[name]


PACKAGE = {"other_probe/__init__.py": "raise ImportError('too early')\n"}


def lines_of_help():
    out = probe("--help").out.splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]) for line in out if line.startswith("  ")}


def test_a_verb_is_listed_with_its_help_and_not_imported(others):
    others({"count": "other_probe.cli.count:count"}, {"other_probe/cli/count.py": COMMAND})
    result = probe("--help")
    assert (result.code, result.err) == (0, "")
    assert lines_of_help()["count"] == "Count to three."
    assert "other_probe" not in sys.modules
    called = probe("count")
    assert (called.code, called.out, called.err) == (0, "1 2 3\n", "imported\n")
    assert probe("count", "--help").out.startswith("Usage: probe count")


@pytest.mark.parametrize(
    ("target", "files", "why", "line"),
    [
        ("other_probe.gone:count", {"other_probe/__init__.py": ""}, "No module named", "package"),
        ("nowhere_at_all:count", {}, "No module named", "package"),
        ("other_probe.cli:count", {"other_probe/cli.py": "(\n"}, "SyntaxError", "Cannot be read"),
        ("other_probe.cli:cuont", {"other_probe/cli.py": COMMAND}, "cuont", "package"),
        ("other_probe.cli:count", PACKAGE | {"other_probe/cli.py": COMMAND}, "too early", "Count"),
        ("other_probe.cli:sys", {"other_probe/cli.py": COMMAND}, "no click command", "package"),
    ],
)
def test_a_broken_verb_says_so_and_no_other_is_lost(others, target, files, why, line):
    others({"count": target}, files)
    assert line in lines_of_help()["count"]
    assert {*VERBS, "count"} <= lines_of_help().keys()
    result = probe("count", "3")
    assert result.code == 1
    what, reason, fix = result.told
    assert "'count'" in what
    assert "other-probe" in what
    assert why in reason
    assert "pip install" in fix
    assert probe("count", "--json").json["error"]["code"] == "failed"
    assert probe("ls", "/nothing").code == 2


def test_shells_complete_beside_a_broken_verb(others, monkeypatch):
    others({"count": "other_probe.gone:count"}, {})
    monkeypatch.setenv("_PROBE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "probe repo")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert "report" in probe().out


def test_the_first_of_two_verbs_of_one_name_is_taken(monkeypatch):
    entries = [metadata.EntryPoint("count", f"a{i}:count", GROUP) for i in range(2)]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    assert plugins()["count"].value == "a0:count"
    assert owner(entries[0]) == "a0"


def test_wrong_usage_of_an_added_verb_points_to_its_help(others):
    others({"count": "other_probe.cli:count"}, {"other_probe/cli.py": COMMAND})
    assert "`probe count --help`" in probe("count", "x").told[2]


def test_our_own_added_verbs_load_and_are_described():
    ours = {n: e for n, e in plugins().items() if e.module.startswith("sae_steering.")}
    for name, entry in ours.items():
        command = load(entry)
        assert isinstance(command, click.Command)
        assert command.help.partition("\n")[0] == help_line(entry), name


def test_listing_takes_little_time():
    probe("--help")
    begun = time.process_time()
    probe("--help")
    assert time.process_time() - begun < 0.2
