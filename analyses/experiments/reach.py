"""A run that asks what is within a model's reach, before or after training or distillation.

Settings: ``model``, ``task`` (what is trained on), ``seed``, ``max_new_tokens``;

    evaluate        name -> task of the problems asked; "own" is ``task`` itself
    problems, n     of each task, and completions of each: pass@k goes up to k = n
    learn           "reward" or "distil"; without it, the model stays as it is
    reward, config  of the training, as in `training`
    distil          of the distillation: the arguments of `distil`
    match           names of those asked again at the temperature that gives the entropy before
                    training
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_probe import load, sample, score
from entropy_probe.capability import guess_rate
from entropy_probe.comparing import perplexities
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.tasks import Problem, ReadsAnswers, Task, get_task
from entropy_probe.tasks.arithmetic import Arithmetic
from entropy_probe.tasks.checker import check
from entropy_probe.tasks.language import lex
from entropy_probe.tasks.problem import HasStrategies
from entropy_probe.training.config import TrainConfig

from .distilling import distil
from .training import rounded, trained

FRACTIONS = tuple(i / 20 for i in range(1, 20))
"""Where the quantiles of perplexity are read."""
ROUNDS = 8
"""Halvings of the temperature's range."""


def execute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give how often each problem was solved, by completions and by valid ones."""
    model, tokenizer = load(settings["model"], device="cpu")
    task, seed = get_task(settings["task"]), settings["seed"]
    found: dict[str, Any] = {"weights": weights_fingerprint(model)}
    base = copy.deepcopy(model)
    if settings.get("learn") == "reward":
        config = TrainConfig.from_dict(settings["config"] | {"seed": seed})
        found["steps"] = trained(model, tokenizer, task, config, settings["reward"])
    elif settings.get("learn") == "distil":
        found["distilled"] = distil(model, tokenizer, seed=seed, **settings["distil"])
    asked = {name: get_task(settings["task"] if each == "own" else each)
             for name, each in settings["evaluate"].items()}  # fmt: skip
    if not isinstance(task, Arithmetic):  # the other problems are in the organisms' language
        asked = {name: each for name, each in asked.items() if each == task}
    how = {"n": settings["n"], "seed": 5000 + seed, "max_new_tokens": settings["max_new_tokens"]}
    sets = {name: each.problems(settings["problems"], split="test", seed=1000 + seed)
            for name, each in asked.items()}  # fmt: skip

    def reach(temperature: float, names: Iterable[str]) -> dict[str, Any]:
        return {
            name: solved(model, tokenizer, asked[name], sets[name], temperature=temperature, **how)
            for name in names
            if name in asked
        }

    found["reach"] = reach(1.0, asked)
    first = [p.prompt for p in next(iter(sets.values()))]
    small = how | {"n": 4}
    found["entropy"] = mean_entropy(model, tokenizer, first, 1.0, **small)
    found["perplexity"] = under(base, model, tokenizer, first, **small)
    if settings.get("match"):
        target = mean_entropy(base, tokenizer, first, 1.0, **small)
        matched = matching_temperature(model, tokenizer, first, target, **small)
        found["matched"] = {"temperature": matched, "reach": reach(matched, settings["match"])}
    return rounded(found)


def solved(
    model, tokenizer, task: Task, problems: Sequence[Problem], *, n: int, temperature: float,
    max_new_tokens: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Count per problem the right completions, and those of them whose every step is valid.

    Returns:
        ``right`` and, in the organisms' language, ``valid``: a count a problem; ``n``; ``ways``,
        strategy -> counts of all and of the right completions that take it, a pair a problem; and
        ``guess``, how often an answer is right for another problem (NaN where answers cannot be
        read).
    """
    rows = sample(
        model, tokenizer, [p.prompt for p in problems], n=n, temperature=temperature, seed=seed,
        max_new_tokens=max_new_tokens, alternatives=0, residual_positions="none", batch_size=512,
    )  # fmt: skip
    steps, named = isinstance(task, Arithmetic), isinstance(task, HasStrategies)
    right, valid, answers = [], [], []
    ways: dict[str, list[tuple[int, int]]] = {}
    for i, problem in enumerate(problems):
        mine = rows[i * n : (i + 1) * n]
        texts = [mine.completion(row) for row in range(n)]
        known: dict[str, tuple[bool, bool, str]] = {}
        for text in set(texts):
            good = task.verify(problem, text) == 1.0
            way = task.strategy(text) if named else ""
            known[text] = good, good and steps and check(problem, lex(text)).valid, way
        right.append(sum(known[text][0] for text in texts))
        valid.append(sum(known[text][1] for text in texts))
        for name in task.strategies if named else ():
            taken = [known[text][0] for text in texts if known[text][2] == name]
            ways.setdefault(name, []).append((len(taken), sum(taken)))
        if isinstance(task, ReadsAnswers):
            answers.append([task.answer_of(problem, text) for text in texts])
    found: dict[str, Any] = {"n": n, "right": right, "ways": ways}
    if steps:
        found["valid"] = valid
    rate = guess_rate(answers, [p.answer for p in problems]).value if answers else math.nan
    return found | {"guess": rate}


def mean_entropy(model, tokenizer, prompts: list[str], temperature: float, **how: Any) -> float:
    """Give the mean entropy of a token, in nats, of completions at a temperature."""
    rows = sample(
        model, tokenizer, prompts, temperature=temperature, alternatives=0,
        residual_positions="none", batch_size=512, **how,
    )  # fmt: skip
    return float(rows.entropy[rows.valid].double().mean())


def matching_temperature(model, tokenizer, prompts: list[str], target: float, **how: Any) -> float:
    """Give the temperature at which a model's tokens have a mean entropy, by halving."""
    low, high = math.log(0.25), math.log(4.0)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        above = mean_entropy(model, tokenizer, prompts, math.exp(middle), **how) > target
        low, high = (low, middle) if above else (middle, high)
    return math.exp((low + high) / 2)


def under(base, model, tokenizer, prompts: list[str], **how: Any) -> dict[str, list[float]]:
    """Give quantiles of the perplexity under the base of its own completions and of a model's."""
    found = {"fractions": list(FRACTIONS)}
    for name, source in (("base", base), ("own", model)):
        rows = sample(
            source, tokenizer, prompts, alternatives=0, residual_positions="none", batch_size=512,
            **how,
        )  # fmt: skip
        seen = score(
            base, tokenizer, rows.tokens, rows.valid, prompt_lengths=rows.prompt_lengths,
            alternatives=0, residual_positions="none", batch_size=256,
        )  # fmt: skip
        values = perplexities(seen.logprobs, rows.valid).numpy()
        found[name] = np.quantile(values, FRACTIONS).tolist()
    return found
