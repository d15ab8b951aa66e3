"""The command line as a whole: its help, its errors, its exit codes."""

import json
import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import click
import pytest
from commands import Result, probe
from test_terminal import invisible

from entropy_probe import __version__
from entropy_probe.cli.failing import CODES, Failure, explain
from entropy_probe.cli.group import VERBS
from entropy_probe.cli.options import Size
from entropy_probe.models import LoadError
from entropy_probe.storage.errors import DiskFull, NotARun, RunConflict, RunError


def command_of(verb):
    module, _, attribute = VERBS[verb].target.partition(":")
    return getattr(import_module(module), attribute)


def test_help_lists_every_verb():
    result = probe("--help")
    assert (result.code, result.err) == (0, "")
    for name, verb in VERBS.items():
        assert any(line.split() == [name, *verb.help.split()] for line in result.out.splitlines())
    assert probe("-h").out == result.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_begins_with_its_line_in_the_table(verb):
    result = probe(verb, "--help")
    assert result.code == 0
    assert command_of(verb).help.partition("\n")[0] == VERBS[verb].help
    assert VERBS[verb].help in result.out


@pytest.mark.parametrize("verb", [v for v in VERBS if v != "organism"])
def test_every_option_of_every_verb_is_explained(verb):
    options = [p for p in command_of(verb).params if isinstance(p, click.Option)]
    assert {"json", "quiet", "traceback"} <= {p.name for p in options}
    assert all(p.help for p in options)


def test_version():
    assert probe("--version").out == f"probe {__version__}\n"
    assert metadata.version("entropy-probe") == __version__


def test_without_a_verb_it_helps():
    result = probe()
    assert (result.code, result.out) == (2, "")
    assert result.err == probe("--help").out


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("captur",), "`probe capture`"),
        (("demos", "--json"), "`probe demo`"),
        (("capture", "--temprature", 1), "--temperature"),
        (("report", "x", "--fractoin=1"), "--fraction"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words, near):
    result = probe(*words)
    assert result.code == 2
    assert result.told[2] == f"did you mean {near}?"


@pytest.mark.parametrize("words", [("nothing",), ("report",), ("show", "x", "y"), ("--nothing",)])
def test_wrong_usage_is_told_in_three_lines_and_in_json(words):
    result = probe(*words, "--json") if words[0] != "--nothing" else probe(*words)
    assert result.code == 2
    assert all(result.told)
    if words[0] != "--nothing":
        assert result.json["error"].keys() == {"code", "message", "hint"}
        assert result.json["error"]["code"] == "usage"


def test_json_behind_two_dashes_is_no_option():
    assert probe("report", "--", "--json").out == ""


def test_traceback_comes_on_request_and_before_the_three_lines():
    quiet, loud = probe("show", "nothing"), probe("show", "nothing", "--traceback")
    assert loud.err.startswith("Traceback (most recent call last)")
    assert loud.err.endswith(quiet.err)
    assert loud.code == quiet.code == 2


@pytest.mark.parametrize("words", [["--json"], ["--json", "--traceback"]])
def test_a_bare_exception_is_told_too(words):
    code = (
        "import sys, types, click\n"
        "from entropy_probe.cli import main\n"
        "from entropy_probe.cli.group import VERBS, Verb\n"
        "from entropy_probe.cli.options import speaking\n"
        "@click.command()\n"
        "@speaking\n"
        "def odd(): raise Exception('odd')\n"
        "sys.modules['odd'] = types.SimpleNamespace(odd=odd)\n"
        "VERBS['odd'] = Verb('odd:odd', '')\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code, "odd", *words], capture_output=True)
    result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert result.code == 1
    assert result.json["error"]["code"] == "internal"
    assert result.err.startswith("Traceback") == ("--traceback" in words)
    assert "error: unexpected Exception\nwhy:   odd\n" in result.err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LoadError("what", "why", "fix"), "model"),
        (RunError("what", "why", "fix"), "run"),
        (NotARun(Path("path"), "why"), "usage"),
        (RunConflict("what", "why", "fix"), "usage"),
        (DiskFull(Path("path"), 0, 3), "run"),
        (ValueError("n must be 1"), "usage"),
        (OSError(13, "Permission denied", "path"), "failed"),
        (RuntimeError("CUDA out of memory. Tried"), "failed"),
        (MemoryError(), "failed"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "failed"),
        (RuntimeError("boom"), "internal"),
        (KeyError("x"), "internal"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "internal"),
    ],
)
def test_every_error_is_of_a_kind_with_a_code(error, kind):
    failure = explain(error)
    assert failure.kind == kind
    assert all((failure.what, failure.why, failure.fix))
    assert failure.code == CODES[kind]
    if isinstance(error, RunError | LoadError):
        assert (failure.what, failure.why, failure.fix) == (error.what, error.why, error.fix)


@pytest.mark.parametrize("words", [("show",), ("capture", "--model", "x", "--task"), ()])
def test_what_an_error_quotes_is_inert(words):
    result = probe(*words, "a\x1b[31m\u202e[/INST]\nerror: b")
    assert result.code == 2
    assert not invisible(result.err)
    assert "[/INST]" in result.told[0] + result.told[1]
    assert len(result.err.splitlines()) == 3


def test_a_closed_pipe_is_quiet(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "entropy_probe", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_output_fails():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "entropy_probe", "--help"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_verbs_of_other_packages_are_found(monkeypatch):
    entry = metadata.EntryPoint("count", "commands_of_others:count", "entropy_probe.verbs")
    taken = metadata.EntryPoint("show", "commands_of_others:count", "entropy_probe.verbs")

    @click.command()
    def count():
        """Count."""
        click.echo("3")

    module = type(sys)("commands_of_others")
    module.count = count
    monkeypatch.setitem(sys.modules, "commands_of_others", module)
    monkeypatch.setattr(metadata, "entry_points", lambda group: (entry, taken))
    assert probe("count").out == "3\n"
    listed = [line.split()[0] for line in probe("--help").out.splitlines() if line.startswith("  ")]
    assert (listed.count("count"), listed.count("show")) == (1, 1)
    assert probe("show", "--help").out.startswith("Usage: probe show")


def test_shells_can_complete(monkeypatch):
    monkeypatch.setenv("_PROBE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "probe repo")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert "report" in probe().out


@pytest.mark.parametrize(
    ("text", "size"),
    [("12", 12), ("1kB", 1000), ("1.5 GiB", 3 * 2**29), ("2g", 2 * 10**9), ("500MB", 5 * 10**8)],
)
def test_sizes(text, size):
    assert Size().convert(text, None, None) == size


def test_failures_carry_their_parts_in_json():
    assert json.loads(probe("ls", "/nothing", "--json").out) == {
        "error": {
            "code": "usage",
            "message": "'/nothing' is not a folder: there is nothing",
            "hint": "pass a folder that holds runs",
        }
    }
    assert Failure("nothing", "a", "b", "c").code == 5
