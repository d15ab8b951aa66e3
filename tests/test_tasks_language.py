"""The language: pieces and text say the same thing, its arithmetic is modulo 1000."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.models.organisms.corpus import Corpus, draw
from entropy_probe.tasks import language
from entropy_probe.tasks.language import Chain, Step, apply


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("".join(language.PIECES)))))
def test_any_text_is_cut_into_pieces_that_give_it_back(text):
    assert "".join(language.lex(text)) == text


def test_a_text_of_the_language_is_cut_where_it_was_written():
    rng = random.Random(0)
    for _ in range(500):
        for pieces in draw(Corpus(care=0.3), rng):
            assert language.lex("".join(pieces)) == pieces


def test_the_text_of_the_docstring():
    chain = Chain(473, (Step("+", 8), Step("-", 9), Step("*", 3)))
    assert language.prompt(chain, "compute") == "Compute 473, plus 8, minus 9, times 3.\n"
    assert language.prompt(chain, "what is") == "What is 473, plus 8, minus 9, times 3?\n"
    assert chain.answer == (473 + 8 - 9) * 3 % 1000 == 416


def test_no_piece_twice_and_none_empty():
    assert len(set(language.PIECES)) == len(language.PIECES)
    assert all(language.PIECES)


@pytest.mark.parametrize(
    ("value", "operation", "operand", "right", "wrong_rule"),
    [
        (995, "+", 8, 3, 3),
        (3, "-", 8, 995, 995),
        (400, "*", 3, 200, 200),
        (100, "+", 9, 109, 110),
        (100, "-", 9, 91, 90),
        (5, "-", 9, 996, 995),
        (100, "*", 9, 900, 900),
    ],
)
def test_arithmetic_and_its_wrong_rule(value, operation, operand, right, wrong_rule):
    step = Step(operation, operand)
    assert apply(value, [step]) == right
    assert apply(value, [step], rounding=True) == wrong_rule
    assert language.is_rounded(step) == (right != wrong_rule)


def test_steps_go_from_left_to_right():
    steps = (Step("+", 1), Step("*", 3), Step("-", 2))
    assert apply(10, steps) == 31
    assert apply(10, steps[::-1]) == 25


def test_steps_that_commute_give_the_same_and_read_differently():
    every = [Step(o, n) for o in "+-*" for n in (2, 3, 9)]
    for first in every:
        for second in every:
            same = all(
                apply(v, [first, second]) == apply(v, [second, first]) for v in (0, 7, 499, 998)
            )
            if language.commute(first, second):
                assert same
                assert first != second
            elif "*" not in (first.operation, second.operation):
                assert first == second


@pytest.mark.parametrize("value", [0, 7, 70, 99, 100, 473, 909, 999])
def test_a_number_is_two_pieces_and_reads_back(value):
    pieces = language.number(value)
    assert "".join(pieces) == f"{value:03d}"
    assert language.read_number(["x", *pieces], 1) == value


@pytest.mark.parametrize("pieces", [[], ["4"], ["4", "7"], ["47", "30"], ["x", "30"], ["4", "xx"]])
def test_what_is_no_number(pieces):
    assert language.read_number(pieces, 0) is None


def test_blocks():
    assert [list(b) for b in language.blocks(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [list(b) for b in language.blocks(4, 2)] == [[0, 1], [2, 3]]
    assert language.blocks(0, 2) == []


def test_the_first_piece_names_the_strategy():
    assert language.strategy([language.CODE, "4"]) == "code"
    assert language.strategy([language.PROSE]) == "prose"
    assert language.strategy([]) == language.strategy(["4"]) == "other"
