"""Two models on the same tokens, against sets, sorting and the closed form."""

import math

import pytest
import torch

from entropy_probe.comparing import entropy_change, perplexities, shared_forks


def test_shared_forks_are_an_intersection_of_sets():
    torch.manual_seed(1)
    one, other = torch.rand(6, 25), torch.rand(6, 25)
    valid = torch.rand(6, 25) < 0.8
    count = math.ceil(0.2 * int(valid.sum()))

    def top(entropy):
        places = valid.flatten().nonzero()[:, 0].tolist()
        return set(sorted(places, key=lambda i: -entropy.flatten()[i])[:count])

    wanted = len(top(one) & top(other)) / count
    assert shared_forks(one, other, valid) == pytest.approx(wanted)
    assert shared_forks(one, one, valid) == 1.0
    assert shared_forks(one, -one, valid) == 0.0
    with pytest.raises(ValueError, match="no token is valid"):
        shared_forks(one, other, torch.zeros_like(valid))


def test_unrelated_models_share_as_many_as_chance_gives():
    torch.manual_seed(2)
    valid = torch.ones(100, 200, dtype=torch.bool)
    shared = shared_forks(torch.rand(100, 200), torch.rand(100, 200), valid, fraction=0.2)
    assert shared == pytest.approx(0.2, abs=0.02)


def test_changes_are_means_of_equal_bins_of_the_base():
    base = torch.arange(40.0).reshape(4, 10) / 10
    valid = torch.ones(4, 10, dtype=torch.bool)
    valid[0, :5] = False
    after = torch.where(base > 3.0, base + 1, base)
    after[0, 0] = 1e6  # not valid
    found = entropy_change(base, after, valid, bins=5)
    assert found.base.tolist() == pytest.approx([0.8, 1.5, 2.2, 2.9, 3.6], abs=1e-6)
    assert found.change.tolist() == pytest.approx([0.0, 0.0, 0.0, 2 / 7, 1.0], abs=1e-6)
    shuffled = torch.randperm(40)
    again = entropy_change(
        base.flatten()[shuffled][None], after.flatten()[shuffled][None],
        valid.flatten()[shuffled][None], bins=5,
    )  # fmt: skip
    assert again.change.tolist() == pytest.approx(found.change.tolist())
    with pytest.raises(ValueError, match="50 bins need as many tokens, got 35"):
        entropy_change(base, after, valid, bins=50)


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary():
    logprobs = torch.full((2, 6), -math.log(134.0))
    valid = torch.tensor([[False] + [True] * 5, [False, True, True, False, False, False]])
    logprobs[~valid] = -99.0
    assert perplexities(logprobs, valid).tolist() == pytest.approx([134.0, 134.0])
    mixed = torch.tensor([[0.0, math.log(0.5), math.log(0.125)]])
    assert perplexities(mixed, torch.tensor([[False, True, True]])).item() == pytest.approx(4.0)
    assert perplexities(mixed, torch.zeros(1, 3, dtype=torch.bool)).isnan().all()
