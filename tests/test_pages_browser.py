"""The pages of steering in a real browser: both heatmaps run inside, and no rule is broken."""

import dataclasses

import numpy as np
import pytest
import torch
from hostile import HOSTILE, record_of
from test_browser import WCAG, axe_source, browser, opened  # noqa: F401 - fixtures

from sae_steering.evidence import Evidence
from sae_steering.outcomes import Outcome
from sae_steering.pages import comparison_page, evidence_page
from sae_steering.verdicts import Arm, Trial, judge

pytestmark = pytest.mark.slow


def compared():
    plain = record_of([b"t%d" % i for i in range(40)])
    steered = record_of(HOSTILE)
    edited = torch.zeros_like(steered.valid)
    edited[:, -3:] = steered.valid[:, -3:]
    facts = [("Edit", "add feature 3 4 after layer 1"), ("Threshold", "<0.3 nats & more")]
    return comparison_page(
        plain, steered, title="A <i>title</i>", facts=facts, edited=edited,
        measures=[["right", "0.500 (0.400 to 0.600)", "<0.700>", "+0.200"], ["KL", "", "0.1", ""]],
    )  # fmt: skip


def judged():
    """Give the page of a trial whose names and completions are hostile."""
    noise = np.random.default_rng(0)
    rewards = {
        name: (noise.random((40, 2)) < chance).astype(float)
        for name, chance in {"base": 0.4, "trained": 0.9, "features": 0.8, "word": 0.85}.items()
    }
    names = {"features": "features", "word": f"begin with {HOSTILE[0].decode()!r}"}
    kinds = {"features": "features", "word": "token injection"}
    arms = tuple(Arm(names[key], kinds[key], tuple(rewards[key].mean(axis=1))) for key in names)
    base, trained = (tuple(rewards[key].mean(axis=1)) for key in ("base", "trained"))
    trial = Trial(base, trained, arms, 0.8, (0.4, 0.45))
    record = record_of(HOSTILE)
    record = dataclasses.replace(record, rewards=torch.ones(len(record)))
    outcomes = {
        names.get(key, key): Outcome(key, None, right, [], None, record)
        for key, right in rewards.items()
    }
    side = {"model": "<b>model", "weights": "0123"}
    about = {
        "base": side, "trained": side, "task": "</style><script>", "problems": 40,
        "drawing": {"n": 2, "temperature": 1.0},
        "interventions": dict.fromkeys(names.values(), HOSTILE[2].decode()),
        "chosen": {"problems": 40, "completions": 2, "by": "choice", "told apart": "<i>x"},
    }  # fmt: skip
    verdicts = judge(trial)
    return evidence_page(Evidence(about, trial, verdicts, {"features out": None}, outcomes))


@pytest.fixture(params=[compared, judged])
def page(request):
    return request.param()


def test_both_sides_run_and_nothing_is_asked_for(opened, page):  # noqa: F811
    it = opened(page)
    it.page.wait_for_timeout(500)
    assert it.complaints == []
    assert set(it.requests) <= {it.here, "about:srcdoc"}
    sides = it.page.frames[1:]
    assert len(sides) == 2
    assert [side.evaluate("document.documentElement.className") for side in sides] == ["on"] * 2
    assert it.page.title() != "owned"
    heading, text = it.page.inner_text("h1"), it.page.inner_text("body")
    if "title" in heading:
        assert heading == "A <i>title</i>"
        assert "Threshold" in it.page.inner_text("header")
        assert "<0.700>" in text
    else:
        assert heading == "Is it in <b>model?"
        assert HOSTILE[0].decode() in text
        assert "elicitable, not specific to these features" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
def test_accessibility(opened, page, scheme, width):  # noqa: F811
    it = opened(page, color_scheme=scheme, viewport={"width": width, "height": 900})
    it.ask(axe_source() + "; undefined")
    options = {"runOnly": {"type": "tag", "values": WCAG}, "iframes": False}
    found = it.page.evaluate("(options) => axe.run(options)", options)
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []


def test_sides_stack_where_it_is_narrow(opened, page):  # noqa: F811
    it = opened(page, viewport={"width": 500, "height": 900})
    boxes = [frame.bounding_box() for frame in it.page.query_selector_all("iframe")]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert it.ask("document.documentElement.scrollWidth") <= 500
