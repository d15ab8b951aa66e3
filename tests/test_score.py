"""Scores of features against numpy, scipy and counting, on planted features."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from tiny import VOCAB, tiny_model, tiny_tokenizer

from entropy_probe import capture, sample
from sae_steering.activities import activities
from sae_steering.auroc import auroc
from sae_steering.identity import token_prediction, token_share
from sae_steering.sae import dictionary
from sae_steering.score import (
    choice_selectivity,
    fork_selectivity,
    model_shift,
    outcome_selectivity,
    strategy_selectivity,
)
from sae_steering.tables import FeatureTable

WORD, CONTEXT, BOTH, NOISE = range(4)


@pytest.fixture(scope="module")
def planted():
    """Give states: a word detector, a feature of the class itself, their sum, and noise."""
    noise = torch.Generator().manual_seed(0)
    n = 3000
    tokens = torch.randint(8, (n,), generator=noise)
    positive = torch.rand(n, generator=noise) < 0.15 + 0.7 * (tokens >= 4)
    word = (tokens >= 4).float() * (1 + torch.rand(n, generator=noise))
    context = positive.float() * (torch.rand(n, generator=noise) < 0.6)
    other = (torch.rand(n, generator=noise) < 0.3).float()
    acts = torch.stack([word, context, word + context, other], dim=1)
    positions = torch.randint(5, (n,), generator=noise)
    return acts, positive, tokens, positions, torch.arange(n) // 12


def test_a_word_detector_is_told_from_a_feature_of_the_class(planted):
    acts, positive, tokens, _, clusters = planted
    table = fork_selectivity(acts, positive, tokens=tokens, clusters=clusters)
    assert table["auroc"][WORD] > 0.8
    assert table["token"][WORD] == pytest.approx(float(table["auroc"][WORD]), abs=0.03)
    assert table["matched_low"][WORD] < 0.5 < table["matched_high"][WORD]
    assert table["matched_low"][CONTEXT] > 0.7
    assert table["matched"][BOTH] > table["matched"][WORD] + 0.2
    assert table["token_share"][WORD] > 0.8 > 0.5 > table["token_share"][CONTEXT]
    assert table["auroc_low"][NOISE] < 0.5 < table["auroc_high"][NOISE]
    assert table.about == {"states": 3000, "positive": int(positive.sum())}
    assert set(table.best(2, by="matched")) == {CONTEXT, BOTH}


def test_effects_and_rates_are_those_of_numpy(planted):
    acts, positive, tokens, _, clusters = planted
    table = fork_selectivity(acts, positive, tokens=tokens, clusters=clusters)
    ups, downs = acts[positive].double().numpy(), acts[~positive].double().numpy()
    n, m = len(ups), len(downs)
    pooled = ((n - 1) * ups.var(0, ddof=1) + (m - 1) * downs.var(0, ddof=1)) / (n + m - 2)
    effect = (ups.mean(0) - downs.mean(0)) / np.sqrt(pooled)
    np.testing.assert_allclose(table["effect"], effect, rtol=1e-5)
    np.testing.assert_allclose(table["rate"], (ups > 0).mean(0), rtol=1e-6)
    np.testing.assert_allclose(table["rate_other"], (downs > 0).mean(0), rtol=1e-6)
    for name in ("effect", "rate", "rate_other"):
        assert bool((table[f"{name}_low"] <= table[name]).all())
        assert bool((table[name] <= table[f"{name}_high"]).all())
    share = float(table["rate"][NOISE])
    width = float(table["rate_high"][NOISE] - table["rate_low"][NOISE])
    assert width == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / n), rel=0.25)


def test_blocks_of_features_change_nothing(planted, monkeypatch):
    acts, positive, tokens, _, clusters = planted
    whole = fork_selectivity(acts, positive, tokens=tokens, clusters=clusters)
    monkeypatch.setattr("sae_steering.contrast._COLUMNS", 1)
    parts = fork_selectivity(acts, positive, tokens=tokens, clusters=clusters)
    for name in whole.columns:
        torch.testing.assert_close(whole[name], parts[name])


@pytest.mark.parametrize("function", [strategy_selectivity, outcome_selectivity])
def test_strategies_and_outcomes_are_matched_for_token_and_position(planted, function):
    acts, positive, tokens, positions, clusters = planted
    options = {"tokens": tokens, "positions": positions, "clusters": clusters}
    table = function(acts, positive, **options)
    wanted = auroc(acts, positive, clusters=clusters, strata=tokens * 100 + positions)
    torch.testing.assert_close(table["matched"], wanted.value.float())
    assert table.score == function.__name__.partition("_")[0]


def test_the_token_alone_predicts_from_the_other_half():
    acts = torch.tensor([[1.0], [3.0], [10.0], [20.0], [5.0]])
    tokens, clusters = torch.tensor([7, 7, 9, 9, 8]), torch.tensor([0, 1, 0, 1, 0])
    found = token_prediction(acts, tokens, clusters)[:, 0].tolist()
    assert found == pytest.approx([3, 1, 20, 10, (3 + 20) / 2])
    alone = token_prediction(acts, tokens, torch.zeros(5, dtype=torch.long))
    assert alone[:, 0].tolist() == pytest.approx([39 / 5] * 5)
    share = token_share(torch.tensor([[1.0, 0], [3.0, 0]]), torch.tensor([[1.0, 0], [2.0, 0]]))
    assert float(share[0]) == pytest.approx(0.5)
    assert bool(share[1].isnan())


def test_the_share_that_tokens_explain_is_that_of_numpy_in_blocks_of_features():
    noise = np.random.default_rng(0)
    acts = noise.normal(size=(50, 150))
    guess = acts + noise.normal(size=(50, 150)) * np.linspace(0.1, 1.5, 150)
    share = token_share(torch.from_numpy(acts), torch.from_numpy(guess))
    wanted = 1 - np.square(acts - guess).sum(0) / (50 * acts.var(0))
    np.testing.assert_allclose(share, wanted.clip(min=0), rtol=1e-6)


def test_choices_are_ranked_as_scipy_ranks_them():
    noise = np.random.default_rng(0)
    kind = noise.integers(4, size=400)
    hidden = noise.normal(size=400)
    probability = 1 / (1 + np.exp(-(kind - 1.5 + hidden)))
    acts = np.stack([
        np.maximum(hidden + 0.5 * noise.normal(size=400), 0),  # what the words do not show
        kind + 0.01 * noise.normal(size=400),  # the word
        noise.normal(size=400),
        np.zeros(400),
    ], axis=1).astype(np.float32)  # fmt: skip
    table = choice_selectivity(
        torch.from_numpy(acts), torch.from_numpy(probability).float(), given=torch.from_numpy(kind)
    )
    dummies = np.eye(4)[kind]

    def left(values):
        ranks = rankdata(values)
        return ranks - dummies @ np.linalg.lstsq(dummies, ranks, rcond=None)[0]

    for i in range(3):
        wanted = spearmanr(acts[:, i], probability).statistic
        assert float(table["spearman"][i]) == pytest.approx(wanted, abs=1e-6)
        wanted = np.corrcoef(left(acts[:, i]), left(probability))[0, 1]
        assert float(table["partial"][i]) == pytest.approx(wanted, abs=1e-6)
    assert bool(table["spearman"][3].isnan())
    assert table["partial_low"][0] > 0.6
    assert table["spearman_low"][1] > 0.6
    assert table["partial_low"][1] < 0.2
    assert table["kind_share"][1] > 0.99
    alone = [probability[kind == k].mean() for k in kind]
    wanted = spearmanr(alone, probability).statistic
    assert table.about["spearman of the kind alone"] == pytest.approx(wanted, abs=1e-6)
    assert table.best(9, by="partial") == [0, *table.best(9, by="partial")[1:]]
    assert 3 not in table.best(9, by="partial")


def test_correlation_intervals_cover_at_their_level():
    hits = 0
    for seed in range(200):
        noise = torch.Generator().manual_seed(seed)
        x, e = torch.randn(150, generator=noise), torch.randn(150, generator=noise)
        table = choice_selectivity(
            x[:, None], 0.6 * x + 0.8 * e, given=torch.zeros(150, dtype=torch.long)
        )
        truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal with correlation 0.6
        hits += float(table["spearman_low"][0]) <= truth <= float(table["spearman_high"][0])
    assert 182 <= hits <= 199


def test_shifts_are_paired_and_tell_words_from_the_rest():
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (2000,), generator=noise)
    before = torch.rand(2000, 3, generator=noise).clamp(min=0.3)
    change = torch.stack([
        (tokens == 2) * 1.0, 0.2 + 0.1 * torch.randn(2000, generator=noise), torch.zeros(2000),
    ], dim=1)  # fmt: skip
    after = before + change
    table = model_shift(before, after, tokens=tokens, clusters=torch.arange(2000) // 10)
    change = (after - before).double()
    torch.testing.assert_close(table["shift"].double(), change.mean(0), atol=1e-6, rtol=1e-5)
    wanted = change[:, :2].mean(0) / change[:, :2].std(0, correction=0)
    torch.testing.assert_close(table["effect"][:2].double(), wanted, atol=1e-4, rtol=1e-4)
    assert table["token_share"][0] > 0.99
    assert table["token_share"][1] < 0.02
    assert float(table["shift_low"][1]) > 0.19
    assert table["shift"][2] == table["shift_high"][2] == 0


@pytest.fixture(scope="module")
def made():
    prompts = [[1, 5 + i, 6] for i in range(20)]
    options = {"n": 2, "max_new_tokens": 9, "residual_layers": [1], "residual_positions": "all"}
    return tiny_model(), tiny_tokenizer(), prompts, options


def small_sae():
    noise = torch.Generator().manual_seed(1)
    weights = torch.randn(32, 20, generator=noise)
    return dictionary(weights, torch.zeros(20), weights.T.clone(), torch.zeros(32), layer=1, k=4)


def test_activities_say_of_each_state_what_it_is(made):
    model, tokenizer, prompts, options = made
    record = sample(model, tokenizer, prompts, **options).with_rewards(torch.arange(40.0))
    found = activities(small_sae(), record, mark=lambda r: r.tokens * 2)
    row, place = record.captured.nonzero(as_tuple=True)
    assert torch.equal(found.acts, small_sae().encode(record.residuals[1]))
    assert torch.equal(found.read, record.tokens[row, place - 1])
    assert torch.equal(found.written, record.tokens[row, place])
    assert torch.equal(found.places, place - 3)
    assert torch.equal(found.prompts, row // 2)
    assert torch.equal(found.entropy, record.entropy[row, place])
    assert torch.equal(found.marks, 2 * found.read)
    assert torch.equal(found.rewards, row.float())
    assert int(found.forks.sum()) == -(-len(found) // 5)
    assert found.entropy[found.forks].min() >= found.entropy[~found.forks].max()
    part = found[found.places == 0]
    assert part.read.tolist() == [6] * 40
    assert len(part.acts) == len(part) == 40


def test_activities_of_a_run_are_those_of_its_record_and_may_be_a_part(made, tmp_path):
    model, tokenizer, prompts, options = made
    run = capture(model, tokenizer, prompts, tmp_path / "run", chunk_prompts=5, **options)
    record = run.rollouts()
    whole, chunks = activities(small_sae(), record), activities(small_sae(), [run.path])
    for name in ("acts", "read", "places", "rows", "entropy"):
        assert torch.equal(getattr(whole, name), getattr(chunks, name))
    torch.testing.assert_close(chunks.prompts.unique(return_inverse=True)[1], whole.prompts)
    assert chunks.rewards is None
    some = activities(small_sae(), [run], states=50, seed=1)
    assert (len(some), some.captured) == (50, len(whole))
    key = {tuple(k): a for k, a in zip(
        torch.stack([whole.rows, whole.places], 1).tolist(), whole.acts, strict=True
    )}  # fmt: skip
    for row, place, acts in zip(some.rows.tolist(), some.places.tolist(), some.acts, strict=True):
        assert torch.equal(key[row, place], acts)
    assert len(set(zip(some.rows.tolist(), some.places.tolist(), strict=True))) == 50
    first = activities(small_sae(), run, choose=lambda r: r.captured.cumsum(1) == 1)
    assert len(first) == 40
    assert set(first.places.tolist()) == {0}
    twice = activities(small_sae(), [record, record])
    assert torch.equal(twice.prompts, torch.cat([whole.prompts, whole.prompts]))
    assert len(twice.rows.unique()) == 80
    parts = activities(small_sae(), [record[1::2], record[::2]])
    assert torch.equal(parts.prompts, torch.cat([whole.prompts[whole.rows % 2 == 0]] * 2))


def test_a_part_may_be_of_whole_samples_alone(made):
    model, tokenizer, prompts, options = made
    record = sample(model, tokenizer, prompts, **options, stop=list(range(2, VOCAB, 5)))
    lengths = record.valid.sum(dim=1)
    assert len(lengths.unique()) > 2
    everything = activities(small_sae(), [record, record])
    counts = torch.cat([lengths, lengths])
    for seed in range(3):
        found = activities(small_sae(), [record, record], states=50, seed=seed, whole=True)
        rows, states = found.rows.unique(return_counts=True)
        assert torch.equal(states, counts[rows])
        assert 50 - int(lengths.max()) < len(found) <= 50
        kept = torch.isin(everything.rows, rows)
        assert torch.equal(found.acts, everything.acts[kept])
        assert torch.equal(found.places, everything.places[kept])
    assert len(set(rows.tolist())) < 80
    full = activities(small_sae(), [record, record], whole=True)
    assert torch.equal(full.acts, everything.acts)
    with pytest.raises(ValueError, match="no whole sample fits into 0 states"):
        activities(small_sae(), record, states=0, whole=True)


@pytest.mark.parametrize("positions", ["forks", "all"])
def test_parts_of_samples_are_refused_where_whole_ones_are_needed(made, positions):
    model, tokenizer, prompts, options = made
    record = sample(model, tokenizer, prompts, **options | {"residual_positions": positions})
    wanted = {"whole": True, "choose": None if positions == "forks" else lambda r: r.tokens > 9}
    assert len(activities(small_sae(), record, choose=wanted["choose"])) < int(record.valid.sum())
    with pytest.raises(ValueError, match=r"of 360 tokens have none .*\nfix: capture with --act"):
        activities(small_sae(), record, **wanted)


def test_what_has_no_states_is_refused(made):
    model, tokenizer, prompts, options = made
    bare = sample(model, tokenizer, prompts, max_new_tokens=3)
    with pytest.raises(ValueError, match="no captured states to score"):
        activities(small_sae(), bare)
    record = sample(model, tokenizer, prompts, **options | {"residual_layers": [0]})
    with pytest.raises(ValueError, match=r"reads layer 1, .* of layers \[0\]"):
        activities(small_sae(), record)


def test_tables_give_lines_and_files(tmp_path):
    table = FeatureTable("fork", {"auroc": torch.tensor([0.5, torch.nan, 0.9, 0.1])}, {"states": 4})
    assert table.best(3, by="auroc") == [2, 0, 3]
    assert table.best(2, by="auroc", around=0.45) == [2, 3]
    assert table.lines([1, 3]) == [
        {"feature": 1, "auroc": None}, {"feature": 3, "auroc": pytest.approx(0.1)},
    ]  # fmt: skip
    table.save(tmp_path / "t.json")
    assert '"schema_version": 1' in (tmp_path / "t.json").read_text()
    with pytest.raises(ValueError, match="no column 'x': there are auroc"):
        table["x"]
    with pytest.raises(ValueError, match="one number a feature"):
        inspect.unwrap(FeatureTable)("fork", {"a": torch.zeros(2), "b": torch.zeros(3)})
