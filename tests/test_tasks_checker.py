"""The step checker against an evaluation of the text alone, and every kind of error it tells."""

import dataclasses
import random
import re
from collections import Counter

import pytest
from test_tasks_generator import read, solve

from entropy_probe.models.organisms.corpus import Corpus, Style, write
from entropy_probe.tasks import generator, language
from entropy_probe.tasks.checker import ERRORS, check
from entropy_probe.tasks.language import Chain, Step, lex

STATEMENT = r"(?:[+*-][0-9])+=[0-9]{3}"
WRITTEN = re.compile(
    rf"(?:>>> |Well, step by step from )([0-9]{{3}})((?:{STATEMENT}(?:(?:; |\n){STATEMENT})*)?)"
    r"(?:\n#### ([0-9]{3}))?"
)
SPOKEN = re.compile(
    r"Well, from ([0-9]{3})((?:; (?:then|next) (?:it is|we get) [0-9]{3})*)(?:\n#### ([0-9]{3}))?"
)


def judge(prompt: str, text: str) -> list[tuple[str, str | None]] | None:
    """Judge a completion by its text: (part, error) in order, None if it is malformed."""
    start, steps = read(prompt)
    written, spoken = WRITTEN.fullmatch(text), SPOKEN.fullmatch(text)
    if not (written or spoken):
        return None
    first, body, answer = (written or spoken).groups()
    verdict = [("start", None if int(first) == start else "copy")]
    value, taken = int(first), 0
    if written:
        for statement in re.split(r"; |\n", body) if body else []:
            left, _, right = statement.partition("=")
            done = [(left[i], int(left[i + 1])) for i in range(0, len(left), 2)]
            verdict.append(("step", judge_written(value, done, int(right), steps, taken, body)))
            value, taken = int(right), taken + len(done)
    else:
        for right in re.findall("[0-9]{3}", body):
            pair = steps[taken : taken + 2]
            error = judge_result(value, pair, int(right)) if pair else "extra"
            verdict.append(("step", error))
            value, taken = int(right), min(taken + 2, len(steps))
    verdict.append(("end", None if taken >= len(steps) else "missing"))
    if answer:
        verdict.append(("answer", None if int(answer) == value else "answer"))
    return verdict


def judge_written(value, done, result, steps, taken, body) -> str | None:
    """Judge one statement; what was written before it decides which order its pair has."""
    every = re.findall(r"([+*-])([0-9])", body)
    for i in range(len(done)):
        place = taken + i
        if place >= len(steps):
            return "extra"
        pair = steps[place - place % 2 :][:2]
        opened = (every[place - place % 2][0], int(every[place - place % 2][1]))
        free = len(pair) == 2 and pair[0] != pair[1] and "*" not in (pair[0][0], pair[1][0])
        if free and opened == pair[1]:
            pair = pair[::-1]
        if done[i] != pair[place % 2]:
            return "operand"
    return judge_result(value, done, result)


def judge_result(value, steps, result) -> str | None:
    """Judge a result by the steps that lead to it."""
    if result == solve(value, steps):
        return None
    return "rounding" if result == solve(value, steps, rounding=True) else "arithmetic"


def other_chain(chain: Chain, rng: random.Random) -> Chain:
    """Give a chain that differs in a step or two: changed, dropped, added or moved."""
    steps = list(chain.steps)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(steps))
        kind = rng.randrange(5)
        if kind == 0:
            steps[at] = Step(rng.choice("+-*"), rng.randint(1, 9))
        elif kind == 1 and len(steps) > 2:
            del steps[at]
        elif kind == 2:
            steps.insert(at, generator.draw_step(rng))
        elif kind == 3:
            steps.append(generator.draw_step(rng))
        else:
            rng.shuffle(steps)
    start = chain.start if rng.random() < 0.8 else rng.randrange(1000)
    return Chain(start, tuple(steps))


def spoiled(pieces: list[str], rng: random.Random) -> list[str]:
    """Change one piece of a completion: another of its kind, another at all, none, cut, moved."""
    pieces, at, kind = list(pieces), rng.randrange(len(pieces)), rng.randrange(6)
    if kind < 3:
        same = [p for p in language.PIECES if len(p) == len(pieces[at])]
        pieces[at] = rng.choice(same)
    elif kind == 3:
        pieces[at : at + 1] = rng.choice(([], [rng.choice(language.PIECES)], ["?"]))
    elif kind == 4:
        pieces = pieces[:at]
    else:
        other = rng.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    return pieces


def traces(count: int):
    """Give problems and completions, right ones and wrong ones of every sort."""
    rng = random.Random("traces")
    for i in range(count):
        # One seed a problem: the lists are then as varied as the problems.
        problem = generator.problems(rng.choice(("default", "short")), 1, split="train", seed=i)[0]
        chain = generator.chain_of(problem)
        if rng.random() < 0.3:
            chain = other_chain(chain, rng)
        style = Style(rng.choice((1, 1, 2, 3)), rng.random() < 0.3, 0.3)
        prose = Style(rng.choice((2, 2, 2, 1)), rng.random() < 0.3, 0.3)
        corpus = Corpus(
            code=style, careful=style, prose=prose, care=0.4, newline=0.3, connective=0.5
        )
        pieces = write(corpus, chain, rng.choice(list(language.WORDINGS)), rng)
        if rng.random() < 0.35:
            pieces = spoiled(pieces, rng)
        yield problem, "".join(pieces)


def test_agrees_with_an_evaluation_of_the_text_on_ten_thousand_traces():
    seen = Counter()
    for problem, text in traces(10_000):
        report, expected = check(problem, lex(text)), judge(problem.prompt, text)
        told = [(finding.part, finding.error) for finding in report.findings]
        if expected is None:
            assert not report.valid, text
            assert not report.trace.well_formed, text
            seen["malformed"] += 1
        else:
            assert told == expected, (problem.prompt, text)
            assert report.trace.well_formed or ("end", "missing") in told, text
            seen["valid"] += report.valid
            assert report.valid == all(error is None for _, error in expected)
            seen.update({error for _, error in expected if error})
    assert seen["valid"] > 2000
    assert {kind: n for kind, n in seen.items() if n < 100} == {}
    assert set(seen) >= set(ERRORS) - {"format"}


PROBLEM = generator.problem_of(
    Chain(473, (Step("+", 8), Step("-", 9), Step("*", 3), Step("+", 4))), "compute"
)
RIGHT = ">>> 473+8=481; -9=472; *3=416\n+4=420\n#### 420"
CASES = [
    (RIGHT, []),
    (">>> 473-9=464; +8=472; *3=416; +4=420", []),
    (">>> 473+8-9=472; *3+4=420", []),
    ("Well, step by step from 473+8=481; -9=472; *3=416; +4=420", []),
    ("Well, from 473; then it is 472; next we get 420\n#### 420", []),
    (RIGHT.replace("473", "474"), [("start", "copy", "74"), ("step", "arithmetic", "81")]),
    (RIGHT.replace("-9", "-8"), [("step", "operand", "8")]),
    (RIGHT.replace("-9", "+9"), [("step", "operand", "+")]),
    (RIGHT.replace("+8", "-9"), [("step", "arithmetic", "81"), ("step", "operand", "-")]),
    (RIGHT.replace("=472", "=471"), [("step", "rounding", "71"), ("step", "arithmetic", "16")]),
    (RIGHT.replace("=481", "=581"), [("step", "arithmetic", "5"), ("step", "arithmetic", "4")]),
    (RIGHT.replace("420\n####", "420; +1=421\n####"), [("step", "extra", "+"), ("answer",) * 2]),
    (">>> 473+8=481; -9=472", [("end", "missing", None)]),
    (">>> 473+8=481\n#### 481", [("end", "missing", "\n#### ")]),
    ("Well, from 473; then it is 472", [("end", "missing", None)]),
    (">>> 473+8=481\n#### 481; ", [("end", "missing", "\n#### ")]),
    (
        "Well, from 473; then it is 472; then it is 420; next it is 420",
        [("step", "extra", "; next ")],
    ),
    ("Well, from 473; then it is 471; then it is 417", [("step", "rounding", "71")]),
    (RIGHT[:-1] + "1", [("answer", "answer", "21")]),
    (RIGHT.replace("#### 420", "#### "), [("end", "format", None)]),
    (RIGHT + "; ", [("end", "format", "; ")]),
    (RIGHT.replace("; *3", "; then *3"), [("end", "format", "; then ")]),
    ("Well, from 473; then it is 472; it is 420", [("end", "format", "; ")]),
    ("473+8=481", [("start", "format", "4")]),
    (">>> so 473", [("start", "format", "s")]),
    ("", [("start", "format", None)]),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_every_kind_of_error_is_told_where_it_happens(text, expected):
    pieces = lex(text)
    report = check(PROBLEM, pieces)
    found = [(f.part, f.error, pieces[f.at] if f.at < len(pieces) else None) for f in report.errors]
    expected = [case if len(case) == 3 else (*case, "20") for case in expected]
    assert found == expected
    assert report.valid == (not expected)


def test_the_cases_plant_every_kind():
    assert {case[1] for _, cases in CASES for case in cases} == set(ERRORS)


def test_one_error_does_not_spoil_what_follows():
    report = check(PROBLEM, lex(">>> 473+8=482; -9=473; *3=419; +4=423\n#### 423"))
    assert [f.error for f in report.findings] == [None, "arithmetic", None, None, None, None, None]


def test_findings_are_records():
    finding = check(PROBLEM, lex(RIGHT)).findings[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.error = "copy"
