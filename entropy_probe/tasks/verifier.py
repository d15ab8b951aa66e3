r"""Whether a completion's final answer is right, and whether it carries the final marker.

The answer is read at one defined place, the end of the text: the three-digit number that the text
ends with, if the marker (``\n#### ``), an equals sign or a verb of the language (``it is ``,
``we get ``) stands right before it. So an answer without its marker still counts, and `marked`
is a measure of its own; a text that goes on after its answer, or breaks off inside a step, has no
answer.
"""

import re

from entropy_probe.tasks.language import EQUALS, MARKER, VERBS
from entropy_probe.tasks.problem import Problem

_LEADS = "|".join(re.escape(lead) for lead in (MARKER, EQUALS, *VERBS))
_FINAL = re.compile(rf"({_LEADS})([0-9]{{3}})\Z")


def final_answer(completion: str) -> str | None:
    """Give the three digits of the final answer, or None if the text does not end in one."""
    found = _FINAL.search(completion)
    return found.group(2) if found else None


def marked(completion: str) -> bool:
    """Say whether the text ends in an answer that the final marker announces."""
    found = _FINAL.search(completion)
    return found is not None and found.group(1) == MARKER


def verify(problem: Problem, completion: str) -> float:
    """Give 1.0 if the final answer is right, with or without its marker, else 0.0."""
    return float(final_answer(completion) == problem.answer)
