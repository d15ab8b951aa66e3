"""What rewards see of a record, and which tokens write a stretch of text."""

import dataclasses

import pytest
import torch
from completions import PROBLEMS, completion
from hostile import HOSTILE, record_of
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.training.completion import completions_of, tokens_of_span


def test_the_rows_of_a_record():
    record = record_of([b"a ", b"b", b"<eos>"], rows=3)
    record = dataclasses.replace(record, special_ids=frozenset({3}), groups=torch.tensor([5, 5, 6]))
    problems = [PROBLEMS[0], PROBLEMS[0], PROBLEMS[1]]
    found = completions_of(
        record, problems, step=4, seed=2, first_row=10, finished=[True, False, True]
    )
    assert [c.text for c in found] == [record.completion(i) for i in range(3)] == ["a b"] * 3
    assert [c.row for c in found] == [10, 11, 12]
    assert [c.group for c in found] == [5, 5, 6]
    assert [c.problem for c in found] == problems
    assert [c.finished for c in found] == [True, False, True]
    assert {(c.step, c.seed, c.tokens, c.pieces) for c in found} == {
        (4, 2, (1, 2, 3), (b"a ", b"b", b""))
    }
    for i, c in enumerate(found):
        assert c.logprobs == tuple(record.logprobs[i, 1:].tolist())


def test_a_problem_and_a_verdict_are_needed_for_each_row():
    record = record_of([b"a"], rows=2)
    with pytest.raises(ValueError, match="expected 2 problems, one a row, got 1"):
        completions_of(record, PROBLEMS[:1])
    with pytest.raises(ValueError, match="expected 2 verdicts in finished, one a row, got 3"):
        completions_of(record, PROBLEMS[:2], finished=[True] * 3)


def test_hostile_tokens_go_through_unchanged():
    record = record_of(HOSTILE, rows=1)
    (found,) = completions_of(record, PROBLEMS[:1])
    assert found.text == record.completion(0)
    assert len(found.pieces) == len(found.tokens) == len(found.logprobs) == len(HOSTILE)


def test_the_tokens_of_a_stretch():
    c = completion("x=416", pieces=[b"x", b"=4", b"", b"16", b""])
    assert tokens_of_span(c, 2, 5) == [1, 3]
    assert tokens_of_span(c, 0, 1) == [0]
    assert tokens_of_span(c, 0, 5) == [0, 1, 3]


def test_a_character_that_is_split_belongs_to_all_its_tokens():
    first, second = "≤".encode()[:1], "≤".encode()[1:]
    c = completion("a≤b", pieces=[b"a" + first, second, b"b"])
    assert tokens_of_span(c, 1, 2) == [0, 1]
    assert tokens_of_span(c, 0, 1) == [0]
    assert tokens_of_span(c, 2, 3) == [2]


@settings(deadline=None, max_examples=40)
@given(st.text(min_size=1, max_size=12), st.data())
def test_a_stretch_is_what_its_tokens_hold_and_others_do_not(text, data):
    text = text.encode("utf-8", "replace").decode()
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)) | {0, len(raw)})
    pieces = [raw[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    found = tokens_of_span(completion(text, pieces=pieces), start, stop)
    low, high = len(text[:start].encode()), len(text[:stop].encode())
    # A token that holds any byte of the characters, counted byte by byte.
    wanted = [
        i for i in range(len(pieces)) if set(range(cuts[i], cuts[i + 1])) & set(range(low, high))
    ]
    assert found == wanted


def test_pieces_of_another_text_are_refused():
    with pytest.raises(ValueError, match="the pieces of a completion are not those of its text"):
        tokens_of_span(completion("abc", pieces=[b"ab"]), 0, 1)
