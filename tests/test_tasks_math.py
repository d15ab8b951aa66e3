r"""Answers as mathematics: what is equal, what hangs, and what a file of problems may hold."""

import importlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import probe
from hostile import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe import open_run
from entropy_probe.tasks import (
    FindsAnswers,
    HasFormat,
    HasStrategies,
    Problem,
    ReadsAnswers,
    Task,
    TaskError,
    get_task,
)
from entropy_probe.tasks.math import INSTRUCTION, LONGEST, Math, boxed, final_answer
from entropy_probe.tasks.worker import Worker
from entropy_probe.training.checking import checked
from entropy_probe.training.completion import Completion
from entropy_probe.training.rewards import get_reward

GAPS = [r"\,", r"\;", r"\ ", "~", " ", "\u00a0", "\u2009", "\u202f"]
HANGING = r"\boxed{9^{9^{9^{9}}}}"


def needs_math_verify():
    """Skip where the package is missing and nothing says that it must be there."""
    try:
        importlib.import_module("math_verify")
    except ImportError as error:
        if os.environ.get("PROBE_REQUIRE_TASKS"):
            raise
        pytest.skip(f"needs math-verify: {error}")


@pytest.fixture(scope="module")
def task():
    needs_math_verify()
    task = Math("none")
    yield task
    task.worker.close()


def problem(answer):
    return Problem("What?", answer, "p")


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Equal answers


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("1/2", r"so \boxed{\frac{1}{2}}."),
        ("1/2", r"\boxed{0.5}"),
        (r"\frac12", "The answer is 0.5."),
        ("42", "we get 40+2 = 42."),
        ("42", r"first \boxed{41}, no: \boxed{42} and not 43"),
        ("42", r"\boxed{x = 42}"),
        ("1,000", r"\boxed{1000}"),
        (r"50\%", r"\boxed{0.5}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        ("[1,2)", r"\boxed{[1, 2)}"),
        (r"\sqrt{2}", r"\boxed{1.414213562373095}"),
        (r"\{1,2\}", r"\boxed{\{2, 1\}}"),
        ("A", r"\boxed{\text{A}}"),
        *((number, rf"\boxed{{{number}{end}}}") for number in ("12", "0.5") for end in ".,; "),
        *(("1234567", rf"\boxed{{1{gap}234{gap}567}}") for gap in GAPS),
        *((rf"1{gap}234", r"\boxed{1234}") for gap in GAPS),
        (r"12\,345\text{ m}", r"\boxed{12345}"),
        ("2, 345", r"\boxed{345, 2}"),
        ("-5", "The answer is \u22125."),
        ("\u22125", r"\boxed{-5}"),
        ("-5", "\\boxed{\u20135}"),
        ("(-1,-2)", "\\boxed{(\u20131, \u20132)}"),
        ("east", r"\boxed{\text{East}}"),
        (r"\text{east}", r"\boxed{east}"),
        ("no solution", r"\boxed{\textbf{No} \ \mathrm{solution}.}"),
        ("no", r"\boxed{NO}"),
        ("TH", r"\boxed{\text{TH}}"),
        ("xy", r"\boxed{yx}"),
        ("x y z", r"\boxed{z y x}"),
        ("abc", r"\boxed{a \cdot c \cdot b}"),
        ("infinity", r"\boxed{\infty}"),
    ],
)
def test_equal_answers_are_right(task, answer, completion):
    assert task.verify(problem(answer), completion) == 1.0


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("1/2", r"\boxed{\frac{1}{3}}"),
        ("42", r"\boxed{42} or rather \boxed{43}"),
        ("42", r"\boxed{\,} 43"),
        ("42", "no answer"),
        ("42", ""),
        ("42", r"\boxed{}"),
        ("42", r"\boxed{42"[:-1]),
        ("x^2+2x+1", r"\boxed{(x+1)^3}"),
        ("[1,2)", r"\boxed{(1,2]}"),
        ("A", r"\boxed{B}"),
        ("42", rf"\boxed{{42{'+0' * LONGEST}}}"),
        ("unreadable", r"\boxed{readable}"),
        ("345", "\\boxed{12\u202f345}"),
        ("2345", r"\boxed{2, 345}"),
        ("12345", r"\boxed{1 2 345}"),
        ("103456", r"\boxed{10^3 456}"),
        ("5", "The answer is \u22125"),
        ("1/3", r"\boxed{0.333...}"),
        ("east", r"\boxed{seat}"),
        ("east", r"\boxed{\text{seat}}"),
        (r"\text{east}", r"\boxed{seat}"),
        ("east", "The answer is $seat$"),
        ("east", r"\boxed{5}"),
        ("no", r"\boxed{on}"),
        ("TH", r"\boxed{HT}"),
        ("ABC", r"\boxed{BCA}"),
        (r"\text{xy}", r"\boxed{yx}"),
    ],
)
def test_other_answers_are_wrong(task, answer, completion):
    assert task.verify(problem(answer), completion) == 0.0


@pytest.mark.parametrize("text", [p.decode("utf-8", "replace") for p in HOSTILE])
def test_hostile_answers_are_wrong_and_raise_nothing(task, text):
    rows = [rf"\boxed{{{text}}}", text, text + r"\boxed{7}"]
    assert [task.verify(problem("7"), row) for row in rows] == [0.0, 0.0, 1.0]


def test_a_right_answer_that_is_no_mathematics_is_the_files_fault(task):
    with pytest.raises(TaskError, match="right answer of problem 'p' cannot be read\nwhy: .*'}{'"):
        task.verify(problem("}{"), r"\boxed{1}")


# Time


def test_an_answer_that_hangs_is_killed_and_the_next_one_counts():
    needs_math_verify()
    quick = Worker(
        "entropy_probe.tasks.math_reading:read", seconds=1.0, first=Math("none").worker.first
    )
    task = Math("none", worker=quick)
    before = signal.getsignal(signal.SIGALRM)
    found = {}

    def judge():
        found["first"] = task.verify(problem("1/2"), r"\boxed{0.5}")
        start = time.monotonic()
        found["hanging"] = task.verify(problem("1/2"), HANGING)
        found["seconds"] = time.monotonic() - start
        found["read"] = task.answer_of(problem("1/2"), HANGING)
        found["next"] = task.verify(problem("1/2"), r"\boxed{0.5}")

    thread = threading.Thread(target=judge)  # math-verify's own limit fails off the main thread
    thread.start()
    thread.join(timeout=120)
    seconds = found.pop("seconds")
    assert found == {"first": 1.0, "hanging": 0.0, "read": None, "next": 1.0}
    assert seconds < 30
    assert signal.getsignal(signal.SIGALRM) == before
    task.worker.close()


# What else rewards ask for


def test_equal_answers_are_read_as_one(task):
    texts = [r"\boxed{\frac{2}{4}}", r"\boxed{0.5}", "it is 1/2.", r"\boxed{x=\frac12}"]
    assert {task.answer_of(problem("3"), text) for text in texts} == {r"\frac{1}{2}"}
    assert task.answer_of(problem("3"), r"\boxed{(x+1)^2-x^2-1}") == "2 x"
    assert task.answer_of(problem("3"), "nothing") is None


def test_words_are_read_as_words(task):
    texts = (
        "east",
        "seat",
        r"\text{East}.",
        "TH",
        "HT",
        "no",
        "on",
        "xy",
        r"\text{xy}",
        "12\\,345;",
    )
    read = [task.answer_of(problem("3"), rf"\boxed{{{text}}}") for text in texts]
    assert read == [
        "east", "seat", "east", "TH", "HT", "no", "n o", "x y", r"\text{xy}", "12345",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        "3",
        r"\frac{1}{2}",
        "0.25",
        r"\sqrt{2}",
        "2x+1",
        "(1,2)",
        r"\{1,2\}",
        "A",
        r"3\pi",
        "East",
        r"\text{no way}",
        r"\text{xy}",
        r"1\,234",
    ],
)
def test_an_answer_that_was_read_is_accepted_where_it_is_right(task, answer):
    read = task.answer_of(problem("0"), rf"so \boxed{{{answer}}}")
    assert task.accepts(problem(answer), read)
    assert not task.accepts(problem("17"), read)


def test_votes_go_by_equality(task):
    texts = [
        r"\boxed{0.5}",
        r"\boxed{\frac12}",
        r"\boxed{3}",
        r"\boxed{3}",
        "it is 1/2",
        HANGING[:-1],
    ]
    rows = [Completion(problem("3"), text, group=0, row=i) for i, text in enumerate(texts)]
    assert checked(get_reward("majority", task=task), rows) == [1, 1, 0, 0, 1, 0]
    assert checked(get_reward("correct", task=task), rows) == [0, 0, 1, 1, 0, 0]
    assert checked(get_reward("format", task=task), rows) == [1, 1, 1, 1, 0, 0]


def test_what_the_task_offers(task):
    for part in (Task, ReadsAnswers, FindsAnswers, HasFormat):
        assert isinstance(task, part)
    assert not isinstance(task, HasStrategies)
    assert task.marker == "\\boxed{"
    assert pickle.loads(pickle.dumps(task)) == task


def boxed_by_hand(text):
    """Count braces from every box on, the last box first."""
    for start in reversed(range(len(text))):
        if not text.startswith("\\boxed{", start):
            continue
        begin = start + len("\\boxed{")
        depth, at = 1, begin
        while at < len(text):
            if text[at] == "\\" and not text.startswith("\\boxed{", at):
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                break
            at += 1
        if depth == 0 and text[begin:at].strip():
            return begin, at
    return None


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "7", " ", "\\}", "\\{"]), max_size=9))
def test_the_last_box_that_is_closed_and_not_empty(parts):
    text = "".join(parts)
    assert boxed(text) == boxed_by_hand(text)


def test_many_open_boxes_take_no_time():
    start = time.process_time()
    assert boxed("\\boxed{" * 20_000) is None
    assert final_answer("{" * 100_000 + "5") == "{" * 19_999 + "5"
    assert time.process_time() - start < 2


# Files


def test_problems_of_a_file(tmp_path):
    needs_math_verify()
    rows = [
        {"problem": "1+1?", "answer": 2, "id": "sum", "split": "test", "level": 3},
        {"problem": "2+2?", "answer": "4", "split": "test", "prompt": "Q: 2+2?\nA:"},
        {"problem": "3+3?", "answer": "6"},
        {"problem": "3+3?", "answer": "6"},
    ]
    task = get_task(f"math:{written(tmp_path / 'a.jsonl', *rows)}")
    found = {p.facts["problem"]: p for p in task.problems(9)}
    assert found["1+1?"] == Problem(
        f"1+1?\n{INSTRUCTION}\n", "2", "sum", {"problem": "1+1?", "split": "test", "level": 3}
    )
    assert found["2+2?"].prompt == "Q: 2+2?\nA:"
    assert [p.answer for p in task.problems(9, split="train")] == ["6"]
    assert task.name == f"math:{tmp_path / 'a.jsonl'}"


def test_splits_share_no_problem_and_stay_when_the_file_grows(tmp_path):
    needs_math_verify()
    rows = [{"problem": f"{i}+{i}?", "answer": 2 * i} for i in range(300)]
    task = Math(written(tmp_path / "a.jsonl", *rows))
    test, train = task.problems(999), task.problems(999, split="train")
    assert len(test) + len(train) == 300
    assert 35 < len(test) < 85
    assert {p.id for p in test}.isdisjoint(p.id for p in train)
    smaller = Math(written(tmp_path / "b.jsonl", *rows[:150])).problems(999)
    assert {p.id for p in smaller} <= {p.id for p in test}
    assert task.problems(9) == test[:9] == task.problems(10)[:9]
    assert task.problems(9, seed=1) != test[:9]
    assert set(p.id for p in task.problems(999, seed=1)) == {p.id for p in test}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no problems in .*: .*|it is empty"),
        ("\n  \n", "it is empty"),
        ("{", "line 1 of .* is not JSON"),
        ('{"problem": "a", "answer": "1"}\n\n[1]', "line 3 of .* is no problem\nwhy: .*got list"),
        ('{"problem": "a"}', r"got \['problem'\]"),
        ('{"problem": "a", "answer": ""}', "answer must be a text, not empty"),
        ('{"problem": " ", "answer": "1"}', "problem must be a text, not empty"),
        ('{"problem": "a", "answer": true}', "answer must be a text"),
        ('{"problem": "a", "answer": null}', "answer must be a text"),
        ('{"problem": "\\ud800", "answer": "1"}', "problem must be a text"),
        ('{"problem": "a", "answer": "1", "id": 3}', "id must be a text"),
        ('{"problem": "a", "answer": "1", "split": "dev"}', "must be train or test, got 'dev'"),
        ('{"problem": "a", "answer": "1", "split": "train"}', "no test problems in"),
        (
            '{"problem": "a", "answer": "1", "id": "x", "split": "test"}\n'
            '{"problem": "b", "answer": "1", "id": "x", "split": "test"}',
            "two of its test problems have the id 'x'",
        ),
        (b"\xff\xfe", "cannot read the problems"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_hold_no_problems(tmp_path, content, message):
    needs_math_verify()
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError, match=message):
        Math(str(path)).problems(1)


def test_what_cannot_be_asked_for(tmp_path):
    needs_math_verify()
    task = Math(written(tmp_path / "a.jsonl", {"problem": "a", "answer": 1, "split": "test"}))
    with pytest.raises(ValueError, match="no split 'dev'"):
        task.problems(1, split="dev")
    with pytest.raises(ValueError, match="at least 1 problem, got 0"):
        task.problems(0)
    with pytest.raises(TaskError, match="cannot read the problems 'nowhere'\nwhy: No such file"):
        Math("nowhere").problems(1)


def test_without_the_package_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(
        TaskError,
        match=r"task 'math:x' needs a package .*\nwhy: .*\nfix: pip install 'entropy-probe",
    ):
        get_task("math:x")


# The command line


def test_a_capture_of_a_files_problems_is_verified(tmp_path, monkeypatch):
    needs_math_verify()
    monkeypatch.chdir(tmp_path)
    rows = [
        {"problem": p.id, "prompt": p.prompt, "answer": int(p.answer), "split": "test"}
        for p in get_task("arithmetic:short").problems(2)
    ]
    written(tmp_path / "m.jsonl", *rows)
    words = (
        "--model", "organism:amenable", "--max-new-tokens", 40, "--n", 8, "--chunk-prompts", 1,
        "-o", "run",
    )  # fmt: skip
    assert probe("capture", *words, "--task", "math:m.jsonl").code == 0
    run, task = open_run("run"), get_task("math:m.jsonl")
    rollouts, problems = run.rollouts(), task.problems(2)
    wanted = [task.verify(problems[i // 8], rollouts.completion(i)) for i in range(16)]
    assert rollouts.rewards.tolist() == wanted
    assert 0 < sum(wanted) < 16
    assert run.plan.task == "math:m.jsonl"


@pytest.mark.parametrize(
    ("name", "what"),
    [("math:nowhere", "cannot read the problems 'nowhere'"), ("maths", "no such task: maths")],
)
def test_a_task_that_is_not_there_is_told_on_three_lines(name, what):
    needs_math_verify()
    result = probe("capture", "--model", "organism:amenable", "--task", name, "-o", "run")
    assert result.code == 2
    assert result.told[0] == what
    assert not Path("run").exists()
