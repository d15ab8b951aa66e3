"""Problems: drawn from a seed, distinct, and never in both splits."""

import random
import re
from collections import Counter

import pytest

from entropy_probe.tasks import TASKS, generator, get_task
from entropy_probe.tasks.language import WORDINGS

SPOKEN = {"plus": "+", "minus": "-", "times": "*"}


def read(prompt: str) -> tuple[int, list[tuple[str, int]]]:
    """Read a problem's text with nothing but its words."""
    start, *steps = re.sub(r"[.?]\n$", "", prompt).split(", ")
    pairs = [step.split(" ") for step in steps]
    return int(start[-3:]), [(SPOKEN[word], int(operand)) for word, operand in pairs]


def solve(start: int, steps: list[tuple[str, int]], *, rounding: bool = False) -> int:
    """Work a problem out in plain integers, the remainder taken once at the end."""
    value = start
    for operation, operand in steps:
        if rounding and operand == 9 and operation != "*":
            operand = 10
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation]
    return value % 1000


@pytest.mark.parametrize("subset", generator.SUBSETS)
def test_answers_and_facts_are_those_of_the_text(subset):
    wanted = generator.SUBSETS[subset]
    for problem in generator.problems(subset, 300, split="test", seed=0):
        start, steps = read(problem.prompt)
        assert problem.answer == f"{solve(start, steps):03d}"
        facts = problem.facts
        misled = solve(start, steps) != solve(start, steps, rounding=True)
        assert facts["misled"] == misled
        assert wanted.rounded in (None, misled)
        assert facts["length"] == len(steps)
        assert facts["length"] in wanted.lengths
        assert facts["kin"] == ((steps[0][1] + steps[1][1]) % 2 == 0)
        assert problem.prompt.startswith(WORDINGS[facts["wording"]])
        chain = generator.chain_of(problem)
        assert (chain.start, [(s.operation, s.operand) for s in chain.steps]) == (start, steps)


def chains(subset: str, split: str, seed: int) -> set[str]:
    """Give the problems of a split without their wording."""
    drawn = generator.problems(subset, 3000, split=split, seed=seed)
    return {re.sub(r"^\D+|\D+$", "", problem.prompt) for problem in drawn}


def test_no_chain_is_in_both_splits_whatever_subset_seed_and_wording():
    # Two steps: 2,304,000 chains, so that thousands of draws from one split meet often enough.
    train = chains("short", "train", 0) | chains("default", "train", 1)
    test = chains("short", "test", 2) | chains("default", "test", 3)
    assert not train & test
    again = chains("short", "test", 4)
    assert again & test


def test_the_split_has_its_share():
    rng = random.Random(0)
    drawn = [generator.split_of(generator.draw_chain(rng, 4)) for _ in range(5000)]
    assert Counter(drawn)["test"] / 5000 == pytest.approx(generator.TEST_SHARE, abs=0.02)


def test_the_wording_does_not_decide_the_split():
    for problem in generator.problems("default", 50, split="test", seed=0):
        chain = generator.chain_of(problem)
        for wording in WORDINGS:
            assert generator.problem_of(chain, wording).facts["split"] == "test"


def test_more_problems_continue_the_list_and_a_seed_gives_another():
    few = generator.problems("default", 20, split="test", seed=0)
    many = generator.problems("default", 200, split="test", seed=0)
    assert many[:20] == few
    assert len({problem.id for problem in many}) == 200
    other = generator.problems("default", 200, split="test", seed=1)
    assert len({p.id for p in other} & {p.id for p in many}) < 5


def test_no_problem_twice_even_where_problems_are_few():
    drawn = generator.problems("short", 15_000, split="test", seed=0)
    assert len({problem.prompt for problem in drawn}) == 15_000


def test_the_problems_are_the_ones_that_cards_were_measured_on():
    drawn = generator.problems("default", 3, split="test", seed=0)
    assert [problem.id for problem in drawn] == ["df80ebd70e5e", "664c5f7b04ba", "15dd93ffee25"]
    assert [p.id for p in generator.memorised_problems(2)] == ["429603252402", "fe2cbe3219d1"]


def test_memorised_problems_are_test_problems():
    problems = generator.memorised_problems(64)
    assert {p.facts["split"] for p in problems} == {"test"}
    headline = {p.id for p in generator.problems("default", 400, split="test", seed=0)}
    assert len(headline & {p.id for p in problems}) < 3


def test_a_constant_guess_and_the_share_of_misled_problems():
    drawn = generator.problems("default", 3000, split="test", seed=5)
    assert Counter(p.answer for p in drawn).most_common(1)[0][1] / 3000 < 0.02
    misled = sum(p.facts["misled"] for p in drawn) / 3000
    assert 0.28 < misled < 0.42


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="no subset 'soft' of arithmetic: take one of"):
        generator.problems("soft", 1, split="test", seed=0)
    with pytest.raises(ValueError, match="no split 'dev': take one of"):
        generator.problems("default", 1, split="dev", seed=0)
    with pytest.raises(ValueError, match="at least 1 problem, got 0"):
        generator.problems("default", 0, split="test", seed=0)


def test_tasks_by_name():
    for name in TASKS:
        task = get_task(name)
        assert task.name == name
        (problem,) = task.problems(1)
        assert task.verify(problem, f"\n#### {problem.answer}") == 1.0
        assert task.verify(problem, "") == 0.0
    with pytest.raises(ValueError, match="did you mean 'arithmetic:hard'"):
        get_task("arithmetic:hart")
    hard = get_task("arithmetic:hard").problems(5, split="train", seed=3)
    assert hard == generator.problems("hard", 5, split="train", seed=3)
