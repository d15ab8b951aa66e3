"""Problems of reasoning-gym: generated from a seed, scored by its own scorers.

Some of its scorers evaluate the model's answer as Python, some never end on a hostile one, and
some of its generators depend on the hash seed of the process. So both run in a process of their
own (see `worker`), with a fixed hash seed and without a way to evaluate more than literals and
plain formulas.
"""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from entropy_probe.tasks.errors import TaskError, require_package
from entropy_probe.tasks.problem import Problem
from entropy_probe.tasks.worker import Worker

INSTRUCTION = (
    "Think step by step, and put your final answer, and nothing else, between <answer> and "
    "</answer>."
)
MARKER = "<answer>"
SPLITS = ("train", "test")
TEST_SHARE = 0.2

GENERATING_SECONDS = 120.0
"""CPU time that a batch of problems may take to generate."""

BATCH = 50
"""Problems generated at a time."""

PATIENCE = 20
"""Problems looked at for each one wanted before a dataset is called too small."""

# From the last opening mark before a closing one: others are talked about, as in the instruction.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_OPTION = re.compile(r"(\w+)=(\[[^\]]*\]|[^,\[]*)(?:,|$)")


def _worker() -> Worker:
    return Worker("entropy_probe.tasks.gym_scoring:answer", first={"do": "check"})


@dataclass(frozen=True)
class Gym:
    """One dataset of reasoning-gym."""

    dataset: str
    """Its name there, such as ``chain_sum``."""
    options: str = ""
    """Fields of its configuration: ``min_terms=2,max_terms=3``."""
    worker: Worker = field(default_factory=_worker, compare=False, repr=False)
    """The process that generates and scores."""

    def __post_init__(self) -> None:
        """Refuse to begin without the package, or with options that cannot be read."""
        require_package("reasoning_gym", self.name)
        _options(self.options)

    @property
    def name(self) -> str:
        """Give the name that `get_task` knows this task by."""
        return f"gym:{self.dataset}" + (f":{self.options}" if self.options else "")

    @property
    def marker(self) -> str:
        """Give what announces the final answer."""
        return MARKER

    def check(self) -> None:
        """See that the dataset is there and takes the options.

        Raises:
            TaskError: it is not, or does not.
        """
        self._generate(0, 0, 1)

    def problems(self, limit: int, *, split: str = "test", seed: int = 0) -> list[Problem]:
        """Give ``limit`` distinct problems; a larger limit continues the same list.

        A hash of the question decides the split, so that train and test share no question,
        whatever their seeds.

        Raises:
            ValueError: an unknown split, or a limit below 1.
            TaskError: no such dataset, or one with too few different questions.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: take one of {list(SPLITS)}")
        if limit < 1:
            raise ValueError(f"expected a limit of at least 1 problem, got {limit}")
        found: dict[str, Problem] = {}
        looked = 0
        while len(found) < limit and looked < PATIENCE * limit + 20 * BATCH:
            for number, (question, answer) in enumerate(self._generate(seed, looked, BATCH)):
                problem = self._problem(question, answer, seed, looked + number)
                if _split_of(question) == split:
                    found.setdefault(problem.id, problem)
            looked += BATCH
        if len(found) < limit:
            raise TaskError(
                f"task {self.name!r} has too few {split} problems",
                f"{limit} were wanted, and {looked} draws gave {len(found)} different ones",
                "take fewer, or options that make the dataset larger",
            )
        return list(found.values())[:limit]

    def verify(self, problem: Problem, completion: str) -> float:
        """Give 1.0 if the dataset's scorer gives the answer its full score, else 0.0."""
        answer = self.answer_of(problem, completion)
        return float(answer is not None and self.accepts(problem, answer))

    def answer_of(self, problem: Problem, completion: str) -> str | None:
        """Give what stands between the last ``<answer>`` and its end; None for nothing."""
        del problem  # the same rule for all
        span = self.answer_span(completion)
        return None if span is None else completion[slice(*span)]

    def accepts(self, problem: Problem, answer: str) -> bool:
        """Say whether an answer gets the full score."""
        return self.score(problem, answer) >= 1.0

    def score(self, problem: Problem, answer: str) -> float:
        """Give the scorer's verdict, 0 to 1; an answer that it cannot bear gets 0."""
        where = {k: problem.facts[k] for k in ("dataset", "options", "seed", "number")}
        # Made again first, where it is not at hand: only the scoring is short of time.
        request = {"do": "recall", "id": problem.id, **where}
        self._asked(request, seconds=GENERATING_SECONDS)
        return self._asked({**request, "do": "score", "answer": answer}) or 0.0

    def answer_span(self, completion: str) -> tuple[int, int] | None:
        """Give where the final answer stands, blanks around it left out; None for nothing."""
        matches = list(_ANSWER.finditer(completion))
        if not matches or not matches[-1].group(1).strip():
            return None
        text = matches[-1].group(1)
        start = matches[-1].start(1) + len(text) - len(text.lstrip())
        return start, start + len(text.strip())

    def formatted(self, completion: str) -> bool:
        """Say whether there is a final answer between its marks."""
        return self.answer_span(completion) is not None

    def _generate(self, seed: int, start: int, count: int) -> list[tuple[str, str]]:
        """Give (question, answer) of problems by their numbers."""
        request = {
            "do": "generate", "dataset": self.dataset, "options": _options(self.options),
            "seed": seed, "start": start, "count": count,
        }  # fmt: skip
        made = self._asked(request, seconds=GENERATING_SECONDS)
        if made is None:
            raise TaskError(
                f"task {self.name!r} cannot generate problems",
                f"{count} of them took more than {GENERATING_SECONDS:g} seconds, or crashed",
                "take options that make them smaller",
            )
        return [(question, answer) for question, answer in made]

    def _problem(self, question: str, answer: str, seed: int, number: int) -> Problem:
        """Make a problem of what was generated."""
        options = _options(self.options)
        facts = {"dataset": self.dataset, "options": options, "seed": seed, "number": number}
        name = hashlib.blake2b(question.encode(), digest_size=6).hexdigest()
        prompt = f"{question.rstrip()}\n\n{INSTRUCTION}\n"
        return Problem(prompt=prompt, answer=answer, id=name, facts=facts)

    def _asked(self, request: dict[str, Any], *, seconds: float | int | None = None) -> Any:
        """Ask the process; raise what it finds wrong with the request."""
        reply = self.worker.ask(request, seconds=seconds)
        if isinstance(reply, dict) and reply.get("unknown"):
            names = reply["known"]
            near = difflib.get_close_matches(self.dataset, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`gym_names()` lists them"
            why = f"reasoning-gym has {len(names)} datasets, and none of that name"
            raise TaskError(f"no task {self.name!r}", why, hint)
        if isinstance(reply, dict) and "wrong" in reply:
            fix = "see the dataset's configuration in reasoning-gym"
            raise TaskError(f"task {self.name!r} cannot be used", reply["wrong"], fix)
        return reply


def gym_names() -> tuple[str, ...]:
    """Give the names of reasoning-gym's datasets that need no more than options.

    Raises:
        TaskError: the package is not there.
    """
    require_package("reasoning_gym", "gym:NAME")
    worker = _worker()
    try:
        return tuple(worker.ask({"do": "names"}))
    finally:
        worker.close()


def _options(text: str) -> dict[str, Any]:
    """Read ``a=1,b=[2,3],c=word``."""
    found, position = {}, 0
    while position < len(text):
        match = _OPTION.match(text, position)
        if match is None or match[1] in ("seed", "size") or match[1] in found:
            raise TaskError(
                f"the options {text!r} of a gym task make no sense",
                f"it breaks off at {text[position:]!r}; seed and size are not for options",
                "write gym:NAME:OPTION=VALUE,OPTION=VALUE",
            )
        try:
            found[match[1]] = json.loads(match[2])
        except ValueError:
            found[match[1]] = match[2]
        position = match.end()
    return found


def _split_of(question: str) -> str:
    """Say which split a question belongs to."""
    digest = hashlib.blake2b(b"split " + question.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") < TEST_SHARE * 2**32 else "train"
