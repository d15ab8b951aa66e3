"""The page in a real browser: keys, hostile text, accessibility, scripts off, layout time.

Needs `playwright` (the `browser` extra) and what `tests/install_browser.sh` installs: Debian's
Chromium and axe-core. Skips where they are missing, or fails with `PROBE_REQUIRE_BROWSER=1`.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hostile import HOSTILE, record_of
from test_page import longer_record

from entropy_probe.viewing.notebook import mimebundle
from entropy_probe.viewing.page import heatmap

pytestmark = pytest.mark.slow

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def missing(reason: str) -> None:
    """Skip, or fail where the browser is required."""
    if os.environ.get("PROBE_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def axe_source() -> str:
    """Find axe-core where PROBE_AXE says, or in the cache that install_browser.sh fills."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropy-probe/axe"
    folder = Path(os.environ.get("PROBE_AXE") or cache)
    for path in (folder / "axe.min.js", folder / "node_modules/axe-core/axe.min.js"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    missing(f"axe-core is not in {folder}: run tests/install_browser.sh")
    return ""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Start Chromium with a fresh profile."""
    chromium = os.environ.get("PROBE_CHROMIUM") or shutil.which("chromium")
    if not chromium:
        missing("chromium is not installed: run tests/install_browser.sh")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install 'entropy-probe[browser]'")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


class Opened:
    """A page opened from a file, and everything that it asked for or complained about."""

    def __init__(self, browser, folder: Path, text: str, **options: object) -> None:
        path = folder / "page.html"
        path.write_text(text, encoding="utf-8")
        width = {"viewport": {"width": 1280, "height": 900}}
        self.context = browser.new_context(**(width | options))
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.here = path.as_uri()

    def ask(self, script: str) -> object:
        """Run a script over the debugging protocol, which the page's policy does not bind."""
        return self.page.evaluate(script)

    def focused(self) -> str:
        """Give the id of the element that has the focus."""
        return str(self.ask("document.activeElement.id"))

    def detail(self) -> str:
        """Give what the panel says."""
        return self.page.inner_text("#detail")


@pytest.fixture
def opened(browser, tmp_path: Path) -> Iterator[object]:
    """Give a function that opens a page's text; all are closed afterwards."""
    pages: list[Opened] = []

    def open_page(text: str, **options: object) -> Opened:
        pages.append(Opened(browser, tmp_path, text, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


def test_keys_move_the_focus_from_fork_to_fork(opened):
    record = record_of([b"t%d" % i for i in range(40)])
    it = opened(heatmap(record))
    forks = it.ask("[...document.querySelectorAll('.strip mark')].map((fork) => fork.id)")
    assert len(forks) == 16
    visited = []
    for _ in forks:
        it.page.keyboard.press("n")
        visited.append(it.focused())
    assert visited == forks
    it.page.keyboard.press("n")
    assert it.focused() == forks[0]
    back = []
    for _ in forks:
        it.page.keyboard.press("p")
        back.append(it.focused())
    assert back == forks[::-1]
    assert it.complaints == []


def test_the_panel_tells_the_focused_token(opened):
    record = record_of([b"t%d" % i for i in range(40)])
    it = opened(heatmap(record))
    it.page.keyboard.press("n")
    row, position = map(int, it.focused()[1:].split("-"))
    assert f"t{position - 1}\n" in it.detail()
    assert f"{float(record.entropy[row, position]):.3f}" in it.detail()
    it.page.keyboard.press("ArrowRight")
    assert f"t{position}\n" in it.detail()
    assert f"position {position + 1} " in it.detail()
    assert f"{float(record.entropy[row, position + 1]):.3f}" in it.detail()
    for text in (f"t{position}", f"t{position + 1}", f"t{position + 2}", "all others"):
        assert text in it.detail()
    it.page.keyboard.press("Enter")
    it.page.hover(".strip i")
    assert f"position {position + 1} " in it.detail()
    it.page.keyboard.press("Escape")
    assert "Point at a token" in it.detail()
    it.page.hover("article .strip i")
    assert "position 1 " in it.detail()
    assert it.page.get_attribute("#detail", "role") == "status"


def test_help_metrics_find_and_links(opened):
    record = record_of([b"t%d" % i for i in range(40)])
    it = opened(heatmap(record))
    it.page.keyboard.press("?")
    assert it.page.is_visible("#keys")
    it.page.keyboard.press("Escape")
    assert not it.page.is_visible("#keys")
    before = it.ask("document.querySelector('article mark').className")
    it.page.keyboard.press("3")
    assert it.ask("document.documentElement.dataset.metric") == "rank"
    assert it.ask("document.querySelector('article mark').className") == "a" != before
    it.page.keyboard.press("4")
    last = "[...document.querySelectorAll('article')].at(-1).querySelector('mark').className"
    assert it.ask(last) == "h"
    it.page.keyboard.press("1")
    assert it.ask("document.querySelector('article mark').className") == before
    it.page.keyboard.press("/")
    it.page.keyboard.type("t17")
    it.page.keyboard.press("Enter")
    assert it.detail().startswith("t17\n")
    it.page.click("tbody tr:first-child a")
    it.page.wait_for_function("document.activeElement.matches('mark')")
    assert it.focused() == f"t1-{len(record.pieces) - 1}"
    it.page.uncheck("#single", force=True) if it.page.is_visible("#single") else it.ask(
        "document.querySelector('#single').checked = false"
    )
    was = it.focused()
    it.page.keyboard.press("p")
    assert it.focused() == was
    assert it.complaints == []


def test_finding_text_that_lengthens_or_is_missing(opened):
    record = record_of(["İ".encode(), "İ".encode(), "İ".encode(), b"a", b"x", b"y"], rows=1)
    it = opened(heatmap(record))
    for needle, found in (("x", True), ("", True), ("nowhere", False)):
        it.page.fill("#find", needle)
        it.page.press("#find", "Enter")
        assert it.detail().startswith("x\n")
        assert (it.page.inner_text("#place") == "not found") != found
    assert it.complaints == []


def test_a_rank_that_is_not_known_is_not_coloured(opened):
    record = record_of([b"t%d" % i for i in range(9)], rows=1)
    ranks = torch.where(record.valid, torch.arange(10) * 1000, 0)
    ranks[0, 5] = -1
    it = opened(heatmap(dataclasses.replace(record, ranks=ranks)))
    it.page.keyboard.press("3")
    level = "document.querySelectorAll('article .l > *')[{}].className[0].toLowerCase()"
    assert it.ask(level.format(4)) == "a"
    assert it.ask(level.format(5)) == "h"


def test_hostile_tokens_do_nothing(opened):
    record = record_of(HOSTILE, prompt=HOSTILE, model=HOSTILE[1].decode())
    harmless = record_of([b"x%d" % i for i in range(len(HOSTILE))], prompt=[b"y"] * len(HOSTILE))
    kinds = "[...new Set([...document.querySelectorAll('*')].map((e) => e.tagName))].sort().join()"
    it, control = opened(heatmap(record, title="the title")), opened(heatmap(harmless))
    for each in (it, control):
        for _ in range(8):
            each.page.keyboard.press("n")
    it.ask("document.querySelectorAll('.strip i, .strip mark').forEach((e) => e.click())")
    it.page.keyboard.press("2")
    it.page.wait_for_timeout(300)
    assert it.ask(kinds) == control.ask(kinds)
    assert it.page.title() == "the title"
    assert it.requests == [it.here]
    assert it.complaints == []


def test_the_policy_stops_what_would_get_through(opened):
    text = heatmap(record_of([b"a", b"b"]))
    it = opened(text.replace("<main>", "<main><script>document.title='owned'</script>"))
    assert it.page.title() != "owned"
    assert any("Content Security Policy" in c for c in it.complaints)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(opened, scheme: str, width: int):
    axe = axe_source()
    record = record_of([*HOSTILE, *(b" w%d" % i for i in range(30))], prompt=HOSTILE)
    it = opened(heatmap(record), color_scheme=scheme, viewport={"width": width, "height": 900})
    it.page.keyboard.press("n")
    it.ask("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    it.ask(axe + "; undefined")
    found = it.ask(
        "axe.run(document, {runOnly: TAGS}).then((r) => ({passes: r.passes.length, violations:"
        " r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html + n.failureSummary)"
        ".slice(0, 3).join(' '))}))".replace("TAGS", str(WCAG))
    )
    assert found["violations"] == []
    assert found["passes"] > 20
    broken = "document.documentElement.lang = ''; document.querySelector('h1').style.color = '#777'"
    it.ask(broken)
    again = it.ask("axe.run(document).then((r) => r.violations.map((v) => v.id))")
    assert "html-has-lang" in again


def test_the_page_is_of_use_without_scripts(opened):
    record = record_of([b"t%d" % i for i in range(40)])
    it = opened(heatmap(record), java_script_enabled=False)
    assert it.page.locator("tbody tr").count() == 16
    assert it.page.is_visible(".scale.entropy")
    assert not it.page.is_visible("#next")
    assert it.page.is_visible(".chart svg")
    link = it.page.locator("tbody tr a").first
    link.click()
    target = it.page.locator(str(link.get_attribute("href")))
    assert target.is_visible()
    box = target.bounding_box()
    assert 0 <= box["y"] <= 900
    colour = target.evaluate("(e) => getComputedStyle(e).backgroundColor")
    assert colour == "rgb(245, 133, 24)"
    assert float(target.evaluate("(e) => parseFloat(getComputedStyle(e).borderBottomWidth)")) >= 2


def test_the_notebook_frame_draws_and_stays_inside(opened):
    bundle = mimebundle(record_of([*HOSTILE, *(b" w%d" % i for i in range(30))]))
    body = f"<!doctype html><title>nb</title><body>{bundle['text/html']}{bundle['text/html']}"
    it = opened(body)
    frames = it.page.frames[1:]
    assert len(frames) == 2
    for frame in frames:
        frame.wait_for_selector("html.on")
        frame.click(".strip mark")
        assert "fork 1 of" in frame.inner_text("#detail")
    it.page.wait_for_function("document.querySelector('iframe').style.height !== '560px'")
    assert it.page.title() == "nb"
    assert it.complaints == []
    assert [r for r in it.requests if r != it.here and r != "about:srcdoc"] == []


def test_layout_of_ten_thousand_tokens(opened, capsys):
    text = heatmap(longer_record(10_000))
    it = opened(text)
    session = it.context.new_cdp_session(it.page)
    session.send("Performance.enable")

    def spent() -> dict[str, float]:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return {m["name"]: 1000 * m["value"] for m in metrics}

    rounds = []
    for _ in range(3):
        before = spent()
        it.page.reload()
        it.page.wait_for_timeout(300)
        after = spent()
        names = ("LayoutDuration", "RecalcStyleDuration", "ScriptDuration")
        # A reload may start the counters again or carry them on.
        rounds.append([after[n] - (before[n] if after[n] >= before[n] else 0) for n in names])
    layout, style, script = (sorted(values)[1] for values in zip(*rounds, strict=True))
    with capsys.disabled():
        print(  # noqa: T201 - the figure is the point
            f"\n10,000 tokens x 5: {len(text.encode()):,} bytes, median of 3 loads: layout "
            f"{layout:.0f} ms, style {style:.0f} ms, script {script:.0f} ms"
        )
    it.page.keyboard.press("n")
    assert "fork 1 of 2000" in it.detail()
    it.page.keyboard.press("2")
    assert it.complaints == []
