"""What each row's reward is worth against its group: the advantages of group-relative RL."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BASELINES = ("mean", "leave_one_out")
SCALES = ("std", "none")


@torch.no_grad()
def group_advantages(
    rewards: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
    *,
    baseline: str = "mean",
    scale: str = "std",
    eps: float = 1e-6,
) -> Float[Tensor, " batch"]:
    """Give each row's reward minus what its group got, in units of the group's spread.

    A group whose rewards are all equal, or of one row, teaches nothing: exactly 0. The standard
    deviation is the unbiased one (n - 1), which is what TRL and verl divide by; GRPO
    (arXiv 2402.03300) uses mean and std, Dr. GRPO (2503.20783) ``scale="none"``, RLOO
    (2402.14740) ``baseline="leave_one_out", scale="none"``.

    Args:
        rewards: one a row; float64 inside, the result has their dtype.
        groups: which prompt each row belongs to; all rows of a group must be here.
        baseline: "mean" of the group, or "leave_one_out", the mean of its other rows.
        scale: "std" divides by the group's standard deviation + eps, "none" by nothing.
        eps: added to the standard deviation; read with ``scale="std"`` only.

    Raises:
        ValueError: rewards that are NaN or infinite, shapes that differ, unknown options.

    >>> import torch
    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]), scale="none")
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    _check(rewards, groups, baseline, scale, eps)
    number, group = torch.unique(groups, return_inverse=True)
    values = rewards.double()
    zeros = values.new_zeros(len(number))
    count = zeros.index_add(0, group, torch.ones_like(values))
    others = (count - 1).clamp(min=1)
    gaps = values - (zeros.index_add(0, group, values) / count)[group]
    spread = (zeros.index_add(0, group, gaps**2) / others).sqrt()
    if baseline == "leave_one_out":  # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        gaps = gaps * (count / others)[group]
    if scale == "std":
        gaps = gaps / (spread + eps)[group]
    # The mean of equal numbers need not be that number, and a tiny gap over a tiny spread is large.
    low = zeros.scatter_reduce(0, group, values, "amin", include_self=False)
    high = zeros.scatter_reduce(0, group, values, "amax", include_self=False)
    return gaps.where((high > low)[group], 0.0).to(rewards.dtype)


def _check(rewards: Tensor, groups: Tensor, baseline: str, scale: str, eps: float) -> None:
    """Refuse rewards that would spread NaN, and options that do not exist."""
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards and groups must both be [batch], got {tuple(rewards.shape)} and "
            f"{tuple(groups.shape)}"
        )
    if baseline not in BASELINES or scale not in SCALES:
        raise ValueError(
            f"baseline must be one of {BASELINES} and scale one of {SCALES}, got {baseline!r}, "
            f"{scale!r}"
        )
    if not eps >= 0:
        raise ValueError(f"eps must be 0 or more, got {eps}")
    if not bool(rewards.isfinite().all()):
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(
            f"the reward of row {row} is {float(rewards[row])}: one such row would spoil its "
            "whole group; give every row a finite reward, or leave the row out"
        )
