"""A run that samples alone: where a model is unsure, or what it does at two temperatures.

Settings: ``model``, ``task``, ``problems`` (other ones for each seed), ``n`` completions of each,
``max_new_tokens``, ``fraction`` of the tokens that are forks, ``seed``; and, for a run at two
temperatures, ``at_forks`` and ``elsewhere``.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from entropy_probe import forking_mask, load, sample
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.planted import planted_roles
from entropy_probe.rollout import Rollouts
from entropy_probe.tasks import get_task
from entropy_probe.tempering import TwoTemperatures, tempered

from .training import rounded
from .watching import observe

CERTAIN = 0.01
"""Nats: the entropy under which 2506.01939 finds half of the tokens."""
FRACTIONS = (0.5, 0.8, 0.9, 0.95)
"""Where quantiles are read."""
EDGES = tuple(10 ** (i / 4) for i in range(-24, 5))
"""Bounds of the histogram's bins, in nats: four a decade."""
PIECES = 14
"""Tokens that are named, of those that fork most often."""


def execute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the profile of a model's uncertainty, or its accuracy at two temperatures."""
    model, tokenizer = load(settings["model"], device="cpu")
    task = get_task(settings["task"])
    problems = task.problems(settings["problems"], split="test", seed=1000 + settings["seed"])
    how = {"max_new_tokens": settings["max_new_tokens"], "seed": 5000 + settings["seed"]}
    rows = sample(
        model, tokenizer, [p.prompt for p in problems], n=settings["n"], alternatives=0,
        residual_positions="none", batch_size=512, **how,
    )  # fmt: skip
    forks = forking_mask(rows.entropy, rows.valid, fraction=settings["fraction"])
    threshold = float(rows.entropy[forks].min())
    found: dict[str, Any] = {"weights": weights_fingerprint(model), "threshold": threshold}
    if "at_forks" in settings:
        two = TwoTemperatures(threshold, settings["at_forks"], settings["elsewhere"])
        seen = observe(
            tempered(model, two), tokenizer, task, problems, n=settings["n"], **how
        )  # fmt: skip
        del seen["ways"]
        return rounded(found | seen)
    asked = [problem for problem in problems for _ in range(settings["n"])]
    right = [task.verify(p, rows.completion(row)) for row, p in enumerate(asked)]
    found |= {"accuracy": sum(right) / len(right), "fraction": settings["fraction"]}
    found |= shape(rows.entropy[rows.valid], settings["fraction"]) | named(rows, forks)
    found["planted"] = {
        name: overlap(forks, mask, rows.valid)
        for name, mask in planted_roles(rows, asked, task).items()
    }
    return rounded(found)


def shape(entropy: Tensor, fraction: float) -> dict[str, Any]:
    """Give how the entropies of some tokens are distributed.

    Returns:
        ``tokens``; ``certain``, the share under 0.01 nats; ``quantiles`` by their fraction; the
        ``histogram``, shares of the tokens between ``edges``, with one bin below and one above; and
        ``mass``, what part of all entropy lies in the highest ``fraction``.
    """
    values = entropy.double().sort().values
    top = math.ceil(fraction * len(values))
    bins = torch.bucketize(values, torch.tensor(EDGES, dtype=values.dtype))
    return {
        "tokens": len(values),
        "certain": float((values < CERTAIN).double().mean()),
        "quantiles": {f"{q:g}": float(values.quantile(q)) for q in FRACTIONS},
        "edges": list(EDGES),
        "histogram": (bins.bincount(minlength=len(EDGES) + 1) / len(values)).tolist(),
        "mass": float(values[-top:].sum() / values.sum()),
    }


def named(rows: Rollouts, forks: Tensor) -> dict[str, Any]:
    """Give the tokens that fork most often: each with its count, and how often it was a fork.

    A token is named by what was drawn; what it competed with is another one.
    """
    ids = rows.tokens[forks].bincount()
    every = rows.tokens[rows.valid].bincount(minlength=len(ids))
    most = ids.argsort(descending=True, stable=True)[:PIECES].tolist()
    return {
        "forking": [
            [rows.pieces[i].decode("utf-8", "replace"), int(ids[i]), int(every[i])]
            for i in most
            if ids[i] > 0
        ]
    }


def overlap(forks: Tensor, mask: Tensor, valid: Tensor) -> dict[str, float]:
    """Give how forks and the tokens of a mask meet.

    Returns:
        ``precision``, the share of the forks that are in the mask; ``recall``, the share of the
        mask that is a fork (NaN without any); and ``share``, that of all tokens in the mask.
    """
    both, count = int((forks & mask).sum()), int(mask.sum())
    return {
        "precision": both / int(forks.sum()),
        "recall": both / count if count else math.nan,
        "share": count / int(valid.sum()),
    }
