"""Profiles of uncertainty, against counting on hand-made entropies and on an organism."""

import math

import numpy as np
import pytest
import torch

from analyses.experiments.profiles import EDGES, execute, overlap, shape


def test_the_shape_of_a_distribution():
    torch.manual_seed(0)
    values = torch.rand(1000) ** 4
    found = shape(values, 0.2)
    numbers = np.sort(values.double().numpy())
    assert found["certain"] == pytest.approx((numbers < 0.01).mean())
    assert found["quantiles"]["0.8"] == pytest.approx(np.quantile(numbers, 0.8))
    assert found["mass"] == pytest.approx(numbers[800:].sum() / numbers.sum())
    counted, _ = np.histogram(numbers, [-1, *EDGES, 100])
    assert found["histogram"] == pytest.approx((counted / 1000).tolist(), abs=1e-3)
    assert sum(found["histogram"]) == pytest.approx(1.0)


def test_forks_and_a_mask_meet_as_sets_do():
    valid = torch.ones(2, 5, dtype=torch.bool)
    forks = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    mask = torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0]]).bool()
    assert overlap(forks, mask, valid) == {"precision": 2 / 3, "recall": 0.5, "share": 0.4}
    assert math.isnan(overlap(forks, torch.zeros_like(mask), valid)["recall"])


SETTINGS = {
    "model": "organism:taught", "task": "arithmetic", "problems": 8, "n": 1,
    "max_new_tokens": 40, "fraction": 0.2, "seed": 0,
}  # fmt: skip


def test_an_organism_is_profiled_and_sampled_at_two_temperatures():
    plain = execute(SETTINGS)
    # `taught` writes code alone: no strategy left to choose, so that decoys fill the top 20%.
    assert plain["planted"]["decoy"]["precision"] > 0.5
    assert plain["planted"]["decoy"]["precision"] > plain["planted"]["planted fork"]["precision"]
    assert plain["certain"] > 0.4
    assert sum(count for _, count, _ in plain["forking"]) <= 0.2 * plain["tokens"] + 1
    ones = execute(SETTINGS | {"at_forks": 1.0, "elsewhere": 1.0})
    assert ones["accuracy"] == plain["accuracy"]
    hot = execute(SETTINGS | {"at_forks": 1.0, "elsewhere": 4.0})
    assert hot["accuracy"] < 0.5 < plain["accuracy"]
    assert hot["threshold"] == plain["threshold"]
