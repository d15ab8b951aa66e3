"""Importing does nothing: neither the package nor the command's help brings in what is heavy."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pyarrow", "pandas", "plotly", "jinja2", "numpy")


def loaded(code):
    """Run code in a fresh interpreter; give what it printed and which heavy modules it loaded."""
    tail = "\nimport sys\nprint(*(m for m in sys.argv[1:] if m in sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + tail, *HEAVY], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr.splitlines()[-1].split()


def test_the_check_can_fail():
    out, found = loaded("import torch\nprint(1)")
    assert out == "1\n"
    assert "torch" in found


@pytest.mark.parametrize(
    "code",
    [
        "import entropy_probe, sae_steering",
        "import entropy_probe, sae_steering\ndir(entropy_probe), entropy_probe.__all__",
        "import entropy_probe.cli",
    ],
)
def test_importing_loads_nothing_heavy_and_prints_nothing(code):
    assert loaded(code) == ("", [])


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["capture", "--help"], ["report", "--help"], ["ls", "/"], ["x"]],
)
def test_help_and_listing_load_nothing_heavy(words):
    out, found = loaded(f"from entropy_probe.cli import main\nmain({words!r})")
    assert found == []
    assert bool(out) == (words[-1] in ("--help", "--version"))
