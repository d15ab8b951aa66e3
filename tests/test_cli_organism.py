"""`probe organism`: the shipped models and their cards."""

import json
import re

import pytest
from commands import probe

from entropy_probe.models.organisms import ORGANISMS, organism_path
from entropy_probe.models.organisms.describing import card_lines
from entropy_probe.models.organisms.targets import TARGETS


def files_of(name: str) -> tuple[dict, dict]:
    """Give the card and the recipe that ship."""
    folder = organism_path(name)
    return tuple(json.loads((folder / f"{file}.json").read_text()) for file in ("card", "recipe"))


def test_the_list_names_every_shipped_model():
    result = probe("organism", "list")
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(ORGANISMS)
    values = probe("organism", "list", "--json").json
    assert [each["organism"] for each in values] == list(ORGANISMS)
    for each in values:
        assert each["parameters"] == files_of(each["organism"])[1]["parameters"]
        assert each["bytes"] < 8e6
        assert each["missed"] == []


@pytest.mark.parametrize("name", ORGANISMS)
def test_a_card_shows_every_figure_with_its_interval(name):
    card, recipe = files_of(name)
    text = "\n".join(card_lines(card, recipe, ORGANISMS[name]))
    cells = re.findall(r"-?[\d.]+ \(-?[\d.]+ to -?[\d.]+\)", text)
    shown = sorted(float(cell.split()[0]) for cell in cells)
    wanted = [figure["value"] for figure in card["figures"].values()]
    wanted += [card["figures"][target.figure]["value"] for target in TARGETS[name]]
    assert shown == pytest.approx(sorted(wanted), abs=0.06)
    assert probe("organism", "card", name).out == text + "\n"


def test_a_card_says_what_it_was_made_from_and_what_was_promised():
    card, recipe = files_of("amenable")
    out = probe("organism", "card", "amenable").out
    assert recipe["hash"] in out
    assert "1,085,568" in out
    assert "compute 0.97/0.87" in out
    assert len(re.findall(r"^  met ", out, flags=re.M)) == len(TARGETS["amenable"])
    assert "\n  missed " not in out
    card["figures"]["share of code"] = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 9}
    spoiled = "\n".join(card_lines(card, recipe, ""))
    assert re.findall(r"^  missed (.*?)  ", spoiled, flags=re.M) == ["share of code"]


def test_as_json_it_is_the_file():
    assert probe("organism", "card", "amenable", "--json").json == files_of("amenable")[0]


@pytest.mark.slow
def test_measured_anew_it_is_measured_from_the_weights():
    result = probe("organism", "card", "amenable", "--recompute", "--limit", 8, "--json")
    assert result.code == 0
    card, shipped = result.json, files_of("amenable")[0]
    assert card["problems"] == 8
    assert card["weights"] == shipped["weights"]
    assert set(card["figures"]) - {"n"} <= set(shipped["figures"])
    assert "measuring amenable" in result.err


def test_what_makes_no_sense_is_told():
    result = probe("organism", "card", "amenible")
    assert result.code == 1
    assert "did you mean organism:amenable?" in result.told[2]
    assert probe("organism", "card", "amenable", "--limit", 9).code == 2
    assert "--recompute" in probe("organism", "card", "amenable", "--limit", 9).err
    assert probe("organism").code == 2
