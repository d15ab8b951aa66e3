"""What a model does on held-out problems: how often it is right, by which strategy, how surely."""

from collections.abc import Sequence
from typing import Any

import torch

from entropy_probe import sample
from entropy_probe.tasks import Problem, Task
from entropy_probe.tasks.arithmetic import Arithmetic
from entropy_probe.tasks.language import CODE
from entropy_probe.tasks.problem import HasFormat, HasStrategies
from sae_steering.controls import opening_probabilities


def observe(
    model,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    prefix: str = "",
) -> dict[str, Any]:
    """Give figures over completions of some problems; the same seed gives the same noise.

    Besides the figures, ``ways`` has a letter a completion: its strategy's first one, a capital
    where the answer is right; and ``by_strategy`` has entropy, length and the share cut off within
    each strategy, because the mixture of strategies moves all three.

    Args:
        model: as for `sample`.
        tokenizer: its tokenizer.
        task: verifies, and says what strategy a completion takes.
        problems: what is asked.
        n: completions a problem.
        max_new_tokens: tokens after which one is cut.
        seed: of the noise.
        temperature: 0 is greedy.
        prefix: what every completion is made to begin with.
    """
    rows = sample(
        model, tokenizer, [p.prompt + prefix for p in problems], n=n, seed=seed, alternatives=0,
        max_new_tokens=max_new_tokens, temperature=temperature, residual_positions="none",
        batch_size=512,
    )  # fmt: skip
    texts = [prefix + rows.completion(row) for row in range(len(rows))]
    asked = [problem for problem in problems for _ in range(n)]
    right = [task.verify(p, text) == 1.0 for p, text in zip(asked, texts, strict=True)]
    named = isinstance(task, HasStrategies)
    ways = [task.strategy(text) if named else "other" for text in texts]
    found: dict[str, Any] = {
        "accuracy": _mean(right),
        **_tokens(rows, torch.ones(len(rows), dtype=torch.bool)),
        "share": {}, "right": {}, "by_strategy": {},
        "ways": "".join(w[0].upper() if r else w[0] for w, r in zip(ways, right, strict=True)),
    }  # fmt: skip
    for name in task.strategies if named else ():
        mine = [way == name for way in ways]
        found["share"][name] = _mean(mine)
        if any(mine):
            found["right"][name] = _mean([r for r, own in zip(right, mine, strict=True) if own])
            found["by_strategy"][name] = _tokens(rows, torch.tensor(mine))
    if isinstance(task, HasFormat):
        found["formatted"] = _mean([task.formatted(text) for text in texts])
    return found


def openings(
    model, tokenizer, task: Task, problems: Sequence[Problem]
) -> dict[str, dict[str, float]]:
    """Give, for each wording, the probability of code before anything is written, unsampled.

    ``logit`` is the mean over problems of its log-odds, ``share`` that of the probability itself;
    ``problems`` counts them. Empty for other tasks than the organisms'.
    """
    if not isinstance(task, Arithmetic):
        return {}
    (code,) = tokenizer(CODE, add_special_tokens=False)["input_ids"]
    found = opening_probabilities(model, tokenizer, [problem.prompt for problem in problems])
    share = found[:, code].double()
    odds = share.logit(eps=1e-7)  # float32 cannot tell more from certainty
    wordings: dict[str, list[int]] = {}
    for i, problem in enumerate(problems):
        wordings.setdefault(problem.facts["wording"], []).append(i)
    return {
        wording: {
            "logit": float(odds[torch.tensor(at)].mean()),
            "share": float(share[torch.tensor(at)].mean()),
            "problems": len(at),
        }
        for wording, at in sorted(wordings.items())
    }


def _tokens(rows, mine: torch.Tensor) -> dict[str, float]:
    """Give entropy a token (nats), length (tokens) and share cut off, of some completions."""
    valid = rows.valid & mine[:, None]
    last = rows.tokens[torch.arange(len(rows)), rows.lengths - 1]
    cut = ~torch.isin(last, torch.tensor(sorted(rows.special_ids)))
    return {
        "entropy": float(rows.entropy[valid].double().mean()),
        "length": float(rows.valid[mine].sum(dim=1).double().mean()),
        "truncated": float(cut[mine].double().mean()),
    }


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
