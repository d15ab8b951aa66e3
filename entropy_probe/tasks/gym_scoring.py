"""Problems of reasoning-gym made and scored; a `Worker` runs this in a process of its own.

Several scorers of reasoning-gym hand the model's answer to ``eval`` or to sympy's ``parse_expr``,
which evaluates Python too. In this process, and only in it, both are replaced: by one that reads
literals, and by one that reads formulas of known functions.
"""

import ast
import hashlib
import re
import sys
import tokenize
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

CHUNK = 500
"""Problems a dataset object: some bound their numbers by a size that must not be large."""

SEEDS = 7_654_321
"""Distance of the seeds that two seeds of a task stand for: their problems do not overlap soon."""

COMPOSED = ("composite",)
"""Datasets made of other datasets: what they are cannot be said in options."""

UNSAFE = ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens")
"""Modules whose scorers evaluate the answer as Python."""

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt Abs "
    "sign pi E I oo erf erfi gamma Integer Rational Float Symbol Add Mul Pow C".split()
)
"""Names of more than one letter, and constants, that a formula may hold."""

# What scorers raise on answers that they did not expect.
_UPSET = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError,
    StopIteration, SyntaxError, TypeError, ValueError, tokenize.TokenError,
)  # fmt: skip


def answer(request: Mapping[str, Any]) -> Any:
    """Answer a request of the task: ``do`` is check, names, generate, recall or score."""
    if request["do"] == "check":
        _guard()
        return True
    if request["do"] == "names":
        return _names()
    if request["dataset"] not in _names():
        return {"unknown": True, "known": _names()}
    if request["do"] == "generate":
        return _generated(request)
    entry, dataset = _entry(request, request["number"])
    if _id(entry["question"]) != request["id"]:
        return {"wrong": "another version of reasoning-gym made its problems"}
    if request["do"] == "recall":
        return True
    try:
        score = float(dataset.score_answer(answer=request["answer"], entry=entry))
    except _UPSET:
        return 0.0
    return score if 0 <= score <= 1 else 0.0


def _names() -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - set(COMPOSED))


def _id(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=6).hexdigest()


def _generated(request: Mapping[str, Any]) -> Any:
    """Give [question, answer] of problems by their numbers, or what is wrong with the options."""
    numbers = range(request["start"], request["start"] + request["count"])
    try:
        _dataset(request["dataset"], _key(request["options"]), request["seed"], 0)
    except (AssertionError, TypeError, ValueError) as error:
        return {"wrong": str(error) or type(error).__name__}
    entries = (_entry(request, number)[0] for number in numbers)
    return [[str(e["question"]), "" if e["answer"] is None else str(e["answer"])] for e in entries]


def _entry(request: Mapping[str, Any], number: int) -> tuple[dict[str, Any], Any]:
    """Make a problem, or give it again, with its dataset."""
    options, seed = _key(request["options"]), request["seed"]
    dataset = _dataset(request["dataset"], options, seed, number // CHUNK)
    return _made(request["dataset"], options, seed, number), dataset


@lru_cache(maxsize=4096)
def _made(name: str, options: str, seed: int, number: int) -> dict[str, Any]:
    return _dataset(name, options, seed, number // CHUNK)[number % CHUNK]


@lru_cache(maxsize=16)
def _dataset(name: str, options: str, seed: int, chunk: int) -> Any:
    """Give a dataset object."""
    import reasoning_gym

    start = (seed * SEEDS + chunk * CHUNK) % 2**31
    return reasoning_gym.create_dataset(name, seed=start, size=CHUNK, **ast.literal_eval(options))


def _key(options: Mapping[str, Any]) -> str:
    """Give options as a text that can be kept as a key."""
    return repr(dict(options))


def _guard() -> None:
    """Take from the scorers the means to run an answer as a program."""
    import reasoning_gym  # noqa: F401 - its modules are looked up below
    import sympy

    formula = _formulas_only(sympy.parse_expr)
    sympy.parse_expr = formula
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym."):
            if name.rpartition(".")[2] in UNSAFE:
                module.eval = ast.literal_eval
            if hasattr(module, "parse_expr") and "sympy" in module.parse_expr.__module__:
                module.parse_expr = formula


def _formulas_only(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Give sympy's parser for texts that hold numbers, letters and known functions alone."""

    def formula(text: str, *more: Any, **named: Any) -> Any:
        words = set(re.findall(r"[^\W\d]\w*", text)) - FUNCTIONS
        if any(len(word) > 1 for word in words) or re.search(r"[^\w\s.,+\-*/^()=<>!]", text):
            raise ValueError("no formula")
        if re.search(r"\.\s*[^\W\d]", text):
            raise ValueError("no formula")
        return parse(text, *more, **named)

    return formula
