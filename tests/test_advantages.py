import inspect
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.advantages import group_advantages

REWARDS = st.sampled_from([0.0, 1.0, 0.1, -0.5, 0.3])


@st.composite
def batches(draw):
    rows = draw(st.integers(0, 12))
    rewards = draw(st.lists(REWARDS, min_size=rows, max_size=rows))
    groups = draw(st.lists(st.integers(-2, 2), min_size=rows, max_size=rows))
    return rewards, groups


def expected(rewards, groups, row: int, baseline: str, scale: str, eps: float) -> float:
    mine = [r for r, g in zip(rewards, groups, strict=True) if g == groups[row]]
    if len(set(mine)) == 1:
        return 0.0
    if baseline == "mean":
        gap = rewards[row] - statistics.fmean(mine)
    else:
        gap = rewards[row] - (math.fsum(mine) - rewards[row]) / (len(mine) - 1)
    return gap / (statistics.stdev(mine) + eps) if scale == "std" else gap


@given(batches(), st.sampled_from(["mean", "leave_one_out"]), st.sampled_from(["std", "none"]))
@settings(deadline=None)
def test_each_row_is_compared_with_its_group(batch, baseline, scale):
    rewards, groups = batch
    found = group_advantages(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups, dtype=torch.long),
        baseline=baseline, scale=scale, eps=1e-3,
    )  # fmt: skip
    wanted = [expected(rewards, groups, i, baseline, scale, 1e-3) for i in range(len(rewards))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_a_group_of_equal_rewards_or_of_one_row_gives_exactly_zero():
    # In float32 the mean of three times 0.1 is not 0.1.
    rewards = torch.tensor([0.1, 0.1, 0.1, 7.0, 1.0, 0.0])
    groups = torch.tensor([3, 3, 3, 1, 2, 2])
    for baseline in ("mean", "leave_one_out"):
        found = group_advantages(rewards, groups, baseline=baseline)
        assert found[:4].tolist() == [0.0] * 4
        assert found[4] > 0 > found[5]


def test_the_order_of_rows_and_the_names_of_groups_do_not_matter():
    rewards, groups = torch.rand(20), torch.randint(0, 4, (20,))
    order = torch.randperm(20)
    found = group_advantages(rewards[order], 9 - 2 * groups[order])
    assert torch.allclose(found, group_advantages(rewards, groups)[order])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.tensor([0.0, math.nan])}, "reward of row 1 is nan.*spoil"),
        ({"rewards": torch.tensor([math.inf, 0.0])}, "reward of row 0 is inf"),
        ({"rewards": torch.zeros(3)}, r"must both be \[batch\], got \(3,\) and \(2,\)"),
        ({"baseline": "median"}, "baseline must be one of .*'median'"),
        ({"scale": "iqr"}, "scale one of .*'iqr'"),
        ({"eps": -1.0}, "eps must be 0 or more"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {"rewards": torch.zeros(2), "groups": torch.zeros(2, dtype=torch.long)} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(group_advantages)(**arguments)
