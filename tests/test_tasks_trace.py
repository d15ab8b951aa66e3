"""The parser: whatever the pieces are, it says how far they follow the language."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.models.organisms.corpus import Corpus, write
from entropy_probe.tasks import generator, labeller, language
from entropy_probe.tasks.checker import check
from entropy_probe.tasks.trace import parse

PIECE = st.one_of(st.sampled_from(language.PIECES), st.text(max_size=3))
OPENING = st.sampled_from(
    [[], [language.CODE], [language.PROSE, language.SWIFT], [language.PROSE, language.CARE]]
)
PROBLEM = generator.problems("default", 1, split="test", seed=0)[0]


@settings(max_examples=400)
@given(OPENING, st.lists(PIECE, max_size=12))
def test_no_pieces_are_too_strange(opening, rest):
    pieces = opening + rest
    trace = parse(pieces)
    assert 0 <= trace.stop <= trace.length == len(pieces)
    assert trace.well_formed == (trace.stop == len(pieces) and trace.answer is not None)
    report = check(PROBLEM, pieces)
    assert report.trace == trace
    assert all(0 <= finding.at <= len(pieces) for finding in report.findings)
    for ended in (True, False):
        assert len(labeller.label(PROBLEM, pieces, ended=ended)) == len(pieces) + ended


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.data())
def test_a_written_completion_is_understood_to_its_end_and_no_further(seed, data):
    rng = random.Random(seed)
    chain = generator.draw_chain(rng, rng.choice((2, 3, 4, 5)))
    pieces = write(Corpus(care=0.3), chain, "find", rng)
    trace = parse(pieces)
    assert trace.well_formed
    assert trace.strategy == language.strategy(pieces)
    assert trace.start == chain.start
    assert trace.answer == int("".join(pieces[-2:]))
    assert (trace.marker is None) == (language.MARKER not in pieces)
    for statement in trace.statements:
        at = statement.result_at
        assert pieces[at : at + 2] == list(language.number(statement.result))
        for step, index in zip(statement.steps, statement.at, strict=True):
            assert pieces[index : index + 2] == [step.operation, str(step.operand)]
    cut = data.draw(st.integers(0, len(pieces) - 1))
    strange = [*pieces[:cut], "so", *pieces[cut:]]
    assert parse(strange).stop <= cut
    assert not parse(strange).well_formed


def test_prose_without_steps_and_with_them():
    swift = parse(language.lex("Well, from 473; then it is 472; next we get 420\n#### 420"))
    assert (swift.strategy, swift.careful, swift.start, swift.answer) == ("prose", False, 473, 420)
    assert [s.result for s in swift.statements] == [472, 420]
    assert all(s.steps == () for s in swift.statements)
    careful = parse(language.lex("Well, step by step from 473+8=481; -9=472"))
    assert (careful.strategy, careful.careful, careful.marker) == ("prose", True, None)
    assert [s.result for s in careful.statements] == [481, 472]
    assert careful.answer == 472


def test_what_only_opens():
    assert parse([language.PROSE]).strategy == "prose"
    assert parse([language.PROSE]).stop == 1
    assert parse([language.CODE]).answer is None
    assert parse(["so"]).strategy == "other"
