"""`probe evidence` on organisms, in this process: verdicts, files, and what is refused."""

import json
from importlib import metadata

import pytest
from commands import probe, tiny_folder
from dictionaries import write_dictionary

BASE = TRAINED = "organism:amenable-300k"  # no gain, and quick
SMALL = ("--limit", 8, "--choose-on", 8, "--n", 3, "--max-new-tokens", 36, "--randoms", 2,
         "--latents", 1)  # fmt: skip


@pytest.fixture(autouse=True)
def verb(monkeypatch):
    """Let the verb be there whatever the metadata of the installation says."""
    entry = metadata.EntryPoint(
        "evidence", "sae_steering.cli.evidence:evidence", "entropy_probe.verbs"
    )
    monkeypatch.setattr(metadata, "entry_points", lambda group: (entry,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    write_dictionary(folder / "sae", 64, 40, layer=1, model_name=BASE)
    write_dictionary(folder / "wide", 128, 40, layer=1)
    return folder


def evidence(folder, *words, sae="sae", trained=TRAINED, base=BASE):
    sibling = () if trained is None else ("--trained", trained)
    return probe(
        "evidence", "--base", base, *sibling, "--task", "arithmetic", "--sae", folder / sae,
        "-o", folder / "out", *SMALL, *words,
    )  # fmt: skip


def test_help_says_what_it_does():
    text = "evidence  Judge whether the base had it already, and features carry it."
    assert text in probe("--help").out
    assert probe("evidence", "--help").code == 0


@pytest.mark.slow
def test_verdicts_are_printed_and_written(folder):
    result = evidence(folder)
    assert result.code == 0, result.err
    assert result.last == str(folder / "out" / "evidence.html")
    lines = result.out.splitlines()
    assert lines[0] == "capability in the base: not shown"
    assert "carried by these features: not shown" in lines
    assert sum(line.startswith("  would change it: ") for line in lines) == 2
    assert "features taken out, trained: no share of the gain goes with it" in lines
    found = json.loads((folder / "out" / "evidence.json").read_text())
    assert found["verdicts"]["capability"]["statement"] == "not shown"
    assert found["about"]["problems"] == 8
    told = found["about"]["chosen"]["told apart"]
    assert told.endswith(("against other ways", "against wrong answers"))
    assert len(found["trial"]["random"]) == 2
    page = (folder / "out" / "evidence.html").read_text()
    assert "8 other problems" in page
    assert told in page


@pytest.mark.slow
def test_features_can_be_named(folder):
    words = ("--feature", 3, "--feature", 5, "--strength", 20, "--where", "generated", "--json")
    found = evidence(folder, *words).json
    about = found["about"]["interventions"]["features"]
    assert about == "add feature 3 20, feature 5 20 after layer 1, where=generated"
    assert found["about"]["chosen"]["by"] == "given"
    assert found["page"] == str(folder / "out" / "evidence.html")


@pytest.mark.slow
def test_without_a_sibling_nothing_is_shown(folder):
    result = evidence(folder, "--feature", 3, "--strength", 20, trained=None)
    assert result.code == 0
    assert "there is no trained sibling" in result.out
    assert "no --trained" in result.err


BAD = {
    "no such feature": (("--feature", 40), "no feature 40"),
    "strength alone": (("--strength", 4), "--strength without --feature"),
    "strength nan": (("--feature", 3, "--strength", "nan"), "strengths must be finite"),
    "count of the named": (("--feature", 3, "--count", 2), "--count with --feature"),
    "threshold unread": (("--threshold", 1), "--threshold without forks"),
    "another layer": (("--layer", 0), "its features are of another layer"),
    "no such task": (("--task", "cooking"), "no such task: cooking"),
    "greedy": (("--temperature", 0), "invalid value for '--temperature'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_told(folder, case):
    words, told = BAD[case]
    result = evidence(folder, *words)
    assert (result.code, result.told[0]) == (2, told), result.err
    assert result.out == ""


@pytest.mark.slow
def test_what_does_not_fit_is_told(folder):
    assert evidence(folder, sae="wide").told[0] == "the SAE belongs to another model"
    assert evidence(folder, trained=tiny_folder()).told[0] == "the two are no siblings"
    assert evidence(folder, sae="no").code == 1
    assert evidence(folder, "-o", folder / "sae" / "cfg.json" / "x").code == 1
