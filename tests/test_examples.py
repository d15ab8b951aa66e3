"""The examples of docstrings run and give what they say; what is skipped imports at least."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import entropy_probe
import sae_steering

PACKAGES = (entropy_probe, sae_steering)
DOCUMENTED = ast.FunctionDef | ast.ClassDef  # `>>>` in what is said of a whole module is prose


def imports():
    """Give the imports of every docstring's examples, and where they stand."""
    for package in PACKAGES:
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                said = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
                for example in doctest.DocTestParser().get_examples(said or ""):
                    if example.source.startswith(("from ", "import ")):
                        yield f"{path.stem}.{node.name}", example.source.strip()


def failure_of(test):
    """Run a docstring's examples in its module; say what is wrong."""
    said = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return "".join(said)


def test_what_examples_import_is_there():
    found = list(imports())
    wrong = []
    for where, source in found:
        try:
            exec(source, {})
        except ImportError as error:
            wrong.append((where, source, str(error)))
    assert wrong == []
    assert {"sampling.sample", "trainer.train", "steering.steer"} <= {where for where, _ in found}


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures = {}
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                for test in doctest.DocTestFinder().find(importlib.import_module(module.name)):
                    if test.examples and test.name != module.name:
                        failures[test.name] = failure_of(test)
    assert {name: said for name, said in failures.items() if said} == {}
    names = {name.rpartition(".")[2] for name in failures}
    assert {"load", "sample", "score", "forking_mask", "train", "steer"} <= names


def test_an_example_that_is_wrong_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:\n    3\nGot:\n    2" in failure_of(wrong)
