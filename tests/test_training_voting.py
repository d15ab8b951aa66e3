"""Majority votes and labels, against counting by hand."""

from collections import Counter

import pytest
from completions import PROBLEMS, TASK, completion, group_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_rules import Mute

from entropy_probe import load, sample
from entropy_probe.training.checking import RewardError, checked
from entropy_probe.training.voting import (
    incorrect,
    label_problems,
    labelled,
    majority,
    majority_labels,
    most_frequent,
    wrongly_labelled,
)

ANSWERS = st.sampled_from(["=111", "=222", "=333", "no answer", "\x00\x1b[0m", ""])


def by_hand(texts):
    """Give each text's reward: count every answer, take the first of those with most."""
    answers = [text[1:] if text.startswith("=") else None for text in texts]
    counts = [sum(a == b for b in answers) if a is not None else 0 for a in answers]
    best = max(counts, default=0)
    winner = next((a for a, n in zip(answers, counts, strict=True) if a and n == best), None)
    return [float(a is not None and a == winner) for a in answers]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(ANSWERS, max_size=7), max_size=4), st.randoms())
def test_the_majority_is_taken_within_each_group(groups, rng):
    rows, wanted, first = [], {}, 0
    for g, texts in enumerate(groups):
        rows += group_of(texts, group=g, first=first)
        wanted |= {first + i: value for i, value in enumerate(by_hand(texts))}
        first += len(texts)
    rng.shuffle(rows)  # the rows' numbers decide ties, not the order in which they come
    found = checked(majority(TASK), rows)
    assert dict(zip((c.row for c in rows), found, strict=True)) == wanted


def test_one_group_does_not_vote_in_another():
    rows = [*group_of(["=111", "=111", "=222"]), *group_of(["=222", "=222"], group=1, first=3)]
    assert checked(majority(TASK), rows) == [1, 1, 0, 1, 1]
    joined = [completion(c.text, row=c.row) for c in rows]
    assert checked(majority(TASK), joined) == [0, 0, 1, 1, 1]


def test_a_group_without_answers_gets_nothing():
    assert checked(majority(TASK), group_of(["a", "b"])) == [0.0, 0.0]
    assert most_frequent([None, None]) is None
    assert most_frequent(["b", "a", None, None, None]) == "b"


# Labels made beforehand


def wrong_answer(problem):
    return f"{(int(problem.answer) + 1) % 1000:03d}"


def test_labels_are_the_majoritys_answers():
    texts = [["=111", "=222", "=222"], ["=7", ""], ["=333", "none", "none"], ["x"]]
    labels = majority_labels(TASK, PROBLEMS, texts)
    assert labels == {PROBLEMS[0].id: "222", PROBLEMS[2].id: "333"}
    with pytest.raises(ValueError, match="expected completions for 4 problems, got 1 lists"):
        majority_labels(TASK, PROBLEMS, texts[:1])


def test_a_label_is_rewarded_right_or_wrong():
    labels = {PROBLEMS[0].id: PROBLEMS[0].answer, PROBLEMS[1].id: wrong_answer(PROBLEMS[1])}
    rows = [
        completion(f"={PROBLEMS[0].answer}"),
        completion(f"={wrong_answer(PROBLEMS[0])}"),
        completion(f"={PROBLEMS[1].answer}", problem=PROBLEMS[1]),
        completion(f"={wrong_answer(PROBLEMS[1])}", problem=PROBLEMS[1]),
        completion("no answer", problem=PROBLEMS[1]),
    ]
    assert checked(labelled(TASK, labels), rows) == [1, 0, 0, 1, 0]
    with pytest.raises(RewardError, match="has no label for problem .* \\(row 5\\)"):
        checked(labelled(TASK, labels), [completion("=1", problem=PROBLEMS[2], row=5)])


def test_the_incorrect_reward_is_for_the_wrong_label_alone():
    problem, label = PROBLEMS[1], wrong_answer(PROBLEMS[1])
    other = f"{(int(label) + 1) % 1000:03d}"
    rows = [completion(f"={answer}", problem=problem) for answer in (label, problem.answer, other)]
    reward = incorrect(TASK, {problem.id: label})
    assert checked(reward, rows) == [1, 0, 0]  # 1 - correct would give 1, 0, 1
    with pytest.raises(RewardError, match="the label of problem .* is right"):
        checked(incorrect(TASK, {problem.id: problem.answer}), rows)
    with pytest.raises(RewardError, match="reward 'incorrect' has no label"):
        checked(incorrect(TASK, {}), rows)


def test_only_problems_with_a_wrong_label_are_kept():
    labels = {
        PROBLEMS[0].id: PROBLEMS[0].answer,
        PROBLEMS[1].id: wrong_answer(PROBLEMS[1]),
        PROBLEMS[3].id: wrong_answer(PROBLEMS[3]),
    }
    assert wrongly_labelled(TASK, PROBLEMS, labels) == [PROBLEMS[1], PROBLEMS[3]]
    with pytest.raises(ValueError, match=r"none of 1 problems has a wrong label \(1 have one\)"):
        wrongly_labelled(TASK, PROBLEMS[:1], labels)


def test_a_task_that_reads_no_answers_is_refused():
    for build in (majority, lambda t: labelled(t, {}), lambda t: majority_labels(t, [], [])):
        with pytest.raises(ValueError, match="task 'mute' has no answer_of"):
            build(Mute())
    for build in (lambda t: incorrect(t, {}), lambda t: wrongly_labelled(t, [], {})):
        with pytest.raises(ValueError, match="has no .*accepts"):
            build(Mute())


def test_labels_of_a_models_own_samples():
    model, tokenizer = load("organism:amenable-300k")
    problems = PROBLEMS[:3]
    options = {"max_new_tokens": 32, "seed": 3}
    labels = label_problems(model, tokenizer, TASK, problems, n=4, **options)
    rollouts = sample(model, tokenizer, [p.prompt for p in problems], n=4, **options)
    for i, problem in enumerate(problems):
        texts = [rollouts.completion(4 * i + j) for j in range(4)]
        answers = Counter(TASK.answer_of(problem, text) for text in texts)
        del answers[None]
        assert answers[labels[problem.id]] == max(answers.values())
