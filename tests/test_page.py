"""The page: right numbers at the right tokens, inert text, small, the same twice."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from hostile import HOSTILE, empty_record, record_of

from entropy_probe.rollout import Alternatives, Rollouts
from entropy_probe.viewing.page import heatmap

VOID = {"meta", "input", "link", "br", "path", "line", "rect"}


class Page(HTMLParser):
    """What a browser would build, as far as these tests need it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[tuple[str, dict]] = []
        self.tokens: list[dict] = []
        self.counts: dict[int, int] = {}
        self.rows: list[list[str]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        inside = self.open and "l" in self.open[-1][1].get("class", "").split()
        if inside and tag in ("i", "mark"):
            line = self.open[-1][1]
            strip = self.open[-2][1]
            self.counts[id(line)] = self.counts.get(id(line), -1) + 1
            self.tokens.append(
                {"tag": tag, "line": line, "strip": int(strip["data-s"]), "text": "", **attrs}
                | {"position": int(line["data-p"]) + self.counts[id(line)]}
            )
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append((attrs, ""))
        if tag not in VOID and tag not in ("td", "th", "tr"):
            self.open.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("td", "th", "tr") and self.open and self.open[-1][0] == tag:
            self.open.pop()
            if tag == "table":
                self.rows.append([])

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if tags and tags[-1] == "script":
            attrs, text = self.scripts.pop()
            self.scripts.append((attrs, text + data))
            return
        if tags and tags[-1] == "style":
            self.styles.append(data)
            return
        self.words.append(data)
        if any("l" in a.get("class", "").split() for _, a in self.open):
            self.tokens[-1]["text"] += data
        if "table" in tags and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def table(self) -> list[list[str]]:
        """The lines of the fork table, its head left out."""
        return [[c.strip() for c in row] for row in self.rows if row][1:]

    @property
    def text(self) -> str:
        """All words, whitespace made single."""
        return " ".join("".join(self.words).split())


def blocks(page: Page) -> list[dict]:
    """Give the JSON blocks of a page, the shared one first."""
    found = [(a, t) for a, t in page.scripts if a.get("type") == "application/json"]
    return [json.loads(text) for _, text in found]


def digits(column: str, width: int) -> list[int]:
    """Read a column of base-64 digits, written here on its own from the format's description."""
    alphabet = [chr(c) for c in (*range(65, 91), *range(97, 123), *range(48, 58), 45, 95)]
    values = [alphabet.index(c) for c in column]
    groups = [values[i : i + width] for i in range(0, len(values), width)]
    return [sum(v * 64 ** (width - 1 - j) for j, v in enumerate(g)) for g in groups]


def longer_record(tokens: int, *, k: int = 5, vocabulary: int = 3000, rows: int = 1) -> Rollouts:
    """Give rows of random tokens with full distributions behind them, some hostile."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, tokens + 4)
    valid = (torch.arange(tokens + 4) >= 4).expand(shape).clone()
    logits = torch.randn(*shape, 64, generator=generator) * 3
    logprobs, order = logits.log_softmax(-1).sort(descending=True)
    pieces = {i: b" w%d" % i for i in range(vocabulary)} | dict(enumerate(HOSTILE))
    base = record_of([b"a"], rows=rows)
    ids = torch.randint(0, vocabulary, (*shape, k), generator=generator) * valid[..., None]
    return dataclasses.replace(
        base,
        tokens=ids[..., 0],
        valid=valid,
        prompt_lengths=torch.full((rows,), 4),
        entropy=-(logprobs.exp() * logprobs).sum(-1) * valid,
        logprobs=logprobs[..., 0] * valid,
        ranks=order[..., 0] * valid,
        alternatives=Alternatives(ids, logprobs[..., :k] * valid[..., None]),
        captured=torch.zeros_like(valid),
        controls=torch.zeros_like(valid),
        pieces=pieces,
    )


def test_the_same_record_gives_the_same_bytes():
    assert heatmap(record_of(HOSTILE)) == heatmap(record_of(HOSTILE))
    assert heatmap(record_of(HOSTILE)) != heatmap(record_of(HOSTILE[1:]))


def test_every_number_stands_at_its_own_token():
    record = record_of([b"t%d" % i for i in range(30)], rows=2)
    page = Page(heatmap(record))
    shared, *strips = blocks(page)
    seen = set()
    for data in strips:
        entropy = digits(data["entropy"], 3)
        logprob = digits(data["logprob"], 3)
        others = digits(data["others"], 3)
        token = digits(data["token"], shared["width"])
        for slot, value in enumerate(entropy):
            row, t = data["row"], data["start"] + data["first"] + slot
            assert value == round(1000 * float(record.entropy[row, t]))
            assert logprob[slot] == round(-1000 * float(record.logprobs[row, t]))
            assert shared["pool"][token[data["first"] + slot] - 1] == f"t{t - 1}"
            for j in range(data["k"]):
                wanted = -1000 * float(record.alternatives.logprobs[row, t, j])
                assert others[slot * data["k"] + j] == round(wanted)
            seen.add((row, t))
    assert seen == {tuple(p) for p in record.valid.nonzero().tolist()}


def test_colours_are_the_fixed_scale_in_nats():
    bounds = [0.05, 0.2, 0.4, 0.7, 1.0, 1.5, 2.3]
    record = record_of([b"x%d" % i for i in range(40)], rows=1)
    page = Page(heatmap(record))
    drawn = [t for t in page.tokens if t["class"][0] != "p"]
    for token in drawn:
        entropy = float(record.entropy[0, token["position"]])
        assert token["class"][0] == "abcdefgh"[sum(entropy >= b for b in bounds)]
    assert len({t["class"][0] for t in drawn}) >= 6
    assert all(str(b) in page.text for b in bounds)


@pytest.mark.parametrize("scope", ["batch", "group", "sequence"])
def test_forks_and_their_stated_threshold(scope: str):
    record = record_of([b"y%d" % i for i in range(33)], rows=3)
    page = Page(heatmap(record, fraction=0.3, scope=scope))
    rows = [record.entropy[r][record.valid[r]].tolist() for r in range(3)]
    pools = rows if scope == "sequence" else [sum(rows, [])]
    kept = [sorted(p, reverse=True)[: math.ceil(0.3 * len(p))] for p in pools]
    count = sum(map(len, kept))
    low, high = min(k[-1] for k in kept), max(k[-1] for k in kept)
    threshold = f"{low:.3f} nats" if low == high else f"{low:.3f} to {high:.3f} nats"
    assert f"(fraction 0.3, scope {scope}): {count} of {sum(map(len, rows))} tokens" in page.text
    assert f"at least {threshold}" in page.text
    assert sum(t["tag"] == "mark" for t in page.tokens) == count
    assert len(page.table) == count
    entropies = [float(row[3]) for row in page.table]
    assert entropies == sorted(entropies, reverse=True)
    wanted = sorted((e for k in kept for e in k), reverse=True)
    assert entropies == pytest.approx(wanted, abs=6e-4)


def test_ties_left_out_are_said():
    record = record_of([b"z"] * 10, rows=1)
    record = dataclasses.replace(record, entropy=record.valid * 1.5)
    assert "8 more tokens have exactly the threshold's entropy" in Page(heatmap(record)).text


def test_table_links_lead_to_the_forks():
    record = record_of([b"q%d" % i for i in range(20)])
    page = Page(heatmap(record))
    forks = {t["id"]: t for t in page.tokens if t["tag"] == "mark"}
    table = re.search(r"<tbody>.*?</tbody>", heatmap(record), re.S)[0]
    links = re.findall(r'href="#(t\d+-\d+)">([^<]*)<', table)
    assert len(links) == len(forks) > 0
    for (name, text), row in zip(links, page.table, strict=True):
        line, position = map(int, name[1:].split("-"))
        assert forks[name]["text"] == text == f"q{position - 1}"
        assert row[2] == str(position)
        assert float(row[3]) == pytest.approx(float(record.entropy[line, position]), abs=6e-4)
        percent = 100 * math.exp(float(record.logprobs[line, position]))
        assert row[4] == f"{percent:.1f}%"


def test_hostile_text_stays_text():
    record = record_of(HOSTILE, prompt=HOSTILE, model=HOSTILE[1].decode())
    plain = record_of([b"x%d" % i for i in range(len(HOSTILE))], prompt=[b"y"] * len(HOSTILE))
    text = heatmap(record, title=HOSTILE[0].decode() + "\x00\u202e")
    page, control = Page(text), Page(heatmap(plain))
    known = {t for t, _ in control.tags}
    assert {t for t, _ in page.tags} <= known
    assert not any(a.startswith("on") or a in ("src", "style") for _, at in page.tags for a in at)
    assert [a for a, _ in page.scripts] == [a for a, _ in control.scripts]
    assert page.scripts[-1][1] == control.scripts[-1][1]
    assert page.styles == control.styles
    shown = "".join(t["text"] for t in page.tokens)
    for piece in HOSTILE[:3]:
        assert piece.decode() in shown
    ours = [t for t in re.findall(r"<title>(.*?)</title>", text)]
    assert html.unescape(ours[0]).startswith(HOSTILE[0].decode())


def test_nothing_invisible_or_direction_turning_is_left():
    page = heatmap(record_of(HOSTILE, prompt=HOSTILE, model="m\u202e\x00"), title="t\u2066\x1b")
    banned = [*range(9), 11, 12, *range(13, 32), *range(0x7F, 0xA1), 0xAD, 0x61C, 0x200B, 0x200C]
    banned += [0x200D, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
    banned += [0xFE0F, 0x3164, 0x2800, 0xE000, 0xE0041, 0xE0100, *range(0xD800, 0xE000)]
    assert {hex(ord(c)) for c in page} & {hex(b) for b in banned} == set()
    assert page.encode("utf-8").decode() == page
    for glyph in (
        "⟨RLO⟩",
        "⟨ZWSP⟩",
        "⟨NUL⟩",
        "⟨ESC⟩",
        "⟨U+D800⟩",
        "⟨FF FE C0 AF⟩",
        "⟨LS⟩",
        "↵",
        "⟨NEL⟩",
    ):
        assert glyph in page


def test_no_address_and_no_source_is_fetched():
    page = heatmap(record_of([b"a", b"b"]))
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\(|<link|<img|\bsrc=|fetch\(|XMLHttp|WebSocket", page)
    assert "innerHTML" not in page
    assert "document.write" not in page


def test_policy_names_exactly_the_page_own_style_and_script():
    page = Page(heatmap(record_of(HOSTILE)))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest(page.styles[0])}'" in policy
    assert f"script-src 'sha256-{digest(page.scripts[-1][1])}'" in policy
    assert "base-uri 'none'; form-action 'none'" in policy
    assert "unsafe" not in policy
    assert len(page.styles) == 1
    assert len([a for a, _ in page.scripts if not a]) == 1


def test_ten_thousand_tokens_stay_under_a_megabyte():
    page = heatmap(longer_record(10_000))
    size = len(page.encode())
    assert len(Page(page).table) == 2000
    assert size <= 1_000_000, f"{size:,} bytes"


def test_a_character_split_over_tokens_is_joined_and_its_parts_shown():
    smile = "🙂".encode()
    record = record_of([b"a " + smile[:1], smile[1:3], smile[3:] + b" b", b"\xe2", b"c"], rows=1)
    page = Page(heatmap(record))
    texts = [t["text"] for t in page.tokens][-5:]
    assert texts == ["a 🙂", "⟨9F 99⟩", "⟨82⟩ b", "⟨E2⟩", "c"]
    split = ["u" in t["class"].split() for t in page.tokens][-5:]
    assert split == [True, True, True, False, False]
    pool = blocks(page)[0]["pool"]
    assert ["⟨9F 99⟩", "9F 99"] in pool


def test_a_special_token_never_completes_a_character():
    record = record_of([b"\xc3", b"\xa9"], rows=1)
    assert [t["text"] for t in Page(heatmap(record)).tokens][-2:] == ["é", "⟨A9⟩"]
    special = dataclasses.replace(record, special_ids=frozenset([2]))
    page = Page(heatmap(special))
    assert [t["text"] for t in page.tokens][-2:] == ["⟨C3⟩", "⟨A9⟩"]
    assert "x" in page.tokens[-1]["class"].split()


def test_newlines_and_spaces_are_drawn():
    page = Page(heatmap(record_of([b"a", b"\n\n", b"    b", b"   ", b"c "], rows=1)))
    texts = [t["text"] for t in page.tokens][-5:]
    assert texts == ["a", "↵\n↵\n", "    b", "   ", "c·"]
    classes = [t["class"] for t in page.tokens][-5:]
    assert classes[2][0].isupper()
    assert "w" in classes[3].split()
    assert page.tokens[-3]["line"] is not page.tokens[-4]["line"]


def test_prompt_control_and_special_tokens_are_told_apart():
    record = record_of([b"a", b"b", b"<end>"], rows=1, prompt=[b"p0", b"p1"])
    controls = torch.zeros_like(record.valid)
    controls[0, 2] = True
    record = dataclasses.replace(
        record, controls=controls, captured=controls, special_ids=frozenset([4])
    )
    kinds = [t["class"].split() for t in Page(heatmap(record)).tokens]
    assert kinds[0] == kinds[1] == ["p"]
    assert "k" in kinds[2]
    assert "x" in kinds[4]
    assert all("k" not in k for i, k in enumerate(kinds) if i != 2)


def test_redacted_prompts_are_nowhere_in_the_page():
    secrets = [b"secret%d" % i for i in range(4)]
    record = record_of([b"open%d" % i for i in range(12)], prompt=secrets)
    scored = dataclasses.replace(
        record,
        valid=torch.arange(16).expand(2, 16) > 0,
        entropy=torch.full((2, 16), 1.0),
        logprobs=torch.full((2, 16), -1.0),
    )
    for candidate in (record, scored):
        candidate = dataclasses.replace(  # nor through what was likely instead
            candidate,
            alternatives=Alternatives(
                torch.where(torch.arange(16)[None, :, None] < 4, candidate.alternatives.ids, 5),
                candidate.alternatives.logprobs,
            ),
        )
        assert "secret" in heatmap(candidate)
        hidden = heatmap(candidate, redact_prompts=True)
        assert "secret" not in hidden
        assert b"secret".hex(" ").upper() not in hidden
        assert "left out of this page" in Page(hidden).text
        assert "open11" in hidden


def test_siblings_stand_together_with_their_rewards():
    record = record_of([b"a", b"b"], rows=4)
    record = dataclasses.replace(
        record, groups=torch.tensor([5, 9, 5, 9]), rewards=torch.tensor([0.25, 1.0, 0.75, 0.0])
    )
    text = Page(heatmap(record)).text
    order = [text.index(f"Rollout {n} reward {r}") for n, r in
             [("1.1", "0.25"), ("1.2", "0.75"), ("2.1", "1"), ("2.2", "0")]]  # fmt: skip
    assert order == sorted(order)
    assert "2 rollouts, mean reward 0.5" in text
    bare = dataclasses.replace(record, rewards=None)
    assert "reward" not in Page(heatmap(bare)).text


def test_provenance_and_caveats_are_stated():
    record = record_of([b"a"])
    greedy = dataclasses.replace(
        record,
        provenance=dataclasses.replace(
            record.provenance, temperature=0.0, weights="sha256:abc", libraries={"torch": "2.13.0"}
        ),
    )
    text = Page(heatmap(greedy)).text
    for stated in (
        "organism:test", "sha256:abc", "float32", "seed 7", "0 (greedy)", "torch 2.13.0",
        "logits / temperature, full vocabulary, before top-k and top-p",
        "so the entropy is the one at temperature 1", "Forks are a choice of ours",
    ):  # fmt: skip
        assert stated in text


def test_an_empty_record_and_rows_without_completion_are_drawn():
    text = Page(heatmap(empty_record())).text
    assert "The record is empty" in text
    assert "there are no forks" in text
    record = record_of([b"a", b"b"], rows=2)
    valid = record.valid.clone()
    valid[0] = False
    page = Page(heatmap(dataclasses.replace(record, valid=valid)))
    assert "No tokens after the prompt." in page.text
    assert {t["text"] for t in page.tokens if t["class"][0] != "p"} == {"a", "b"}
    none = dataclasses.replace(record, valid=torch.zeros_like(record.valid))
    assert "No forks" in Page(heatmap(none)).text


def test_a_row_wider_than_its_own_tokens_has_no_padding_drawn():
    short = record_of([b"a", b"b", b"c", b"d"], rows=2)
    valid = short.valid.clone()
    valid[1, 3:] = False
    page = Page(heatmap(dataclasses.replace(short, valid=valid)))
    counts = [sum(t["strip"] == s for t in page.tokens) for s in (0, 1, 2)]
    assert counts == [1, 4, 2]


def test_too_many_tokens_are_cut_and_said_so():
    record = longer_record(60, rows=5)
    text = Page(heatmap(record, max_tokens=200)).text
    assert "Only 192 of 320 tokens are drawn: rollouts 1 to 3 (2 of 5 rollouts left out)" in text
    whole = Page(heatmap(record))
    assert "are drawn" not in whole.text
    first = Page(heatmap(record, max_tokens=10))
    assert "the first 10 tokens of rollout 1" in first.text
    assert len(first.tokens) == 10
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        heatmap(record, max_tokens=0)


def test_ids_without_bytes_say_so():
    record = dataclasses.replace(record_of([b"a", b"b"]), pieces={})
    assert "<id 1>" in "".join(t["text"] for t in Page(heatmap(record)).tokens)


def test_ids_are_unique_and_links_have_targets():
    page = Page(heatmap(record_of(HOSTILE)))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert {link[1:] for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    assert sum(t == "h1" for t, _ in page.tags) == 1


@pytest.mark.parametrize(("count", "means"), [(480, False), (481, True), (600, True)])
def test_charts_of_means_claim_nothing_of_single_tokens(count, means):
    page = heatmap(record_of([b"t%d" % i for i in range(count)], rows=1), scope="sequence")
    label = re.search(r'<svg [^>]*aria-label="([^"]*)"', page)[1]
    assert ("the mean of about" in label) == means
    assert ("<line " in page) != means


def test_bytes_that_nobody_knows_are_not_made_up():
    record = record_of([b"a", b"b"], rows=1)
    named = {token: piece for token, piece in record.pieces.items() if piece != b"b"}
    page = Page(heatmap(dataclasses.replace(record, pieces=named)))
    shared = next(json.loads(text) for attrs, text in page.scripts if attrs.get("id") == "shared")
    assert ["<id 2>", "not known"] in [[e[0].replace("·", " "), e[1]] for e in shared["pool"]
                                       if isinstance(e, list)]  # fmt: skip
