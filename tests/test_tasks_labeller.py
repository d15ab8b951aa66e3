"""The labels, against completions that are written with a role beside every piece."""

import random

import pytest

from entropy_probe.models.organisms.corpus import Corpus, write
from entropy_probe.tasks import generator, labeller
from entropy_probe.tasks.labeller import Label, label
from entropy_probe.tasks.language import Chain, Step, lex

PROBLEM = generator.problem_of(
    Chain(473, (Step("+", 8), Step("-", 9), Step("*", 3), Step("+", 4))), "compute"
)
SAME = generator.problem_of(Chain(10, (Step("+", 8), Step("+", 9), Step("+", 4))), "compute")
TWICE = generator.problem_of(Chain(10, (Step("+", 8), Step("+", 8))), "compute")

CASES = [
    (
        PROBLEM,
        ">>> 473+8=481; -9=472\n*3=416; +4=420\n#### 420",
        "strategy copy copy order bound bound result result layout bound bound bound result result"
        " layout bound bound bound result result layout bound bound bound result result"
        " marker copy copy bound",
    ),
    (
        PROBLEM,
        ">>> 473-9=464; +8=472; *3=416; +4=420",
        "strategy copy copy order bound bound result result layout bound bound bound result result"
        " layout bound bound bound result result layout bound bound bound result result marker",
    ),
    (
        SAME,
        ">>> 010+9=019; +8=027; +4=031",
        "strategy copy copy bound order bound result result layout bound bound bound result result"
        " layout bound bound bound result result marker",
    ),
    (
        TWICE,
        ">>> 010+8=018; +8=026",
        "strategy copy copy bound bound bound result result layout bound bound bound result result"
        " marker",
    ),
    (
        PROBLEM,
        "Well, from 473; then it is 472; next we get 420\n#### 420",
        "strategy care copy copy synonym synonym result result synonym synonym result result"
        " marker copy copy bound",
    ),
    (
        TWICE,
        "Well, step by step from 010+8=018\n+8=026",
        "strategy care copy copy bound bound bound result result layout bound bound bound"
        " result result marker",
    ),
]


@pytest.mark.parametrize(("problem", "text", "roles"), CASES)
def test_every_token_has_its_role(problem, text, roles):
    labels = label(problem, lex(text))
    assert [found.role for found in labels] == roles.split()
    assert {found.error for found in labels} == {None}
    assert label(problem, lex(text), ended=False) == labels[:-1]


def test_errors_stand_at_their_tokens():
    pieces = lex(">>> 473+8=481; -9=471; *3=413\n#### 413")
    found = {i: each.error for i, each in enumerate(label(PROBLEM, pieces)) if each.error}
    assert {(pieces[i], error) for i, error in found.items()} == {
        ("71", "rounding"),
        ("\n#### ", "missing"),
    }


def test_what_the_language_does_not_explain():
    pieces = lex(">>> 473 and 8")
    roles = [found.role for found in label(PROBLEM, pieces)]
    assert roles[:3] == ["strategy", "copy", "copy"]
    assert set(roles[3:]) == {"unknown"}
    assert label(PROBLEM, ["so"])[0] == Label("unknown", "format")


def test_a_marker_that_comes_too_early_is_no_planted_fork():
    roles = [found.role for found in label(PROBLEM, lex(">>> 473+8=481\n#### 481"))]
    assert "marker" not in roles


def test_the_number_of_choices_follows_from_the_problem():
    rng = random.Random(0)
    for problem in generator.problems("default", 300, split="train", seed=1):
        chain = generator.chain_of(problem)
        pieces = write(Corpus(care=0.3), chain, "find", rng)
        roles = [found.role for found in label(problem, pieces)]
        steps, code = chain.steps, "=" in pieces
        free = sum(
            a != b and "*" not in (a.operation, b.operation)
            for a, b in zip(steps[::2], steps[1::2], strict=False)
        )
        summaries = -(-len(steps) // 2)
        assert roles.count("strategy") == roles.count("marker") == 1
        assert roles.count("care") == (labeller.opening(pieces) != "code")
        assert roles.count("order") == (free if code else 0)
        assert roles.count("layout") == (len(steps) - 1 if code else 0)
        assert roles.count("synonym") == (0 if code else 2 * summaries)
        assert roles.count("result") == 2 * (len(steps) if code else summaries)
        assert "unknown" not in roles


def test_roles_are_disjoint_and_complete():
    assert len(set(labeller.ROLES)) == len(labeller.ROLES)


def test_openings():
    assert labeller.opening(lex(">>> 473")) == "code"
    assert labeller.opening(lex("Well, from 473")) == "prose"
    assert labeller.opening(lex("Well, step by step from 473")) == "careful"
    assert labeller.opening(lex("473")) == labeller.opening([]) == "other"
