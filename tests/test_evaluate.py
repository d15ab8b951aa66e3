"""Dictionaries that are perfect or empty, measured; and losses against those of `score`."""

import dataclasses
import json

import pytest
import torch
from records import random_record
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture, sample, score
from entropy_probe.hooks import find_blocks
from sae_steering.evaluate import evaluate
from sae_steering.intervals import Prompts, bootstrap, cluster_sums, renumbered
from sae_steering.sae import dictionary
from sae_steering.splice import spliced_losses

PROMPTS = [[1, 5 + i, 6] for i in range(24)]
OPTIONS = {"max_new_tokens": 10, "residual_layers": [1], "residual_positions": "all", "seed": 2}
EYE = torch.eye(32)


@pytest.fixture(scope="module")
def made():
    return tiny_model(), tiny_tokenizer()


@pytest.fixture(scope="module")
def record(made):
    return sample(*made, PROMPTS, **OPTIONS)


def perfect():
    """Give a dictionary that reconstructs any state: x = relu(x) - relu(-x)."""
    both = torch.cat([EYE, -EYE])
    return dictionary(both.T, torch.zeros(64), both, torch.zeros(32), layer=1)


def constant(state):
    """Give a dictionary that has one state for all, and no active feature."""
    return dictionary(torch.zeros(32, 8), -torch.ones(8), torch.ones(8, 32), state, layer=1)


def test_a_perfect_dictionary_loses_nothing(made, record):
    found = evaluate(perfect(), record, model=made[0])
    for place in ("all", "forks", "elsewhere"):
        fit, loss = found.fits[place], found.losses[place]
        assert fit.explained_variance.value == pytest.approx(1.0, abs=1e-9)
        assert fit.l0.value == pytest.approx(32, abs=0.01)
        assert loss.spliced.value == pytest.approx(loss.clean.value, abs=1e-6)
        assert loss.recovered.value == pytest.approx(1.0, abs=1e-5)
        assert loss.clean.low < loss.clean.value < loss.clean.high
        assert fit.states == loss.tokens
    assert found.fits["all"].states == int(record.captured.sum())
    assert found.fits["forks"].states == -(-found.fits["all"].states // 5)
    assert found.losses["forks"].clean.value > found.losses["elsewhere"].clean.value
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_mean_recovers_nothing_and_explains_nothing(made, record):
    states = record.residuals[1]
    found = evaluate(constant(states.mean(dim=0)), record, model=made[0])
    assert found.fits["all"].explained_variance.value == pytest.approx(0.0, abs=1e-6)
    assert (found.dead, found.d_sae, found.fits["all"].l0.value) == (8, 8, 0.0)
    assert found.losses["all"].recovered.value == pytest.approx(0.0, abs=1e-5)
    assert found.losses["all"].ablated.value > found.losses["all"].clean.value + 0.1
    assert found.density.tolist() == [0.0] * 8


def test_figures_are_those_of_their_formulas(made, record):
    noise = torch.Generator().manual_seed(3)
    sae = dictionary(
        torch.randn(32, 40, generator=noise), torch.zeros(40),
        torch.randn(40, 32, generator=noise) * 0.03, record.residuals[1].mean(dim=0), layer=1, k=6,
    )  # fmt: skip
    found = evaluate(sae, record).fits["all"]
    states = record.residuals[1].double()
    acts = sae.encode(states.float())
    error = ((acts @ sae.W_dec + sae.b_dec).double() - states).square().sum()
    around = (states - states.mean(dim=0)).square().sum()
    assert found.explained_variance.value == pytest.approx(float(1 - error / around), rel=1e-5)
    assert found.l0.value == pytest.approx(float((acts > 0).sum() / len(states)))
    density = evaluate(sae, record).density
    torch.testing.assert_close(density, (acts > 0).float().mean(dim=0))


def test_clean_losses_are_those_of_score_and_the_model_stays_as_it_was(made, record):
    model, tokenizer = made
    scored = score(model, tokenizer, record.tokens, record.valid)
    options = {"layer": 1, "prompt_lengths": record.prompt_lengths}
    clean = spliced_losses(model, record.tokens, record.valid, change=None, **options)
    torch.testing.assert_close(clean, -scored.logprobs, atol=2e-6, rtol=2e-6)
    same = spliced_losses(model, record.tokens, record.valid, change=lambda x: x, **options)
    assert torch.equal(clean, same)
    assert not any(block._forward_hooks for block in find_blocks(model))


def test_only_states_that_predict_chosen_tokens_are_replaced(made, record):
    model, _ = made
    last = record.valid.clone()
    last[torch.arange(24), record.lengths - 1] = False
    last = record.valid & ~last  # the last token of each row
    options = {"layer": 1, "prompt_lengths": record.prompt_lengths, "batch_size": 5}
    seen = []
    changed = spliced_losses(
        model, record.tokens, last, change=lambda x: (seen.append(x), x + 1.0)[1], **options
    )
    before = {row: i for i, row in enumerate(torch.where(last)[0].tolist())}
    assert len(before) == 24
    states = torch.cat(seen)
    known = record.residuals[1][last[record.captured]]
    assert sorted(map(tuple, states.round(decimals=3).tolist())) == sorted(
        map(tuple, known.round(decimals=3).tolist())
    )
    clean = spliced_losses(model, record.tokens, record.valid, change=None, **options)
    assert bool((changed[last] != clean[last]).all())
    assert not changed[~last].any()


def test_runs_are_measured_chunk_by_chunk_as_records_are(made, record, tmp_path):
    run = capture(*made, PROMPTS, tmp_path / "run", chunk_prompts=24, **OPTIONS)
    whole = evaluate(perfect(), record, model=made[0]).to_dict()
    assert evaluate(perfect(), run.path, model=made[0]).to_dict() == whole
    part = evaluate(perfect(), [record, run], states=1, model=made[0], rows=7)
    assert part.fits["all"].states == int(record.captured.sum())
    assert part.losses["all"].tokens == int(record.captured[:7].sum())


def test_intervals_count_a_prompt_once_however_its_rows_are_spread(made):
    record = sample(*made, PROMPTS, n=2, **OPTIONS)
    sae, options = constant(record.residuals[1].mean(dim=0) + 0.1), {"model": made[0], "rows": 96}
    whole = evaluate(sae, record, **options)
    for sources in ([record[::2], record[1::2]], [record, record]):
        found = evaluate(sae, sources, **options)
        pairs = [(found.fits["all"].explained_variance, whole.fits["all"].explained_variance)]
        pairs += [
            (getattr(found.losses["all"], kind), getattr(whole.losses["all"], kind))
            for kind in ("clean", "spliced", "ablated")
        ]
        for one, other in pairs:
            assert other.low < other.value < other.high
            assert one.value == pytest.approx(other.value, rel=1e-5)
            assert one.low == pytest.approx(other.low, rel=1e-5)
            assert one.high == pytest.approx(other.high, rel=1e-5)


def test_prompts_are_told_apart_by_their_tokens_and_where_there_are_none_by_group():
    def made_of(prompts, groups):
        record = random_record(len(prompts), layers={}, rewards=False)
        tokens = torch.full(record.tokens.shape, 3)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return dataclasses.replace(
            record, tokens=tokens, prompt_lengths=lengths, groups=torch.tensor(groups)
        )

    numbers = Prompts()
    first = made_of([[1, 5], [1, 5], [1, 6], [1, 5, 3]], [0, 0, 1, 2])
    assert numbers.numbers(first).tolist() == [0, 0, 1, 2]
    again = made_of([[1, 6], [1, 7], [1, 5], [1, 5]], [4, 2, 9, 0])
    assert numbers.numbers(again).tolist() == [1, 3, 0, 0]
    texts = made_of([[1], [1], [], []], [0, 1, 2, 2])
    assert numbers.numbers(texts).tolist() == [4, 5, 6, 6]
    assert numbers.numbers(texts).tolist() == [4, 5, 6, 6]


def test_states_of_other_layers_are_refused(record):
    with pytest.raises(ValueError, match=r"reads layer 1, .* of layers \[\]"):
        evaluate(perfect(), sample(tiny_model(), tiny_tokenizer(), [[1, 2]], max_new_tokens=2))
    with pytest.raises(ValueError, match="no states to measure"):
        evaluate(perfect(), [])


def test_bootstrap_intervals_cover_at_their_level():
    def mean(totals):
        return totals[..., 1:] / totals[..., :1]

    hits, width = 0, []
    for seed in range(200):
        noise = torch.Generator().manual_seed(seed)
        size = torch.randint(1, 6, (60,), generator=noise)
        owner = torch.arange(60).repeat_interleave(size)
        values = torch.randn(60, generator=noise)[owner] + torch.randn(len(owner), generator=noise)
        columns = torch.stack([torch.ones(len(owner)), values + 3], dim=1)
        value, low, high = bootstrap(cluster_sums(columns, owner), mean, seed=seed)
        assert value[0] == pytest.approx(float(values.mean() + 3), rel=1e-5)
        hits += bool(low[0] <= 3 <= high[0])
        width.append(float(high[0] - low[0]))
    assert 180 <= hits <= 198  # 95% of 200, less a little for 60 clusters
    alone = bootstrap(cluster_sums(columns, renumbered(torch.full_like(owner, 7))), mean)
    assert alone[1].isnan().all()
