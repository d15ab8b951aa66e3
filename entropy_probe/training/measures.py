"""What a step is logged as: means over the rows and tokens of all processes."""

import math
from collections import Counter
from itertools import compress
from typing import Any

import torch

from entropy_probe.loss import counter_means
from entropy_probe.tasks import Task
from entropy_probe.tasks.problem import LabelsTokens

from .collecting import Batch, Collected
from .distributed import Ranks
from .learning import Learnt


def measure(
    collected: Collected, learnt: Learnt, ranks: Ranks, task: Task, *, seconds: tuple[float, float]
) -> dict[str, Any]:
    """Give the numbers of a step.

    ``*_kept`` are over the tokens that trained, ``*_all`` over all that took part; shares of the
    mask on planted forks and decoys are there where the task can tell them.

    Args:
        collected: what was sampled.
        learnt: what its updates did.
        ranks: the processes.
        task: what was asked.
        seconds: of sampling, and of the updates.
    """
    sums = _rows(collected.drawn) | _tokens(collected.batch, learnt)
    roles = _roles(collected.batch, learnt, task)
    every = ranks.objects(
        (sums, dict(learnt.counters), sum(learnt.losses), learnt.thresholds, roles)
    )
    total = {name: sum(each[0][name] for each in every) for name in sums}
    names = {name for each in every for name in each[1]}
    counters = {name: torch.tensor(sum(each[1].get(name, 0.0) for each in every)) for name in names}
    thresholds = [t for each in every for t in each[3] if not math.isnan(t)]
    rollout, update = seconds
    found = _row_means(total) | {
        "prompts": collected.prompts, "groups": len(collected.groups),
        "groups_equal": collected.equal, "tokens": int(total["generated"]),
        "kept_share": _over(total["kept"], total["valid"]),
        "threshold": sum(thresholds) / len(thresholds) if thresholds else math.nan,
        "entropy_kept": _over(total["entropy_kept"], total["kept"]),
        "entropy_all": _over(total["entropy"], total["valid"]),
    }  # fmt: skip
    means = counter_means(counters)
    found |= {k: v for k, v in means.items() if k.startswith(("clip", "ratio", "kl"))}
    found |= _role_shares(task, [each[4] for each in every], total["kept"])
    return found | {
        "loss": sum(each[2] for each in every) / max(len(learnt.losses), 1),
        "gradient_norm": sum(learnt.norms) / max(len(learnt.norms), 1),
        "tokens_per_second": total["generated"] / max(rollout, 1e-9),
        "seconds_rollout": rollout,
        "seconds_update": update,
    }


def _rows(batch: Batch) -> dict[str, int | float]:
    """Add up over this process's rows."""
    rewards = batch.rollouts.rewards.double()
    return {
        "rows": len(batch),
        "reward": float(rewards.sum()),
        "squares": float((rewards**2).sum()),
        "right": float(batch.right.sum()),
        "cut": int((~batch.finished).sum()),
        "generated": int(batch.rollouts.valid.sum()),
    }


def _row_means(total: dict[str, int | float]) -> dict[str, float]:
    """Give the means over rows; every row sampled counts, also of groups that were dropped."""
    rows = total["rows"]
    mean = total["reward"] / rows
    return {
        "reward_mean": mean,
        "reward_std": math.sqrt(max(total["squares"] / rows - mean**2, 0.0)),
        "accuracy": total["right"] / rows,
        "length": total["generated"] / rows,
        "truncated": total["cut"] / rows,
    }


def _tokens(batch: Batch, learnt: Learnt) -> dict[str, int | float]:
    """Add up over this process's tokens."""
    entropy = batch.rollouts.entropy.double()
    return {
        "valid": int(learnt.valid.sum()),
        "kept": int(learnt.kept.sum()),
        "entropy": float(entropy[learnt.valid].sum()),
        "entropy_kept": float(entropy[learnt.kept].sum()),
    }


def _roles(batch: Batch, learnt: Learnt, task: Task) -> dict[bool, Counter[str]]:
    """Count the roles of the tokens that took part, and of those that trained (True)."""
    found = {False: Counter(), True: Counter()}
    if not isinstance(task, LabelsTokens):
        return found
    rollouts = batch.rollouts
    starts, ends = rollouts.prompt_lengths.tolist(), rollouts.lengths.tolist()
    for row, problem in enumerate(batch.problems):
        span = slice(starts[row], ends[row])
        ids = rollouts.tokens[row, span].tolist()
        pieces = [rollouts.pieces.get(i, b"").decode("utf-8", "replace") for i in ids]
        ended = bool(ids) and ids[-1] in rollouts.special_ids
        roles = task.token_roles(problem, pieces[: len(pieces) - ended], ended=ended)
        for trained, mask in ((False, learnt.valid), (True, learnt.kept)):
            found[trained].update(compress(roles, mask[row, span].tolist()))
    return found


def _role_shares(
    task: Task, counts: list[dict[bool, Counter[str]]], kept: int | float
) -> dict[str, Any]:
    """Give what the mask lies on, and how much of the planted forks and decoys it keeps."""
    if not isinstance(task, LabelsTokens):
        return {}
    every, trained = (sum((c[which] for c in counts), Counter()) for which in (False, True))
    found: dict[str, Any] = {}
    for name, roles in (("forks", task.fork_roles), ("decoys", task.decoy_roles)):
        here = sum(trained[role] for role in roles)
        found[f"mask_on_{name}"] = _over(here, kept)
        found[f"kept_of_{name}"] = _over(here, sum(every[role] for role in roles))
    return found | {"mask_roles": {role: _over(n, kept) for role, n in sorted(trained.items())}}


def _over(top: int | float, bottom: int | float) -> float:
    return top / bottom if bottom else math.nan
