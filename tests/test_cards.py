"""Feature cards against what was planted, and their page against hostile tokens."""

from html.parser import HTMLParser

import pytest
import torch
from hostile import HOSTILE
from records import random_record
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture, sample
from sae_steering.card_page import cards_page
from sae_steering.cards import AFTER, BEFORE, Card, Snippet, feature_cards, logit_effects
from sae_steering.sae import dictionary

PROMPTS = [[1, 5 + i, 6] for i in range(12)]
OPTIONS = {"max_new_tokens": 30, "residual_layers": [1], "residual_positions": "all", "seed": 4}


@pytest.fixture(scope="module")
def made():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    return model, tokenizer, sample(model, tokenizer, PROMPTS, **OPTIONS)


def first_number():
    """Give a dictionary whose feature 1 is how far the first number of a state is above 0."""
    weights = torch.zeros(32, 3)
    weights[0, 1], weights[0, 2] = 1.0, -1.0
    back = torch.zeros(3, 32)
    back[1, 0], back[2, 0] = 1.0, -1.0
    return dictionary(weights, torch.tensor([-1e9, 0, 0]), back, torch.zeros(32), layer=1)


def test_cards_count_and_show_the_strongest_places(made):
    _, _, record = made
    (card,) = feature_cards(first_number(), record, [1], top=4, drawn=0)
    values = record.residuals[1][:, 0].clamp(min=0)
    assert card.density == pytest.approx(float((values > 0).float().mean()))
    assert card.largest == pytest.approx(float(values.max()))
    assert card.mean == pytest.approx(float(values[values > 0].mean()), rel=1e-5)
    grid = torch.zeros(record.tokens.shape)
    grid[record.captured] = values
    best = grid.amax(dim=1).sort(descending=True)
    assert [s.sample for s in card.top] == best.indices[:4].tolist()
    for snippet in card.top:
        place = int(grid[snippet.sample].argmax())
        assert snippet.position == place - 1  # the state is at the token before the one it wrote
        assert snippet.acts[snippet.peak] == pytest.approx(float(grid[snippet.sample, place]))
        start = max(0, place - 1 - BEFORE)
        assert snippet.peak == place - 1 - start
        ids = record.tokens[snippet.sample, start : place + AFTER].tolist()
        ids = ids[: int(record.lengths[snippet.sample]) - start]
        assert snippet.pieces == tuple(record.pieces[i] for i in ids)
        assert snippet.acts[snippet.peak + 1 :][:1] != () or place == record.lengths[snippet.sample]
        assert snippet.acts[0] is None or start > 1  # the prompt's first state predicts no row


def test_random_places_are_active_ones_and_reproducible(made):
    _, _, record = made
    one, two, other = (
        feature_cards(first_number(), record, [0, 1], top=0, drawn=5, seed=s)[1] for s in (0, 0, 1)
    )
    assert one == two
    assert one.drawn != other.drawn
    assert len(one.drawn) == 5
    assert all(s.acts[s.peak] > 0 for s in one.drawn)
    weights = torch.zeros(32, 2)
    weights[0] = 1.0
    twice = dictionary(weights, torch.zeros(2), weights.T.contiguous(), torch.zeros(32), layer=1)
    same = feature_cards(twice, record, [0, 1], top=1, drawn=5)
    assert same[0].top == same[1].top
    assert same[0].drawn != same[1].drawn  # each feature has a draw of its own
    silent = feature_cards(first_number(), record, [0])[0]
    assert (silent.density, silent.largest, silent.mean, silent.top) == (0, 0, 0, ())


def test_runs_give_the_cards_of_their_record(made, tmp_path):
    model, tokenizer, record = made
    run = capture(model, tokenizer, PROMPTS, tmp_path / "run", chunk_prompts=5, **OPTIONS)
    whole, chunks = (feature_cards(first_number(), s, [1, 2]) for s in (record, run.path))
    for one, two in zip(whole, chunks, strict=True):
        for shown in ("top", "drawn"):
            both = zip(getattr(one, shown), getattr(two, shown), strict=True)
            for a, b in both:
                assert (a.sample, a.position, a.pieces) == (b.sample, b.position, b.pieces)
                assert a.acts[a.peak] == pytest.approx(b.acts[b.peak])
    assert [c.mean for c in whole] == pytest.approx([c.mean for c in chunks])


def test_effects_on_logits_are_those_of_a_small_step_at_the_end(made):
    model, _, _ = made
    noise = torch.Generator().manual_seed(0)
    state, directions = torch.randn(32, generator=noise), torch.randn(3, 32, generator=noise)
    directions -= (directions @ state / state.square().sum())[:, None] * state  # length kept
    with torch.no_grad():
        step = 1e-3
        logits = model.lm_head(model.model.norm(state + step * directions))
        change = (logits - model.lm_head(model.model.norm(state))) / step
    scale = state.square().mean().sqrt()
    wanted = (change - change.mean(dim=1, keepdim=True)) * scale
    torch.testing.assert_close(logit_effects(model, directions), wanted, atol=0.2, rtol=1e-2)


def test_words_are_those_with_the_largest_effects(made):
    model, tokenizer, record = made
    (card,) = feature_cards(first_number(), record, [2], model=model, tokenizer=tokenizer, tokens=3)
    direction = torch.zeros(1, 32)
    direction[0, 0] = -1.0
    effects = logit_effects(model, direction)[0]
    names = [tokenizer.convert_ids_to_tokens(i).encode() for i in effects.topk(3).indices.tolist()]
    assert [piece for piece, _ in card.promotes] == names
    assert card.promotes[0][1] == pytest.approx(float(effects.max()), abs=1e-3)
    assert card.suppresses[0][1] == pytest.approx(float(effects.min()), abs=1e-3)
    table = model.get_input_embeddings().weight
    cosines = torch.nn.functional.cosine_similarity(table, direction)
    assert card.nearest[0][1] == pytest.approx(float(cosines.detach().max()), abs=1e-3)


def test_features_that_are_not_there_are_refused(made):
    with pytest.raises(ValueError, match=r"features 0 to 2, got \[3\]"):
        feature_cards(first_number(), made[2], [3])


def hostile_card():
    pieces = tuple(HOSTILE)
    acts = tuple(None if i % 3 == 0 else i / len(pieces) for i in range(len(pieces)))
    snippet = Snippet(3, 7, pieces, (False,) * len(pieces), acts, 5)
    words = tuple((piece, 1.5) for piece in pieces)
    scores = {"feature": 4, "auroc": 0.9, "auroc_low": 0.8, "auroc_high": 0.95, "x": None}
    return Card(4, 0.25, 1.0, 0.5, (snippet,), (snippet,), words, words, words, scores)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_tokens_stay_text():
    page = cards_page([hostile_card()], title="<script>", facts=[("<b>", "\u202e<i>")])
    reader = Reader()
    reader.feed(page)
    assert set(reader.tags) <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "dl", "div", "dt", "dd",
        "p", "span", "i", "main", "section", "h2", "h3", "b", "code", "ol", "li",
    }  # fmt: skip
    assert not {name for name, _ in reader.attributes} & {
        "onload",
        "onerror",
        "src",
        "href",
        "style",
    }
    shown = "".join(reader.text)
    assert "<script>" in shown
    assert "\u202e" not in page
    assert "\x00" not in page


def test_pages_say_numbers_and_are_the_same_every_time():
    page = cards_page([hostile_card()])
    assert page == cards_page([hostile_card()])
    assert "0.900 (0.800 to 0.950)" in page
    assert "active at</dt><dd>25.00% of states" in page
    only = cards_page([hostile_card()], columns={"auroc": "AUROC of forks"})
    assert "AUROC of forks" in only
    assert "<dt>x</dt>" in page
    assert "<dt>x</dt>" not in only
    assert "No features." in cards_page([])
    silent = Card(0, 0.0, 0.0, 0.0, (), ())
    assert "Feature 0" in cards_page([silent])


def test_cards_of_records_with_hostile_tokens_are_drawn():
    record = random_record(20, layers={1: 32})
    cards = feature_cards(first_number(), record, [1, 2])
    page = cards_page(cards)
    reader = Reader()
    reader.feed(page)
    assert reader.tags.count("section") == 2
    assert "script" not in reader.tags
