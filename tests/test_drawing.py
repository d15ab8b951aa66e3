import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from entropy_probe.drawing import NEAR_TIE, draw, draw_greedy, keep_candidates, uniform_noise

COUNT = 20_000


def draws(weights, *, seed: int = 3, row: int = 0):
    """Draw once at each of many positions from the same weights."""
    rows = torch.full((COUNT,), row)
    return draw(
        weights.expand(COUNT, -1).contiguous(),
        seed=seed,
        rows=rows,
        positions=torch.arange(COUNT),
    )


def same_distribution(tokens, p) -> float:
    """Chi-square p-value of drawn tokens against probabilities, rare tokens pooled."""
    seen = np.bincount(tokens, minlength=len(p)).astype(float)
    wanted = np.asarray(p, dtype=float)
    wanted = wanted / wanted.sum() * len(tokens)
    rare = wanted < 8
    seen = np.append(seen[~rare], seen[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    assert seen[wanted == 0].sum() == 0
    return stats.chisquare(seen[wanted > 0], wanted[wanted > 0]).pvalue


def splitmix(x: int) -> int:
    """Finalise SplitMix64 in plain integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 1, 2**60, 2**63 + 5, -4])
def test_the_noise_is_splitmix64_of_seed_row_position_and_index(seed):
    noise = uniform_noise(seed, torch.tensor([5, 6]), torch.tensor([0, 9]), 3, stream=1)
    for i, (row, position) in enumerate([(5, 0), (6, 9)]):
        key = splitmix(splitmix(splitmix((seed * 8 + 1) % 2**64) ^ row) ^ position)
        for j in range(3):
            bits = splitmix((key + (j + 1) * 0x9E3779B97F4A7C15) % 2**64)
            assert noise[i, j].item() == ((bits >> 11) + 0.5) / 2**53


def test_the_noise_is_uniform_and_each_of_its_keys_changes_it():
    rows, positions = torch.arange(200), torch.zeros(200, dtype=torch.long)
    base = uniform_noise(0, rows, positions, 100, stream=0)
    assert base.min() > 0
    assert base.max() < 1
    assert stats.kstest(base.flatten(), "uniform").pvalue > 1e-3
    others = [
        uniform_noise(1, rows, positions, 100, stream=0),
        uniform_noise(0, rows, positions, 100, stream=1),
        uniform_noise(0, rows, positions + 1, 100, stream=0),
        uniform_noise(0, rows + 1, positions, 100, stream=0)[:-1],
        base.roll(1, dims=1),
    ]
    for other in others:
        pair = torch.stack([base[: len(other)].flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.03


def test_the_noise_of_a_row_does_not_know_its_batch():
    rows, positions = torch.tensor([4, 900, 17]), torch.tensor([3, 0, 3])
    together = uniform_noise(7, rows, positions, 50, stream=0)
    for i in range(3):
        alone = uniform_noise(7, rows[i : i + 1], positions[i : i + 1], 50, stream=0)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("vocab", [2, 63, 64, 65, 200])
def test_draws_follow_the_weights(vocab):
    weights = torch.randn(1, vocab).mul(2).exp()
    drawn = draws(weights)
    assert same_distribution(drawn.tokens, weights[0]) > 1e-3
    assert same_distribution(drawn.tokens, weights[0].roll(1)) < 1e-6  # it can fail


def test_draws_follow_the_weights_after_top_k_and_top_p():
    weights = torch.randn(1, 200).mul(2).exp()
    kept = keep_candidates(weights, top_p=0.8, top_k=30)
    drawn = draws(kept)
    assert set(drawn.tokens.tolist()) <= set(kept[0].nonzero()[:, 0].tolist())
    assert same_distribution(drawn.tokens, kept[0]) > 1e-3


def test_draws_at_neighbouring_positions_and_rows_are_independent():
    weights = torch.ones(1, 4)
    first, second = draws(weights).tokens, draws(weights, row=1).tokens
    for pair in (first[:-1] * 4 + first[1:], first * 4 + second):
        assert same_distribution(pair, np.ones(16)) > 1e-3


def test_only_what_has_weight_is_drawn():
    weights = torch.zeros(1, 300)
    weights[0, [5, 64, 299]] = torch.tensor([1e-20, 1e-20, 1e-20])
    drawn = draws(weights)
    assert set(drawn.tokens.tolist()) == {5, 64, 299}
    weights[0, [5, 299]] = 0
    drawn = draws(weights)
    assert (drawn.tokens == 64).all()
    assert not drawn.near_tie.any()


@pytest.mark.parametrize("every", [1, 40], ids=["within blocks", "between blocks"])
def test_a_draw_changes_under_rounding_only_where_it_is_reported(every):
    logits = torch.full((1, 150), -torch.inf)
    logits[:, ::every] = 0.0
    positions = torch.arange(2 * COUNT)
    shaken = logits + (torch.rand(2 * COUNT, 150) - 0.5) * NEAR_TIE * 0.98
    noise = {"seed": 0, "rows": torch.zeros_like(positions), "positions": positions}
    one = draw(logits.exp().repeat(2 * COUNT, 1), **noise)
    other = draw(shaken.exp(), **noise)
    changed = one.tokens != other.tokens
    assert changed.any()  # the shaking is large enough to show something
    assert not (changed & ~one.near_tie).any()
    assert one.near_tie.float().mean() < 0.01


def test_greedy_takes_the_first_of_equals_and_reports_them():
    scores = torch.randint(0, 4, (200, 997)).float()
    drawn = draw_greedy(scores)
    assert drawn.tokens.tolist() == [row.index(max(row)) for row in scores.tolist()]
    assert drawn.near_tie.all()
    assert not draw_greedy(torch.tensor([[0.0, 5.0, 5.0 - 2 * NEAR_TIE]])).near_tie.any()
    assert draw_greedy(torch.zeros(2, 1)).tokens.tolist() == [0, 0]


@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [1e-4, 0.5, 0.9, 1.0])
def test_candidates_are_those_of_transformers(top_k, top_p):
    logits = torch.randn(50, 120) * 2
    theirs = logits
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    weights = logits.exp()
    kept = keep_candidates(weights, top_p=top_p, top_k=top_k)
    assert torch.equal(kept > 0, theirs.isfinite())
    assert torch.equal(kept[kept > 0], weights[kept > 0])


def test_equals_of_the_kth_candidate_stay():
    weights = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.5]])
    assert keep_candidates(weights, top_k=2).tolist() == [[0.0, 3.0, 2.0, 2.0, 2.0, 0.0]]


def test_all_candidates_are_kept_by_default_and_the_weights_are_untouched():
    weights = torch.rand(3, 9)
    before = weights.clone()
    assert torch.equal(keep_candidates(weights), before)
    keep_candidates(weights, top_p=0.3, top_k=4)
    assert torch.equal(weights, before)
