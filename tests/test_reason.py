"""ReasonScore against its formula, counted state by state; words in texts; random words."""

import dataclasses
import math

import pytest
import torch
from records import random_record

from sae_steering.reason import around, reason_score, word_tokens


def text_record(*texts):
    """Give a record with these texts, cut into tokens at the bars."""
    pieces, rows = {}, []
    for text in texts:
        rows.append([])
        for piece in text.split("|"):
            pieces.setdefault(piece.encode(), len(pieces))
            rows[-1].append(pieces[piece.encode()])
    width = max(map(len, rows))
    record = random_record(len(rows), layers={}, rewards=False)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    shape = tokens.shape
    nothing = torch.zeros(shape, dtype=torch.bool)
    return dataclasses.replace(
        record, tokens=tokens, valid=nothing, captured=nothing, controls=nothing,
        prompt_lengths=torch.tensor([len(row) for row in rows]), entropy=torch.zeros(shape),
        logprobs=torch.zeros(shape), ranks=torch.zeros(shape, dtype=torch.int32), rewards=None,
        alternatives=dataclasses.replace(
            record.alternatives, ids=torch.zeros(*shape, 0, dtype=torch.long),
            logprobs=torch.zeros(*shape, 0),
        ),
        pieces={i: piece for piece, i in pieces.items()}, special_ids=frozenset(),
    )  # fmt: skip


def test_words_are_found_whole_in_any_case_and_over_tokens():
    record = text_record(
        "so| Wait|,| let| me| think", "await|ing|.| BUT", "per|haps|\n|hm|m", "let|  me|, waiter"
    )
    found = word_tokens(record, ("wait", "let me", "perhaps", "but"))
    assert found.tolist() == [
        [-1, 0, -1, 1, 1, -1],
        [-1, -1, -1, 3, -1, -1],
        [2, 2, -1, -1, -1, -1],
        [1, 1, -1, -1, -1, -1],
    ]
    with pytest.raises(ValueError, match="expected words to look for"):
        word_tokens(record, ())
    with pytest.raises(ValueError, match="expected words to look for"):
        word_tokens(record, ("a", " "))


def test_windows_stay_inside_samples_and_the_nearer_word_wins():
    words = torch.tensor([-1, 0, -1, -1, -1, -1, 1, -1, -1, -1])
    rows = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    places = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    assert around(words, rows, places).tolist() == [0, 0, 0, 0, -1, 1, 1, 1, 1, -1]
    near = around(torch.tensor([0, -1, -1, 1]), torch.zeros(4).long(), torch.arange(4))
    assert near.tolist() == [0, 0, 1, 1]
    shuffled = torch.randperm(10)
    again = around(words[shuffled], rows[shuffled], places[shuffled])
    assert again.tolist() == around(words, rows, places)[shuffled].tolist()
    gap = around(torch.tensor([0, -1]), torch.zeros(2).long(), torch.tensor([0, 3]))
    assert gap.tolist() == [0, -1]


def planted(seed=0, n=4000):
    """Give samples of ten tokens; feature 0 likes all of three words, 1 one of them, 2 none."""
    noise = torch.Generator().manual_seed(seed)
    tokens = torch.randint(30, (n,), generator=noise)
    words = torch.where(tokens < 3, tokens, -1)
    acts = torch.rand(n, 4, generator=noise) * 0.1
    acts[tokens < 3, 0] += 1
    acts[tokens == 1, 1] += 3
    acts[tokens == 17, 2] += 1
    rows, places = torch.arange(n) // 10, torch.arange(n) % 10
    return acts, words, {
        "rows": rows, "places": places, "tokens": tokens, "clusters": rows // 2,
        "names": ("a", "b", "c"),
    }  # fmt: skip


def test_scores_follow_the_formula():
    acts, words, options = planted()
    table = reason_score(acts, words, nulls=0, **options)
    near = around(words, options["rows"], options["places"]).tolist()
    inside, outside, entropy = [], [], []
    for i in range(4):
        values = acts[:, i].tolist()
        means = []
        for j in range(3):
            own = [v for v, w in zip(values, near, strict=True) if w == j]
            means.append(sum(own) / len(own))
        every = [v for v, w in zip(values, near, strict=True) if w >= 0]
        other = [v for v, w in zip(values, near, strict=True) if w < 0]
        inside.append(sum(every) / len(every))
        outside.append(sum(other) / len(other))
        share = [m / sum(means) for m in means]
        entropy.append(-sum(p * math.log(p) for p in share) / math.log(3))
    for i in range(4):
        wanted = inside[i] / sum(inside) * entropy[i] ** 0.7 - outside[i] / sum(outside)
        assert float(table["score"][i]) == pytest.approx(wanted, abs=1e-5)
        assert float(table["entropy"][i]) == pytest.approx(entropy[i], abs=1e-5)
    assert bool((table["score_low"] <= table["score"]).all())
    assert bool((table["score"] <= table["score_high"]).all())
    assert table.about["words"]["b"] == int((options["tokens"] == 1).sum())


def test_a_feature_of_one_word_scores_below_one_of_all_and_random_words_below_both():
    acts, words, options = planted()
    table = reason_score(acts, words, nulls=40, **options)
    assert table.best(1, by="score") == [0]
    assert table["entropy"][1] < 0.8 < table["entropy"][0]
    assert table["p"][0] == pytest.approx(1 / 41)
    assert table["null_high"][0] < table["score_low"][0]
    assert table["p"][2] > 0.2
    assert table["p"][3] > 0.02


def test_texts_without_the_words_are_refused():
    acts, words, options = planted()
    with pytest.raises(ValueError, match="none of the words a, b, c is in the text"):
        reason_score(acts, torch.full_like(words, -1), **options)
