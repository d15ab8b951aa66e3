"""A reward that raises, or gives something other than one finite number a row, is named."""

import math

import numpy as np
import pytest
import torch
from completions import completion, group_of

from entropy_probe.training.checking import SHOWN, RewardError, checked, reward_name
from entropy_probe.training.rules import each

THREE = group_of(["one", "two", "three"])


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5, True],
        (1.0, 0.5, 1.0),
        torch.tensor([1.0, 0.5, 1.0]),
        np.array([1.0, 0.5, 1.0]),
        [np.float32(1), torch.tensor(0.5), np.True_],
    ],
)
def test_numbers_of_any_make_become_floats(values):
    found = checked(lambda completions: values, THREE)
    assert found == [1.0, 0.5, 1.0]
    assert all(type(value) is float for value in found)


def test_no_completions_no_rewards():
    assert checked(lambda completions: [], []) == []


def wrong(values):
    def some_reward(completions):
        return values

    return some_reward


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, math.nan, 0.0], "'some_reward' gave nan where a finite number .* row 1 .*'two'"),
        ([1.0, 0.0, math.inf], "gave inf .* row 2 of step 0, completion 'three'"),
        ([1.0, 0.0, -math.inf], "gave -inf .* row 2"),
        ([None, 0.0, 0.0], "gave None where a finite number is expected: row 0"),
        (["1", 0.0, 0.0], "gave '1' where a finite number is expected: row 0"),
        ([1j, 0.0, 0.0], "gave 1j where"),
        ([10**400, 0.0, 0.0], "gave 1000"),
        ([torch.ones(2), 0.0, 0.0], "gave tensor"),
        ([[1.0], 0.0, 0.0], r"gave \[1.0\] where"),
        ([1.0, 0.0], "gave 2 values for 3 completions: expected one number each"),
        ([1.0] * 4, "gave 4 values for 3 completions"),
        (None, "'some_reward' gave NoneType: expected 3 numbers"),
        (1.0, "gave float: expected 3 numbers"),
        ("101", "gave str: expected 3 numbers"),
        ((v for v in [1.0] * 3), "gave generator: expected 3 numbers"),
    ],
)
def test_what_is_no_reward(values, message):
    with pytest.raises(RewardError, match=message):
        checked(wrong(values), THREE)


def test_an_exception_names_the_reward_and_keeps_its_cause():
    def broken(completions):
        raise KeyError("answer")

    with pytest.raises(
        RewardError, match="'broken' raised KeyError: 'answer'; .* 3 completions, rows 0 to 2"
    ) as error:
        checked(broken, THREE)
    assert isinstance(error.value.__cause__, KeyError)


def test_a_rule_for_one_completion_names_its_row():
    broken = each("length of the second word", lambda c: len(c.text.split()[1]))
    texts = group_of(["a b", "only"])
    with pytest.raises(
        RewardError,
        match="'length of the second word' raised IndexError: .* row 1 of step 0, .*'only'",
    ) as error:
        checked(broken, texts)
    assert isinstance(error.value.__cause__, IndexError)
    assert checked(broken, texts[:1]) == [1.0]


def test_an_interrupt_is_no_error_of_the_reward():
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(interrupted, THREE)


def test_a_hostile_completion_is_shown_shortened_and_harmless():
    text = "\x1b[31mred\u202e\n" + "x" * 10_000
    with pytest.raises(RewardError) as error:
        checked(each("bad", lambda c: math.nan), [completion(text, row=7, step=3)])
    message = str(error.value)
    assert "row 7 of step 3" in message
    assert "⟨ESC⟩[31mred⟨RLO⟩↵" in message
    assert "…" in message
    assert len(message) < SHOWN + 200
    assert message.isprintable()


def test_names_of_rewards():
    assert reward_name(each("mine", len)) == "mine"
    assert reward_name(wrong(1)) == "some_reward"
    assert reward_name(Callable()) == "Callable"


class Callable:
    """A reward without a name."""

    def __call__(self, completions):
        return [0.0 for _ in completions]
