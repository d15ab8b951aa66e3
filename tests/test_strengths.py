"""The strength that does best is taken; where rewards mean nothing, any may be."""

import numpy as np
import pytest
import torch

from entropy_probe import load
from entropy_probe.figures import Figure, mean
from entropy_probe.models.organisms.tokenizer import VOCABULARY
from entropy_probe.tasks import get_task, language
from sae_steering.edits import Direction
from sae_steering.interventions import Steering
from sae_steering.outcomes import Drawing, measure
from sae_steering.places import at_opening
from sae_steering.strengths import (
    begun,
    blinded,
    choose_strength,
    choose_word,
    dealt_out,
    prompted,
)
from sae_steering.sweeps import Dose, best_dose

TASK = get_task("arithmetic")
DRAWING = Drawing(n=3, max_new_tokens=40, seed=2, batch_size=256)


def unequal(arms=5, problems=40, n=4):
    """Give rewards of arms of which only the third is ever right."""
    return [np.full((problems, n), float(arm == 2)) for arm in range(arms)]


def doses_of(rewards):
    zero = Figure(0.0, 0.0, 0.0, 1)
    return [
        Dose(float(i), mean(part.mean(axis=1)), {}, {}, zero, 0.0, 0.0, 0.0)
        for i, part in enumerate(rewards)
    ]


def test_rewards_are_dealt_out_and_none_is_lost():
    noise = np.random.default_rng(0)
    rewards = [noise.random((4, 3)) for _ in range(3)]
    dealt = dealt_out(rewards, 7)
    assert [part.shape for part in dealt] == [(4, 3)] * 3
    pooled, again = (np.sort(np.concatenate([p.ravel() for p in ps])) for ps in (rewards, dealt))
    assert np.array_equal(pooled, again)
    assert not any(np.array_equal(*pair) for pair in zip(rewards, dealt, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(dealt, dealt_out(rewards, 7), strict=True))
    assert not np.array_equal(dealt[0], dealt_out(rewards, (7, 1))[0])
    assert dealt_out([], 7) == []


def test_which_dose_is_best_by_dealt_rewards_does_not_depend_on_what_each_earned():
    rewards = unequal()
    doses = doses_of(rewards)
    assert best_dose(doses).strength == 2
    taken = np.zeros(len(doses))
    for seed in range(500):
        judged = blinded(doses, rewards, seed)
        best = [d.accuracy.value for d in judged]
        taken[np.flatnonzero(np.array(best) == max(best))] += 1 / best.count(max(best))
        assert sum(best) == pytest.approx(1)
        assert [d.strength for d in judged] == [d.strength for d in doses]
    # 100 each, in expectation: five standard deviations of a binomial are 45
    assert 55 < taken.min() <= taken.max() < 145


@pytest.fixture(scope="module")
def organism():
    torch.set_num_threads(1)
    return load("organism:amenable-300k")


@pytest.fixture(scope="module")
def problems():
    return TASK.problems(8, split="train", seed=5)


@pytest.mark.slow
def test_the_strength_with_the_most_right_answers_is_taken(organism, problems):
    push = Direction(torch.nn.functional.normalize(torch.randn(64), dim=0), "push")
    steering = Steering(None, {push: 1.0}, layer=1, where=at_opening)
    seen = []
    chosen = choose_strength(
        *organism, TASK, problems, steering, 10.0, sizes=(0.1, 5.0), drawing=DRAWING,
        progress=seen.append,
    )  # fmt: skip
    right = {dose.strength: dose.accuracy.value for dose in seen}
    assert list(right) == [1.0, 50.0]
    best = max(right, key=right.get)
    assert chosen.steering.features == {push: best}
    assert chosen.about["length"] == best
    assert [each["length"] for each in chosen.about["tried"]] == [1.0, 50.0]


@pytest.mark.slow
def test_the_word_with_the_most_right_answers_is_taken(organism, problems):
    words = ["9", language.CODE, language.PROSE]
    tokens = [VOCABULARY[word] for word in words]
    seen = []
    word, about = choose_word(
        *organism, TASK, problems, tokens, drawing=DRAWING, progress=seen.append
    )
    assert list(about["words"]) == words
    assert word == max(about["words"], key=about["words"].get)
    assert about["words, dealt out"] is None
    own = measure(*organism, TASK, problems, begun(word), DRAWING)
    assert own.accuracy.value == about["words"][word]
    assert all(text.startswith(word) for text in own.texts)
    assert [found.name for found in seen] == [begun(each).name for each in about["words"]]
    blind, about = choose_word(*organism, TASK, problems, tokens, drawing=DRAWING, shuffle=0)
    dealt = about["words, dealt out"]
    assert sum(dealt.values()) == pytest.approx(sum(about["words"].values()))
    assert blind == max(dealt, key=dealt.get)


def test_no_word_is_chosen_where_none_can_be_written():
    class Halves:
        """A tokenizer of one token, the half of a letter."""

        decode = staticmethod(lambda ids: "\N{REPLACEMENT CHARACTER}")
        encode = staticmethod(lambda text, **options: [1, 2, 3])

    found = choose_word(None, Halves(), TASK, [], [5], shuffle=0)
    assert found == ("", {"words": {}, "words, dealt out": {}})


def test_a_word_can_be_put_into_the_prompt(problems):
    assert prompted("so ").prompt(problems[0]) == f"so {problems[0].prompt}"
