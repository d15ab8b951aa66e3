r"""Mathematics from a file of problems and answers; answers are read by math-verify.

The file holds JSON lines: ``{"problem": "...", "answer": "..."}``, the answer as LaTeX or plain
text, and optionally ``id``, ``prompt`` (the very text that the model is given, in place of the
problem and the instruction), ``split`` and anything else, which becomes a fact of the problem.
Where no line names a split, a hash of the problem puts a fifth into ``test``.

math-verify limits time by an alarm that fails off the main thread, and then every answer counts
as wrong. Here it runs without one, in a process that can be killed (see `worker`).
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropy_probe.tasks.errors import TaskError, require_package
from entropy_probe.tasks.math_reading import UNREADABLE
from entropy_probe.tasks.problem import Problem
from entropy_probe.tasks.worker import Worker

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
MARKER = r"\boxed{"
SPLITS = ("train", "test")
TEST_SHARE = 0.2
LONGEST = 1000
"""Characters of an answer that is read at most: what is longer only takes time."""

LONGEST_END = 20_000
"""Characters at the end of a text that an answer without a box is looked for in."""

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_TEXTS = ("problem", "answer", "id", "prompt", "split")
_SELF_TEST = {"do": "verify", "gold": "1/2", "answer": r"\boxed{0.5}"}


def _worker() -> Worker:
    return Worker("entropy_probe.tasks.math_reading:read", first=_SELF_TEST)


@dataclass(frozen=True)
class Math:
    """Problems of a file, their answers compared as mathematics."""

    file: str
    """Path of the JSON lines."""
    worker: Worker = field(default_factory=_worker, compare=False, repr=False)
    """The process that reads answers."""

    def __post_init__(self) -> None:
        """Refuse to begin without the package that reads answers."""
        require_package("math_verify", self.name)

    @property
    def name(self) -> str:
        """Give the name that `get_task` knows this task by."""
        return f"math:{self.file}"

    @property
    def marker(self) -> str:
        """Give what announces the final answer."""
        return MARKER

    def problems(self, limit: int, *, split: str = "test", seed: int = 0) -> list[Problem]:
        """Give the first problems of a split in an order that the seed decides.

        A larger limit continues the same list, up to all problems that the split has.

        Raises:
            ValueError: an unknown split, or a limit below 1.
            TaskError: a file that cannot be read, or a split without problems.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: take one of {list(SPLITS)}")
        if limit < 1:
            raise ValueError(f"expected a limit of at least 1 problem, got {limit}")
        every = _rows(self.file)
        named = any("split" in row for row in every)
        problems: dict[str, Problem] = {}
        for row in every:
            if _split_of(row, named=named) == split:
                problem = _problem(row)
                if problems.setdefault(problem.id, problem).prompt != problem.prompt:
                    why = f"two of its {split} problems have the id {problem.id!r}"
                    raise TaskError(f"mixed ids in {self.file!r}", why, "give each its own")
        if not problems:
            raise TaskError(
                f"no {split} problems in {self.file!r}",
                f"none of its {len(every)} problems falls into that split",
                f'give problems "split": "{split}", or write more of them',
            )
        found = list(problems.values())
        random.Random(f"math {split} {seed}").shuffle(found)
        return found[:limit]

    def verify(self, problem: Problem, completion: str) -> float:
        r"""Give 1.0 if the final answer equals the right one, boxed or not, else 0.0.

        The last ``\boxed{}`` counts; without one, an expression soon after the last word "answer"
        ("the answer is 12"), or else the last of the text. Words are compared as words, whatever
        their case. An answer that takes too long to read, or is longer than any, is wrong.
        """
        verdict = self._ask(problem, "verify", final_answer(completion))
        if verdict == UNREADABLE:
            raise TaskError(
                f"the right answer of problem {problem.id!r} cannot be read",
                f"it is no mathematics: {problem.answer!r}",
                f"write it as LaTeX or a number in {self.file!r}",
            )
        return float(verdict is True)

    def answer_of(self, problem: Problem, completion: str) -> str | None:
        """Give the final answer as LaTeX, simplified; None where none can be read."""
        return self._ask(problem, "read", final_answer(completion))

    def accepts(self, problem: Problem, answer: str) -> bool:
        """Say whether an answer equals the right one."""
        return self.verify(problem, f"{MARKER}{answer}}}") == 1.0

    def answer_span(self, completion: str) -> tuple[int, int] | None:
        r"""Give where the content of the last ``\boxed{}`` stands; None where none is complete."""
        return boxed(completion)

    def formatted(self, completion: str) -> bool:
        r"""Say whether there is a ``\boxed{}`` that is not empty."""
        return boxed(completion) is not None

    def _ask(self, problem: Problem, do: str, answer: str | None) -> Any:
        """Ask the process, unless there is nothing to ask."""
        if answer is None:
            return None
        return self.worker.ask({"do": do, "gold": problem.answer, "answer": answer})


def boxed(text: str) -> tuple[int, int] | None:
    r"""Give (start, stop) of the content of the last ``\boxed{}`` that is complete and not empty.

    >>> boxed(r"so \boxed{\frac{1}{2}}.")
    (10, 21)
    """
    found: tuple[int, int] | None = None
    opened: list[int | None] = []
    for match in _BRACES.finditer(text):
        if match.group().endswith("{") and match.group() != r"\{":
            opened.append(match.end() if len(match.group()) > 1 else None)
        elif match.group() == "}" and opened:
            start, stop = opened.pop(), match.start()
            later = start is not None and (found is None or start > found[0])
            if later and text[start:stop].strip():
                found = start, stop
    return found


def final_answer(completion: str) -> str | None:
    """Give what a completion's answer is read from: its last box, else the end of the text.

    None where the box holds more than any answer would.
    """
    span = boxed(completion)
    if span is None:
        return completion[-LONGEST_END:]
    start, stop = span
    return None if stop - start > LONGEST else f"{MARKER}{completion[start:stop]}}}"


def _rows(file: str) -> list[dict[str, Any]]:
    """Read the lines of a file that are not blank."""
    try:
        lines = Path(file).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TaskError(f"cannot read the problems {file!r}", why, "check the path") from error
    numbered = ((i, line) for i, line in enumerate(lines, start=1) if line.strip())
    found = [_row(line, f"line {i} of {file!r}") for i, line in numbered]
    if not found:
        raise TaskError(f"no problems in {file!r}", "it is empty", "write one JSON object a line")
    return found


def _row(line: str, where: str) -> dict[str, Any]:
    """Read one line."""
    fix = 'write {"problem": "...", "answer": "..."} there'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is not JSON", str(error), fix) from error
    if not isinstance(row, dict) or not {"problem", "answer"} <= set(row):
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise TaskError(f"{where} is no problem", f"expected problem and answer, got {keys}", fix)
    row = {**row, "answer": _as_text(row["answer"])}
    for name in _TEXTS:
        if name in row and not (isinstance(row[name], str) and _is_text(row[name])):
            raise TaskError(f"{where} is no problem", f"{name} must be a text, not empty", fix)
    if row.get("split", "train") not in SPLITS:
        why = f"split must be train or test, got {row['split']!r}"
        raise TaskError(f"{where} is no problem", why, fix)
    return row


def _is_text(value: str) -> bool:
    """Say whether there is something to read, in characters that Unicode has."""
    return bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _as_text(answer: object) -> object:
    """Give a number as the text it is."""
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    return str(answer) if number else answer


def _problem(row: dict[str, Any]) -> Problem:
    """Make a problem of a line."""
    text = row["problem"]
    prompt = row.get("prompt", f"{text}\n{INSTRUCTION}\n")
    name = row.get("id", hashlib.blake2b(text.encode(), digest_size=6).hexdigest())
    facts = {k: v for k, v in row.items() if k not in ("prompt", "answer", "id")}
    return Problem(prompt=prompt, answer=row["answer"], id=name, facts=facts)


def _split_of(row: dict[str, Any], *, named: bool) -> str:
    """Say which split a problem belongs to, where lines name one and where none does."""
    if named:
        return row.get("split", "train")
    digest = hashlib.blake2b(row["problem"].encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") < TEST_SHARE * 2**32 else "train"
