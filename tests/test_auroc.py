"""AUROC against brute force, scipy, and the coverage of its intervals."""

import math

import pytest
import torch
from scipy.stats import mannwhitneyu

from sae_steering.auroc import auroc


def drawn(n=300, features=7, clusters=25, seed=0):
    """Give activations with many zeros and ties, a mask, clusters and strata."""
    noise = torch.Generator().manual_seed(seed)
    acts = (torch.randn(n, features, generator=noise).clamp(min=0) * 3).round() / 3
    positive = torch.rand(n, generator=noise) < 0.4
    acts[positive, 1] += 0.7
    acts[:, 2] = -acts[:, 2]
    acts[:, 3] = 0
    return (
        acts,
        positive,
        torch.randint(clusters, (n,), generator=noise) * 3,
        torch.randint(12, (n,), generator=noise) * 1000,
    )


def brute(values, positive, strata):
    """Give van Elteren's weighted share of pairs, and each state's influence, by pairs."""
    wins, pairs = 0.0, 0.0
    for stratum in set(strata):
        ups = [v for v, p, s in zip(values, positive, strata, strict=True) if p and s == stratum]
        downs = [
            v for v, p, s in zip(values, positive, strata, strict=True) if not p and s == stratum
        ]
        weight = 1 / (len(ups) + len(downs) + 1)
        wins += weight * sum((a > b) + 0.5 * (a == b) for a in ups for b in downs)
        pairs += weight * len(ups) * len(downs)
    return wins / pairs, pairs


def test_pooled_values_are_those_of_scipy():
    acts, positive, clusters, _ = drawn()
    found = auroc(acts, positive, clusters=clusters)
    for i in range(acts.shape[1]):
        ups, downs = acts[positive, i].numpy(), acts[~positive, i].numpy()
        wanted = mannwhitneyu(ups, downs).statistic / (len(ups) * len(downs))
        assert float(found.value[i]) == pytest.approx(wanted, abs=1e-12)
    assert found.pairs == int(positive.sum()) * int((~positive).sum())
    assert float(found.value[3]) == 0.5


def test_values_within_strata_are_those_of_counting_pairs():
    acts, positive, clusters, strata = drawn()
    strata[:40] = 99_000  # a stratum of one kind is left out
    positive[:40] = True
    found = auroc(acts, positive, clusters=clusters, strata=strata)
    for i in range(acts.shape[1]):
        value, pairs = brute(acts[40:, i].tolist(), positive[40:].tolist(), strata[40:].tolist())
        assert float(found.value[i]) == pytest.approx(value, abs=1e-12)
    assert found.pairs == pytest.approx(pairs)


def test_blocks_of_features_change_nothing(monkeypatch):
    acts, positive, clusters, strata = drawn()
    whole = auroc(acts, positive, clusters=clusters, strata=strata)
    monkeypatch.setattr("sae_steering.auroc._CELLS", 500)
    parts = auroc(acts, positive, clusters=clusters, strata=strata)
    for name in ("value", "low", "high"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_a_difference_of_tokens_alone_vanishes_within_tokens():
    noise = torch.Generator().manual_seed(1)
    token = torch.randint(6, (4000,), generator=noise)
    positive = torch.rand(4000, generator=noise) < token / 6
    acts = (token + 0.3 * torch.randn(4000, generator=noise))[:, None]
    clusters = torch.arange(4000) // 10
    assert float(auroc(acts, positive, clusters=clusters).value) > 0.75
    matched = auroc(acts, positive, clusters=clusters, strata=token)
    assert float(matched.low) < 0.5 < float(matched.high)


def test_the_error_is_delongs_where_every_state_is_a_cluster():
    acts, positive, _, _ = drawn(n=80)
    found = auroc(acts, positive, clusters=torch.arange(80))
    ups, downs = acts[positive, 1].double(), acts[~positive, 1].double()
    wins = (ups[:, None] > downs).double() + 0.5 * (ups[:, None] == downs).double()
    theirs = wins.mean(dim=1).var() / len(ups) + wins.mean(dim=0).var() / len(downs)
    value = float(wins.mean())
    step = 1.96 * math.sqrt(float(theirs)) / (value * (1 - value))
    low = 1 / (1 + math.exp(-(math.log(value / (1 - value)) - step)))
    assert float(found.low[1]) == pytest.approx(low, abs=2e-3)


@pytest.mark.parametrize("stratified", [False, True])
def test_intervals_cover_at_their_level_where_states_of_a_cluster_are_alike(stratified):
    hits = naive = 0
    truth = 0.5 * (1 + math.erf(1.0 / math.sqrt(2 * (1 + 1)) / math.sqrt(2)))
    for seed in range(200):
        noise = torch.Generator().manual_seed(seed)
        owner = torch.arange(400) // 8
        positive = (owner % 2).bool()
        shared = torch.randn(50, generator=noise)[owner]
        values = (shared + torch.randn(400, generator=noise)) / math.sqrt(2) * math.sqrt(2)
        acts = (values + positive * 1.0)[:, None]
        strata = torch.randint(4, (400,), generator=noise) if stratified else None
        found = auroc(acts, positive, clusters=owner, strata=strata)
        alone = auroc(acts, positive, clusters=torch.arange(400), strata=strata)
        hits += float(found.low) <= truth <= float(found.high)
        naive += float(alone.low) <= truth <= float(alone.high)
    assert 182 <= hits <= 199
    assert naive < 160  # states taken as independent: far too narrow


def test_perfect_separation_is_not_certainty():
    positive = torch.arange(60) < 30
    acts = torch.stack([positive * 1.0, ~positive * 1.0], dim=1)
    found = auroc(acts, positive, clusters=torch.arange(60) // 2)
    assert found.value.tolist() == [1.0, 0.0]
    assert found.low[0] == pytest.approx(1 - 3 / 15)
    assert found.high[1] == pytest.approx(3 / 15)
    assert (float(found.high[0]), float(found.low[1])) == pytest.approx((1, 0), abs=1e-6)


def test_nothing_to_compare_is_not_a_number():
    acts = torch.rand(5, 3)
    found = auroc(acts, torch.ones(5, dtype=torch.bool), clusters=torch.arange(5))
    assert found.value.isnan().all()
    assert found.pairs == 0


def test_masks_must_be_bool():
    import inspect

    with pytest.raises(ValueError, match="positive must be a bool mask"):
        inspect.unwrap(auroc)(torch.rand(5, 3), torch.ones(5), clusters=torch.arange(5))
