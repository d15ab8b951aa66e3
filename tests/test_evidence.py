"""A trial on an organism: measured once for every arm, judged, written as JSON and as a page."""

import html
import json
import re

import numpy as np
import pytest
import torch

from entropy_probe import load, sample
from entropy_probe.tasks import get_task
from sae_steering.controls import random_directions
from sae_steering.edits import Direction
from sae_steering.evidence import SCHEMA, gather_evidence, write_evidence
from sae_steering.interventions import Intervention, Steering
from sae_steering.outcomes import Drawing, measure
from sae_steering.pages import comparison_page, evidence_page
from sae_steering.places import at_opening
from sae_steering.steering import steer

TASK = get_task("arithmetic")
DRAWING = Drawing(n=3, max_new_tokens=40, seed=2, batch_size=64)
PUSH = Direction(torch.linspace(-1, 1, 128), "push <b>&")
STEERING = Steering(None, {PUSH: 4.0}, layer=2, where=at_opening)
ARMS = [
    Intervention("features", "features", STEERING),
    Intervention("code first", "token injection", prefix=">>> "),
    Intervention("cold", "low temperature", temperature=0.3),
]


@pytest.fixture(scope="module")
def organism():
    return load("organism:amenable")


@pytest.fixture(scope="module")
def problems():
    return TASK.problems(10, split="test", seed=5)


@pytest.fixture(scope="module")
def evidence(organism, problems):
    trained, _ = load("organism:taught")
    randoms = [
        Intervention(d.name, "random direction", STEERING.along(d, 4.0))
        for d in random_directions(PUSH.vector, 2)
    ]
    out = Intervention("without push", "features", Steering(None, {PUSH: 1.0}, 2, "ablate"))
    return gather_evidence(
        *organism, TASK, problems, ARMS, trained=trained, randoms=randoms, ablations=[out],
        drawing=DRAWING,
    )  # fmt: skip


def test_every_arm_is_measured_on_the_same_problems(organism, problems, evidence):
    names = ["base", "trained", "features", "code first", "cold", "without push, trained"]
    assert list(evidence.outcomes) == names
    plain = measure(*organism, TASK, problems, drawing=DRAWING)
    assert evidence.trial.base == tuple(plain.right.mean(axis=1))
    forced = measure(*organism, TASK, problems, ARMS[1], DRAWING)
    assert evidence.trial.arms[1].right == tuple(forced.right.mean(axis=1))
    assert len(evidence.trial.random) == 2
    few = measure(
        *organism, TASK, problems, ARMS[0], Drawing(n=1, max_new_tokens=40, seed=2, batch_size=64)
    )
    assert evidence.trial.reached == few.accuracy.value
    assert evidence.verdicts.chance >= 1 / 3


def test_what_goes_with_the_features_is_a_share_of_the_gain(evidence):
    (name, share), *_ = evidence.removed.items()
    assert name == "without push, trained"
    if evidence.verdicts.gain.low >= 0.05:
        without = evidence.outcomes[name].right.mean()
        base, trained = (np.mean(x) for x in (evidence.trial.base, evidence.trial.trained))
        assert share.value == pytest.approx((trained - without) / (trained - base))
    else:
        assert share is None


def test_it_is_written_whole_as_json_and_as_a_page(evidence, tmp_path):
    path = write_evidence(evidence, tmp_path / "new" / "folder")
    found = json.loads((path.parent / "evidence.json").read_text())
    assert found["schema"] == SCHEMA
    assert found["about"]["problems"] == 10
    assert found["about"]["interventions"]["code first"] == "completions begin with '>>> '"
    assert found["verdicts"]["capability"]["statement"] in ("shown", "not shown")
    assert found["verdicts"]["carried"]["would_change"]
    assert found["accuracy"]["base"]["value"] == pytest.approx(np.mean(found["trial"]["base"]))
    assert sorted(p.name for p in path.parent.iterdir()) == ["evidence.html", "evidence.json"]
    assert path.read_text() == evidence_page(evidence)


def assert_self_contained(page):
    assert page.startswith("<!doctype html>")
    outer = re.sub(r'srcdoc="[^"]*"', "", page)
    for text in (outer, *frames(page)):
        assert not re.findall(r'(?:src|href)="(?!#)|url\(|@import|https?://', text)
    assert "<script" not in outer


def frames(page):
    return [html.unescape(text) for text in re.findall(r'srcdoc="([^"]*)"', page)]


def policy(page):
    return html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])


def test_the_page_says_what_was_found_and_holds_both_sides(evidence):
    page = evidence_page(evidence)
    assert_self_contained(page)
    for verdict in (evidence.verdicts.capability, evidence.verdicts.carried):
        assert html.escape(verdict.statement) in page
        for line in (*verdict.why, *verdict.would_change):
            assert html.escape(line, quote=False) in html.unescape(page).replace("&", "&amp;") or (
                line in html.unescape(page)
            )
    plain, steered = frames(page)
    assert plain.count("<title>The base as it is") == 1
    assert "add push" in html.unescape(steered)
    assert "<b>&" not in re.sub(r'srcdoc="[^"]*"', "", page)  # names are escaped
    for frame in (plain, steered):
        for digest in re.findall(r"'sha256-[^']+'", policy(frame)):
            assert digest in policy(page)


def test_a_page_without_features_or_gain_is_drawn(organism, problems):
    bare = gather_evidence(
        *organism, TASK, problems[:2], [], drawing=Drawing(n=1, max_new_tokens=8)
    )
    page = evidence_page(bare)
    assert_self_contained(page)
    assert "no trained sibling" in page
    assert "None was tried." in page
    assert frames(page) == []


def test_two_records_stand_side_by_side_with_what_was_edited(organism):
    model, tokenizer = organism
    prompts = ["Compute 473, plus 8, minus 9.\n", "What is 12 <script>?"]
    settings = {"n": 2, "max_new_tokens": 12, "seed": 1}
    plain = sample(model, tokenizer, prompts[:1], **settings)
    with steer(model, None, {PUSH: 3.0}, layer=2, where="forks", threshold=0.2) as steered:
        drawn = sample(steered, tokenizer, prompts[:1], **settings)
    edited = steered.steps.edited(drawn)
    page = comparison_page(
        plain, drawn, title="a <b> title", facts=[("Edit", steered.edit)], edited=edited
    )
    assert_self_contained(page)
    assert "<b> title" not in page
    left, right = frames(page)
    assert "edited" in right.lower().partition("</header>")[0]
    assert "(solid line above)" not in left
    hidden = comparison_page(plain, drawn, redact_prompts=True)
    assert ", minus" in page
    assert ", minus" not in hidden
