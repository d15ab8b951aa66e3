"""The verifier: the answer counts at the end of the text alone, marked or not."""

import pytest

from entropy_probe.tasks import generator
from entropy_probe.tasks.verifier import final_answer, marked, verify

CASES = [
    (">>> 473+8=481; -9=472\n#### 472", "472", True),
    (">>> 473+8=481; -9=472", "472", False),
    ("Well, from 473; then it is 472", "472", False),
    ("Well, from 473; then we get 472", "472", False),
    ("Well, from 473; next it is 472\n#### 472", "472", True),
    (">>> 473+8=481; -9=472\n#### 471", "471", True),
    ("\n#### 472", "472", True),
    (">>> 473+8=481; -9=472\n#### 472\n", None, False),
    (">>> 473+8=481; -9=472\n#### 472 ", None, False),
    (">>> 473+8=481; -9=472; ", None, False),
    (">>> 473+8=481; -9=472\n#### 47", None, False),
    (">>> 473+8=481; -9=4720", None, False),
    ("#### 472", None, False),
    (">>> 473", None, False),
    ("Well, from 473", None, False),
    ("", None, False),
    ("=472\n#### 472\n#### 111", "111", True),
    ("=\u0664\u0667\u0662", None, False),
]


@pytest.mark.parametrize(("text", "answer", "has_marker"), CASES)
def test_the_answer_at_the_end_of_a_text(text, answer, has_marker):
    assert final_answer(text) == answer
    assert marked(text) is has_marker


def test_only_the_right_answer_counts():
    for problem in generator.problems("default", 50, split="test", seed=0):
        wrong = f"{(int(problem.answer) + 1) % 1000:03d}"
        for lead in ("\n#### ", "=", "it is "):
            assert verify(problem, lead + problem.answer) == 1.0
            assert verify(problem, lead + wrong) == 0.0
            assert verify(problem, lead + problem.answer + "; ") == 0.0
