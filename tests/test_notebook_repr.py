"""The notebook's view: a sandboxed frame that is the page, and text where HTML is not shown."""

import html
import re
from html.parser import HTMLParser

import pytest
from hostile import HOSTILE, empty_record, record_of

from entropy_probe.viewing.notebook import mimebundle
from entropy_probe.viewing.page import heatmap


class Cell(HTMLParser):
    """The elements of an output cell."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_record_draws_itself():
    record = record_of(HOSTILE)
    assert record._repr_mimebundle_() == mimebundle(record)
    assert set(mimebundle(record)) == {"text/html", "text/markdown", "text/plain"}
    assert mimebundle(record) == mimebundle(record_of(HOSTILE))


def test_the_frame_holds_the_page_and_nothing_else_leaks():
    record = record_of(HOSTILE, prompt=HOSTILE, model=HOSTILE[1].decode())
    cell = Cell(mimebundle(record)["text/html"])
    assert [tag for tag, _ in cell.tags] == ["script", "iframe"]
    frame = cell.tags[1][1]
    assert frame["srcdoc"] == heatmap(record)
    assert frame["sandbox"] == "allow-scripts"
    assert "id" not in frame
    assert "src" not in frame
    assert cell.tags[0][1] == {}
    assert re.search(r"height:\d+px", frame["style"])


def test_the_cell_fetches_nothing_and_has_no_global_style():
    text = mimebundle(record_of([b"a", b"b"]))["text/html"]
    assert "http" not in html.unescape(text).replace("http-equiv", "")
    assert "<style" not in text
    assert "require" not in text


def test_markdown_is_a_table_of_escaped_forks():
    record = record_of(HOSTILE, prompt=HOSTILE, model=HOSTILE[12].decode())
    text = mimebundle(record)["text/markdown"]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 19
    assert {line.count("|") for line in lines} == {7}
    assert not set(text.replace("(nats)", "")) & set("<>[]()`$\\!")
    body = "".join(text.split("|---|---|---:|---:|---:|---|")[1])
    assert not set(body) & set("*_")
    assert "The first" not in text
    long = mimebundle(record_of([b"t%d" % i for i in range(99)]))["text/markdown"]
    assert sum(line.startswith("|") for line in long.splitlines()) == 2 + 20
    assert "The first 20 of 40 forks." in long


def test_markdown_rows_are_right():
    record = record_of([b"t%d" % i for i in range(10)], rows=1)
    row = mimebundle(record)["text/markdown"].splitlines()[-2].split("|")
    assert [cell.strip() for cell in row[1:5]] == ["t9", "1.1", "10", "0.688"]
    assert html.unescape(row[5]).strip() == "68.7%"


def test_plain_text_is_plain():
    text = mimebundle(record_of(HOSTILE, prompt=HOSTILE))["text/plain"]
    assert "\x1b" not in text
    assert "⟦" in text


def test_large_records_are_cut_with_a_plain_note():
    record = record_of([b"w%d" % i for i in range(400)], rows=8)
    bundle = mimebundle(record)
    note = "Only 1,604 of 3,208 tokens are drawn: rollouts 1 to 4 (4 of 8 rollouts left out)"
    page = html.unescape(bundle["text/html"])
    assert note in page
    assert note in html.unescape(bundle["text/markdown"])
    assert note in " ".join(bundle["text/plain"].split())
    assert len(re.findall(r"<(?:i|mark id=\S+) class=", page.split("<main>")[1])) == 1601 - 0
    assert len(bundle["text/html"]) < 700_000


@pytest.mark.parametrize("key", ["text/html", "text/markdown", "text/plain"])
def test_an_empty_record_has_a_view(key: str):
    text = html.unescape(html.unescape(mimebundle(empty_record())[key]))
    assert "there are no forks" in text
