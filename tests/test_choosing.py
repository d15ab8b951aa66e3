"""Choices on planted numbers find what was planted; on an organism, they are of its own states."""

import dataclasses

import pytest
import torch
from dictionaries import tiny_dictionary

from entropy_probe import load, score
from entropy_probe.tasks import get_task
from sae_steering.choosing import Observed, choose_features, observe, units
from sae_steering.edits import feature_directions
from sae_steering.outcomes import Drawing
from sae_steering.sae import dictionary

TASK = get_task("arithmetic")
DRAWING = Drawing(n=3, max_new_tokens=40, seed=2, batch_size=256)


@pytest.fixture(scope="module")
def organism():
    torch.set_num_threads(1)
    return load("organism:amenable-300k")


@pytest.fixture(scope="module")
def sae():
    made = tiny_dictionary(64, 48, seed=3)
    return dictionary(made.W_enc, made.b_enc, made.W_dec, made.b_dec, layer=1)


@pytest.fixture(scope="module")
def problems():
    return TASK.problems(16, split="train", seed=5)


def planted(by="choice", n=300, features=12):
    """Give states in which feature 4 falls, and 7 rises less, with what is told apart."""
    noise = torch.Generator().manual_seed(0)
    each = 8 if by == "choice" else 1
    owners = torch.arange(n * each).view(n, each)
    chance = torch.rand(n, generator=noise)
    positive = torch.rand(n * each, generator=noise) < chance.repeat_interleave(each)
    share = positive[owners].float().mean(dim=1)
    acts = torch.rand(n, features, generator=noise)
    acts[:, 4] = (1.2 - share + 0.1 * acts[:, 4]).clamp(min=0)
    acts[:, 7] = share + acts[:, 7]
    same = torch.zeros(n, dtype=torch.long)
    return Observed(
        by, "planted", positive, torch.randn(n, 16, generator=noise), acts, owners,
        torch.arange(n), same, same, same,
    )  # fmt: skip


@pytest.mark.parametrize("by", ["choice", "strategy", "outcome"])
def test_the_planted_feature_that_rises_is_found(by):
    made = tiny_dictionary(16, 12)
    sae = dictionary(made.W_enc, made.b_enc, made.W_dec, made.b_dec, layer=0)
    found, lines = choose_features(planted(by), sae)
    assert list(found) == [7] == [line["feature"] for line in lines]  # 4 tells more, by its absence
    assert found[7] * float(feature_directions(sae, [7]).norm()) == pytest.approx(1)


def test_shuffled_labels_find_nothing_planted():
    made = tiny_dictionary(16, 12)
    sae = dictionary(made.W_enc, made.b_enc, made.W_dec, made.b_dec, layer=0)
    observed = planted()
    tops = []
    for seed in range(8):
        other = observed.relabelled(seed)
        assert sorted(other.positive.tolist()) == sorted(observed.positive.tolist())
        _, lines = choose_features(other, sae)
        tops.append(abs(lines[0]["partial"]))
    assert max(tops) < 0.3 < abs(choose_features(observed, sae)[1][0]["partial"])
    assert torch.equal(observed.relabelled(3).positive, observed.relabelled(3).positive)


def test_too_few_features_with_a_score_are_told():
    made = tiny_dictionary(16, 12)
    sae = dictionary(made.W_enc, made.b_enc, made.W_dec, made.b_dec, layer=0)
    observed = dataclasses.replace(planted(), acts=torch.zeros(300, 12))
    with pytest.raises(ValueError, match="only 0 features of 12 are more active there, not 1"):
        choose_features(observed, sae)


def test_the_difference_is_that_of_the_completions_states():
    observed = planted()
    owned = observed.owners.flatten()
    rows = observed.states.repeat_interleave(8, dim=0)
    code = observed.positive[owned]
    wanted = rows[code].mean(dim=0) - rows[~code].mean(dim=0)
    assert torch.allclose(observed.difference().vector, wanted, atol=1e-6)


def test_the_opening_is_observed(organism, sae, problems):
    found = observe(*organism, TASK, problems, sae, drawing=DRAWING)
    model, tokenizer = organism
    assert found.label == "code against other ways"
    ways = [TASK.strategy(text) == "code" for text in found.outcome.texts]
    assert found.positive.tolist() == ways
    ids = [tokenizer.encode(problem.prompt) for problem in problems]
    with torch.no_grad():
        for row in (0, 7):
            hidden = model(torch.tensor([ids[row]]), output_hidden_states=True).hidden_states
            assert torch.allclose(found.states[row], hidden[2][0, -1], atol=1e-4)
            assert int(found.tokens[row]) == ids[row][-1]
    assert torch.allclose(found.acts, sae.encode(found.states))
    assert found.owners.tolist() == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(16)]
    wordings = [problem.facts["wording"] for problem in problems]
    pairs = set(zip(found.given.tolist(), wordings, strict=True))
    assert len(pairs) == len(set(wordings))


@pytest.mark.slow
@pytest.mark.parametrize("by", ["strategy", "outcome"])
def test_later_states_are_observed(organism, sae, problems, by):
    found = observe(*organism, TASK, problems, sae, by=by, drawing=DRAWING)
    drawn = found.outcome.rollouts
    scored = score(
        *organism, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths,
        residual_layers=[1], residual_positions="all",
    )  # fmt: skip
    assert len(found.states) == int(drawn.valid.sum()) - len(drawn)
    assert bool((found.places >= 1).all())
    at = len(found.states) // 2
    row, place = int(found.owners[at, 0]), int(found.places[at])
    column = int(drawn.prompt_lengths[row]) + place
    assert int(found.tokens[at]) == int(drawn.tokens[row, column - 1])
    index = int(scored.captured.flatten()[: row * drawn.tokens.shape[1] + column].sum())
    assert torch.allclose(found.states[at], scored.residuals[1][index], atol=1e-4)
    kind = found.outcome.right.flatten() > 0.5
    if by == "outcome":
        assert found.positive.tolist() == kind.tolist()
    assert found.table().score == by


def test_a_task_without_ways_is_told_apart_by_answers(organism, sae, problems):
    class Bare:
        name = "bare"
        problems = staticmethod(TASK.problems)
        verify = staticmethod(TASK.verify)

    found = observe(*organism, Bare(), problems, sae, drawing=DRAWING)
    assert found.label == "right against wrong answers"
    assert found.positive.tolist() == (found.outcome.right.flatten() > 0.5).tolist()
    with pytest.raises(ValueError, match="no two ways to tell apart"):
        observe(*organism, Bare(), problems, sae, by="strategy", drawing=DRAWING)


def test_nothing_to_tell_apart_is_told(organism, sae, problems):
    class Wrong:
        name = "wrong"
        problems = staticmethod(TASK.problems)

        def verify(self, problem, completion):
            return 0.0

    with pytest.raises(ValueError, match="0 of 48 answers are right"):
        observe(*organism, Wrong(), problems, sae, by="outcome", drawing=DRAWING)
    with pytest.raises(ValueError, match="by must be one of"):
        observe(*organism, TASK, problems, sae, by="taste", drawing=DRAWING)


def test_units_add_a_length_of_1(sae):
    found = units(sae, [3, 9])
    directions = feature_directions(sae, [3, 9])
    for strength, direction in zip(found.values(), directions, strict=True):
        assert strength * float(direction.norm()) == pytest.approx(1)
