"""`probe report`: the page of a run, whole or not at all."""

import re
from pathlib import Path

import pytest
from commands import files_under, probe, write_run
from hostile import HOSTILE, record_of

from entropy_probe import heatmap, open_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a run of five samples of 40 tokens in two chunks."""
    monkeypatch.chdir(tmp_path)
    record = record_of([b"t%d " % i for i in range(39)], rows=5)
    write_run(Path("run"), record[:2], record[2:])
    return "run"


def test_the_page_is_the_heatmap_of_the_whole_run(run):
    result = probe("report", run)
    assert (result.code, result.out) == (0, "run/report.html\n")
    page = Path("run/report.html").read_text()
    assert page == heatmap(open_run(run).rollouts())
    assert "5 of 5 samples drawn" in result.err


def test_options_reach_the_page(run):
    words = ("--fraction", 0.5, "--scope", "sequence", "--title", "<b>mine</b>", "--redact-prompts")
    result = probe("report", run, *words, "-o", "new/page.html", "--json")
    assert result.json == {"report": "new/page.html", "samples_drawn": 5, "samples": 5}
    page = Path("new/page.html").read_text()
    assert page == heatmap(
        open_run(run).rollouts(), fraction=0.5, scope="sequence", title="<b>mine</b>",
        redact_prompts=True,
    )  # fmt: skip
    assert "&lt;b&gt;mine" in page
    assert page.count("start") < heatmap(open_run(run).rollouts()).count("start")


@pytest.mark.parametrize("words", [("--samples", 2), ("--max-tokens", 100)])
def test_a_part_is_drawn_with_the_forks_of_the_whole(run, words):
    result = probe("report", run, *words, "-o", "part.html", "--json")
    assert result.json["samples_drawn"] == 2
    assert "2 of 5 samples drawn" in result.err
    assert "the others: probe show run --sample 2" in result.err
    page = Path("part.html").read_text()
    assert "3 of 5 rollouts left out" in page
    line = re.search(r"39 of 195 tokens, .*? at least \d\.\d{3} nats", page)[0]
    assert line in heatmap(open_run(run).rollouts())


def test_more_samples_than_there_are_draws_all(run):
    assert probe("report", run, "--samples", 99, "--json").json["samples_drawn"] == 5


def test_a_report_that_cannot_be_written_leaves_the_old_one(run):
    probe("report", run)
    before = files_under(Path())
    for out in ("/proc/page.html", "run/report.html/page.html", "run"):
        result = probe("report", run, "-o", out, "--json")
        assert result.code == 1
        assert f"cannot write '{out}'" in result.told[0]
        assert result.json["error"]["code"] == "failed"
    assert probe("report", run, "--fraction", 2).code == 2
    assert files_under(Path()) == before


def test_hostile_text_is_inert(tmp_path):
    write_run(tmp_path / "run", record_of(HOSTILE, model="<script>\x1b[31m</script>"))
    result = probe("report", tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert result.code == 0
    assert page.count("<script") == heatmap(record_of([b"a"])).count("<script")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
