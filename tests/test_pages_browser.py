"""The pages of steering in a real browser: both heatmaps run inside, and no rule is broken."""

import pytest
import torch
from hostile import HOSTILE, record_of
from test_browser import WCAG, axe_source, browser, opened  # noqa: F401 - fixtures

from sae_steering.pages import comparison_page

pytestmark = pytest.mark.slow


@pytest.fixture
def page():
    plain = record_of([b"t%d" % i for i in range(40)])
    steered = record_of(HOSTILE)
    edited = torch.zeros_like(steered.valid)
    edited[:, -3:] = steered.valid[:, -3:]
    facts = [("Edit", "add feature 3 4 after layer 1"), ("Threshold", "<0.3 nats & more")]
    return comparison_page(plain, steered, title="A <i>title</i>", facts=facts, edited=edited)


def test_both_sides_run_and_nothing_is_asked_for(opened, page):  # noqa: F811
    it = opened(page)
    it.page.wait_for_timeout(500)
    assert it.complaints == []
    assert set(it.requests) <= {it.here, "about:srcdoc"}
    sides = it.page.frames[1:]
    assert len(sides) == 2
    assert [side.evaluate("document.documentElement.className") for side in sides] == ["on"] * 2
    assert "A <i>title</i>" in it.page.inner_text("h1")
    assert "Threshold" in it.page.inner_text("header")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(opened, page, scheme):  # noqa: F811
    it = opened(page, color_scheme=scheme)
    it.ask(axe_source() + "; undefined")
    options = {"runOnly": {"type": "tag", "values": WCAG}, "iframes": False}
    found = it.page.evaluate("(options) => axe.run(options)", options)
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []


def test_sides_stack_where_it_is_narrow(opened, page):  # noqa: F811
    it = opened(page, viewport={"width": 500, "height": 900})
    boxes = [frame.bounding_box() for frame in it.page.query_selector_all("iframe")]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert it.ask("document.documentElement.scrollWidth") <= 500
