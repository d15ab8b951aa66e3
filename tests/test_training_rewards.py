"""Rewards by name: each is the function it names, and what makes no sense is told."""

import pickle

import pytest
from completions import PROBLEMS, TASK, completion, group_of

from entropy_probe.training import rewards
from entropy_probe.training.rewards import REWARDS, checked, get_reward, needs_labels

RIGHT = PROBLEMS[0].answer
ROWS = group_of([
    f">>> 1+1=2\n#### {RIGHT}", f"Well, it is {RIGHT}", ">>> a*b+c \"q\" it is 000", "python", ""
])  # fmt: skip
LABELS = {PROBLEMS[0].id: "000"}

NAMES = {
    "correct": rewards.correct(TASK),
    "inverted": rewards.inverted(TASK),
    "majority": rewards.majority(TASK),
    "labels": rewards.labelled(TASK, LABELS),
    "incorrect": rewards.incorrect(TASK, LABELS),
    "format": rewards.formatted(TASK),
    "random:0.5": rewards.random_reward(0.5),
    "contains:python": rewards.containing("python"),
    "contains: python ": rewards.containing("python"),
    'contains:">>> "': rewards.containing(">>> "),
    'contains:"a*b+c \\"q\\""': rewards.containing('a*b+c "q"'),
    "strategy:code": rewards.taking(TASK, "code"),
    "no-repetition": rewards.no_repetition(),
    "not-format": rewards.opposite(rewards.formatted(TASK)),
    "not-not-format": rewards.formatted(TASK),
    "format * not-contains:python": rewards.product(
        rewards.formatted(TASK), rewards.opposite(rewards.containing("python"))
    ),
    "correct+0.5*format": rewards.total(
        rewards.correct(TASK),
        rewards.product(rewards.each("half", lambda c: 0.5), rewards.formatted(TASK)),
    ),
    "correct+contains:python*strategy:code": rewards.total(
        rewards.correct(TASK),
        rewards.product(rewards.containing("python"), rewards.taking(TASK, "code")),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_reward_it_names(name):
    assert checked(get_reward(name, task=TASK, labels=LABELS), ROWS) == checked(NAMES[name], ROWS)


def test_every_listed_reward_can_be_built():
    arguments = {"SHARE": "0.5", "TEXT": "x", "NAME": "code", "LIMIT,CACHE": "100,20"}
    for form in REWARDS:
        name, _, argument = form.partition(":")
        name = f"{name}:{arguments[argument]}" if argument else name
        assert callable(get_reward(name, task="arithmetic", labels={}))


def test_rewards_that_use_tokens():
    c = completion("=416", pieces=[b"=", b"416"], logprobs=[-0.5, 0.0])
    assert checked(get_reward("confidence", task=TASK), [c]) == [1.0]
    assert checked(get_reward("1+overlong:3,2"), [c]) == [0.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corect", "no reward 'corect': known are correct, .*; did you mean 'correct'"),
        ("zzz", "no reward 'zzz': known are .*CACHE$"),
        ("python", "no reward 'python'"),
        ("not-zzz", "no reward 'zzz'"),
        ("correct:1", "reward 'correct' is written correct$"),
        ("random", "reward 'random' is written random:SHARE"),
        ("random:half", "the share of a reward is no number: got 'half'"),
        ("random:1.5", "between 0 and 1, got 1.5"),
        ("contains:", "expected a text to look for"),
        ("strategy:poem", "knows no strategy 'poem'"),
        ("overlong:3", "written overlong:LIMIT,CACHE in tokens: got '3'"),
        ("overlong:3,4", "expected 0 < cache <= limit"),
        ("1.2.3*correct", "weight '1.2.3' of a reward is no number"),
        ("labels", "reward 'labels' needs labels: pass labels="),
        ("incorrect", "reward 'incorrect' needs labels"),
        ("", "breaks off at ''"),
        ("correct*", "reward 'correct\\*' breaks off at ''"),
        ("correct**format", "breaks off at '\\*format'"),
        ('contains:"a', "breaks off at"),
        ("correct format", "breaks off at"),
        ("\x1b[31m", "breaks off at '\\\\x1b"),
    ],
)
def test_names_that_make_no_sense(name, message):
    with pytest.raises(ValueError, match=message):
        get_reward(name, task=TASK)


def test_a_reward_without_the_task_it_needs():
    with pytest.raises(ValueError, match="reward 'correct' needs a task: pass task="):
        get_reward("correct")
    with pytest.raises(ValueError, match="no task 'arithmetics'"):
        get_reward("correct", task="arithmetics")
    assert checked(get_reward("random:1"), ROWS) == [1.0] * 5


def test_which_rewards_need_labels():
    assert needs_labels("incorrect")
    assert needs_labels("format*not-labels")
    assert not needs_labels("majority+correct")
    assert not needs_labels("contains:labels")


def test_the_completions_travel_between_processes():
    assert pickle.loads(pickle.dumps(ROWS)) == ROWS
