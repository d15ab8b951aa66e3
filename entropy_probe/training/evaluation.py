"""How often a model is right on held-out problems: accuracy and pass@k, with intervals."""

from collections.abc import Sequence
from typing import Any

import torch

from entropy_probe.figures import mean, pass_at
from entropy_probe.models.engine import engine_of
from entropy_probe.tasks import Problem, Task

from .collecting import sample_or_idle
from .distributed import Ranks
from .truncation import finished


def evaluate(
    model,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    *,
    n: int = 4,
    temperature: float = 1.0,
    pass_ks: Sequence[int] = (),
    max_new_tokens: int = 256,
    stop: Sequence[str | int] = (),
    seed: int = 0,
    batch_size: int = 256,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Give accuracy and pass@k by the task's own verifier, with 95% intervals over problems.

    The same seed gives every model the same noise, so that two of them are compared in pairs.

    Args:
        model: as for `sample`.
        tokenizer: its tokenizer.
        task: verifies the completions.
        problems: what is asked.
        n: completions a problem; one at temperature 0, where all would be equal.
        temperature: 0 is greedy.
        pass_ks: the k of pass@k, unbiased, over n completions; those above n are left out.
        max_new_tokens: tokens after which a completion is cut.
        stop: texts and token ids that end one.
        seed: of the sampling noise.
        batch_size: rows decoded together.
        ranks: the processes that share the problems.

    Returns:
        ``accuracy`` with ``accuracy_low`` and ``accuracy_high``, the same of each ``pass@k``,
        the mean ``length`` in tokens, the share ``truncated``, and what they are over.
    """
    ranks = ranks or Ranks()
    n = n if temperature > 0 else 1
    mine = [problems[i] for i in ranks.share(len(problems))]
    engine = engine_of(model)
    rows = sample_or_idle(
        engine, tokenizer, mine, n=n, max_new_tokens=max_new_tokens, temperature=temperature,
        stop=stop, alternatives=0, seed=seed, batch_size=batch_size,
        offset=ranks.share(len(problems)).start,
    )  # fmt: skip
    told: tuple[list, list, list] = ([], [], [])
    if rows is not None:
        pairs = zip((p for p in mine for _ in range(n)), range(len(rows)), strict=True)
        right = [task.verify(problem, rows.completion(row)) == 1.0 for problem, row in pairs]
        counts = torch.tensor(right).view(-1, n).sum(dim=1).tolist()
        ended = finished(engine, tokenizer, rows, max_new_tokens, stop)
        told = (counts, rows.valid.sum(dim=1).tolist(), ended)
    parts = zip(*ranks.objects(told), strict=True)
    counts, lengths, ended = ([value for part in column for value in part] for column in parts)
    figures = {"accuracy": mean([count / n for count in counts])}
    figures |= {f"pass@{k}": pass_at(k, counts, n) for k in pass_ks if k <= n}
    found: dict[str, Any] = {"temperature": temperature, "problems": len(counts), "n": n}
    for name, figure in figures.items():
        found |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    return found | {
        "length": sum(lengths) / len(lengths),
        "truncated": 1 - sum(ended) / len(ended),
    }
