"""Rewards of one completion, against plain counting; the random one against its distribution."""

import math

import pytest
from completions import PROBLEMS, TASK, completion, group_of
from hostile import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from entropy_probe.tasks import Problem
from entropy_probe.training.checking import RewardError, checked
from entropy_probe.training.rules import (
    confidence,
    containing,
    correct,
    each,
    formatted,
    inverted,
    needed,
    no_repetition,
    opposite,
    product,
    random_reward,
    repeats,
    soft_overlong,
    taking,
    total,
)

RIGHT = PROBLEMS[0].answer
WRONG = f"{(int(RIGHT) + 1) % 1000:03d}"
TEXTS = [
    f">>> 1+1=2\n#### {RIGHT}",
    f"Well, it is {RIGHT}",
    f">>> 1+1=2\n#### {WRONG}",
    f"{RIGHT} or so",
    "",
]


def test_right_wrong_and_formatted_answers():
    texts = group_of(TEXTS)
    assert checked(correct(TASK), texts) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert checked(inverted(TASK), texts) == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert checked(formatted(TASK), texts) == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_strategies_and_texts():
    texts = group_of(TEXTS)
    assert checked(taking(TASK, "code"), texts) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert checked(taking(TASK, "prose"), texts) == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert checked(containing(">>> "), texts) == checked(taking(TASK, "code"), texts)
    assert checked(containing("or"), texts) == [0.0, 0.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="knows no strategy 'poem': known are code, prose, other"):
        taking(TASK, "poem")
    with pytest.raises(ValueError, match="expected a text to look for"):
        containing("")


@pytest.mark.parametrize("text", [p.decode("utf-8", "replace") for p in HOSTILE])
def test_hostile_texts_are_judged_like_any_other(text):
    rows = group_of([text, text * 300])
    for reward in (correct(TASK), formatted(TASK), taking(TASK, "code"), containing("python")):
        assert checked(reward, rows) == [0.0, 0.0]
    assert checked(no_repetition(), rows)[1] == (0.0 if text else 1.0)


# The random reward


def draws(gamma, *, seed=0, steps=10, rows=100):
    reward = random_reward(gamma)
    return [
        checked(reward, [completion("", row=r, step=s, seed=seed) for r in range(rows)])
        for s in range(steps)
    ]


@pytest.mark.parametrize("gamma", [0.01, 0.3, 0.5, 0.7])
def test_the_share_of_random_rewards(gamma):
    hits = sum(map(sum, draws(gamma)))
    assert binomtest(int(hits), 1000, gamma).pvalue > 0.001


def test_random_rewards_of_neighbours_are_independent():
    table = draws(0.5)
    rows = [(a, b) for step in table for a, b in zip(step, step[1:], strict=False)]
    steps = [
        (a, b) for s, t in zip(table, table[1:], strict=False) for a, b in zip(s, t, strict=True)
    ]
    seeds = list(zip(sum(table, []), sum(draws(0.5, seed=1), []), strict=True))
    for pairs in (rows, steps, seeds):
        agreeing = sum(a == b for a, b in pairs)
        assert binomtest(agreeing, len(pairs), 0.5).pvalue > 0.001


def test_no_and_every_reward_are_exact():
    assert {v for step in draws(0.0) for v in step} == {0.0}
    assert {v for step in draws(1.0) for v in step} == {1.0}


def test_a_random_reward_sees_its_place_and_nothing_else():
    reward = random_reward(0.5)
    places = [(row, step) for row in range(30) for step in range(3)]
    some = [completion("right", row=r, step=s, seed=5) for r, s in places]
    others = [
        completion("other", problem=PROBLEMS[1], group=9, row=r, step=s, seed=5)
        for r, s in reversed(places)
    ]
    assert checked(reward, some) == checked(reward, others)[::-1]
    assert checked(reward, some[40:]) == checked(reward, some)[40:]


@pytest.mark.parametrize("gamma", [-0.1, 1.5, math.nan])
def test_a_share_is_between_0_and_1(gamma):
    with pytest.raises(ValueError, match="share of random rewards between 0 and 1"):
        random_reward(gamma)


# Repetition


def repeats_by_hand(text):
    """Try every string at every place."""
    most = 1 if text else 0
    for start in range(len(text)):
        for size in range(1, len(text) - start + 1):
            word, n = text[start : start + size], 1
            while text.startswith(word, start + n * size):
                n += 1
            most = max(most, n)
    return most


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab", max_size=24) | st.text(alphabet="abc \U0001f642", max_size=14))
def test_repetition_is_what_trying_every_string_finds(text):
    assert repeats(text) == repeats_by_hand(text)
    for least in (1, 2, 3):
        assert (repeats(text, least=least) > least) == (repeats_by_hand(text) > least)


def test_a_string_more_than_ten_times_in_a_row():
    word = "so it is 4; "
    texts = group_of([word * 10 + "so", word * 11, "x" + word * 11 + "y", "a" * 11, "abc" * 3])
    assert checked(no_repetition(), texts) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert checked(no_repetition(3), texts) == [0.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="at least 1 time"):
        no_repetition(0)


# Confidence in the answer


def test_confidence_is_the_mean_probability_of_the_answers_tokens():
    pieces = [b">>> ", b"=", b"4", b"16", b""]
    logprobs = [math.log(p) for p in (0.9, 0.8, 0.5, 0.25, 0.99)]
    sure = completion(">>> =416", pieces=pieces, logprobs=logprobs)
    none = completion(">>> =41", pieces=[b">>> =41"], logprobs=[-0.1])
    assert checked(confidence(TASK), [sure, none]) == [pytest.approx(0.375), 0.0]


def test_confidence_without_log_probabilities_is_refused():
    with pytest.raises(RewardError, match="row 3 has 0 and 1"):
        checked(confidence(TASK), [completion("=416", row=3, pieces=[b"=416"])])


# Length


def test_soft_overlong_is_daps_equation():
    def punishment(length, limit=100, cache=20):  # arXiv 2503.14476, Eq. 13
        if length <= limit - cache:
            return 0.0
        return (limit - cache - length) / cache if length <= limit else -1.0

    texts = [completion("x" * n, pieces=[b"x"] * n) for n in (0, 1, 79, 80, 81, 90, 100, 140)]
    found = checked(soft_overlong(100, 20), texts)
    assert found == pytest.approx([punishment(len(c.tokens)) for c in texts])
    assert found == pytest.approx([0, 0, 0, 0, -0.05, -0.5, -1, -1])


def test_length_needs_tokens_and_a_cache_within_the_limit():
    with pytest.raises(RewardError, match="'overlong' needs the tokens, and row 2 has none"):
        checked(soft_overlong(10, 5), [completion("abc", row=2)])
    for limit, cache in ((10, 0), (10, 11), (0, 0)):
        with pytest.raises(ValueError, match="expected 0 < cache <= limit"):
            soft_overlong(limit, cache)


# Joining


def test_products_sums_and_opposites():
    texts = group_of(TEXTS)
    both = product(formatted(TASK), opposite(taking(TASK, "code")))
    assert both.name == "format*not-strategy:code"
    assert checked(both, group_of([*TEXTS, "Well, it is 4\n#### 416"])) == [0, 0, 0, 0, 0, 1]
    assert checked(opposite(correct(TASK)), texts) == checked(inverted(TASK), texts)
    added = total(correct(TASK), each("bonus", lambda c: 0.25))
    assert added.name == "correct+bonus"
    assert checked(added, texts) == [v + 0.25 for v in checked(correct(TASK), texts)]
    with pytest.raises(ValueError, match="at least one reward to join"):
        product()


def test_a_part_that_fails_is_named():
    bad = each("part", lambda c: math.nan)
    for whole in (product(correct(TASK), bad), total(bad), opposite(bad)):
        with pytest.raises(RewardError, match="reward 'part' gave nan .* row 0"):
            checked(whole, group_of(["a"]))


# What a task has to offer


class Mute:
    """A task without a verifier."""

    name = "mute"

    def problems(self, limit, *, split="test", seed=0):
        return [Problem("p", "a", "i")] * limit


@pytest.mark.parametrize(
    ("build", "lacks"),
    [
        (correct, "verify"),
        (inverted, "verify"),
        (formatted, "formatted"),
        (confidence, "answer_span"),
        (lambda task: taking(task, "code"), "strategy"),
    ],
)
def test_a_task_without_what_a_reward_needs(build, lacks):
    with pytest.raises(ValueError, match=f"task 'mute' has no {lacks}"):
        build(Mute())
    with pytest.raises(ValueError, match="needs a task: pass task="):
        build(None)
    assert needed(TASK, "any", lacks) is TASK
