"""Controls: directions that mean nothing, words, other places, a dictionary that is only put in."""

import inspect

import pytest
import torch
from dictionaries import tiny_dictionary
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import sample
from entropy_probe.hooks import read_residuals
from sae_steering.controls import (
    Splice,
    elsewhere,
    mean_difference,
    opening_probabilities,
    permutation_p,
    promoted_tokens,
    random_directions,
    random_latents,
    shuffled,
)
from sae_steering.edits import Direction
from sae_steering.places import Places, at_opening
from sae_steering.steering import steer

PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7], [1, 9, 9, 9, 4]]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_splice_with_the_error_is_the_model_and_without_it_is_not(model):
    ids = torch.tensor([PROMPTS[1]])
    sae = tiny_dictionary(scale=0.5)
    with read_residuals(model, [1]) as plain:
        wanted = model(ids).logits
    with Splice(sae).on(model) as engine, read_residuals(model, [1]) as spliced:
        found = engine.run(input_ids=ids)
    assert (spliced[1] - plain[1]).abs().max() < 1e-6
    assert (found - wanted).abs().max() < 1e-5
    with Splice(sae, error=False).on(model), read_residuals(model, [1]) as bare:
        model(ids)
    wanted = sae.decode(sae.encode(plain[1][0]))
    assert (bare[1][0] - wanted).abs().max() < 1e-5
    assert (bare[1] - plain[1]).abs().max() > 0.1
    assert Splice(sae).describe() == "splice with the error"
    with Splice(sae).on(model) as engine:
        drawn = sample(engine, tiny_tokenizer(), PROMPTS, max_new_tokens=1)
    assert drawn.provenance.edit == "splice with the error after layer 1"


def test_a_splice_needs_a_layer(model):
    with pytest.raises(ValueError, match="layer is missing"):
        with Splice(tiny_dictionary(layer=None)).on(model):
            pass


def test_random_directions_are_as_long_and_point_everywhere():
    like = 3.0 * torch.randn(64)
    drawn = random_directions(like, 200, seed=1)
    vectors = torch.stack([direction.vector for direction in drawn])
    torch.testing.assert_close(vectors.norm(dim=1), like.norm().expand(200))
    cosines = (
        torch.nn.functional.normalize(vectors, dim=1)
        @ torch.nn.functional.normalize(vectors, dim=1).T
    )
    off = cosines[~torch.eye(200, dtype=torch.bool)]
    assert abs(float(off.mean())) < 0.01
    assert float(off.std()) == pytest.approx(64**-0.5, rel=0.1)
    assert torch.equal(random_directions(like, 3, seed=1)[2].vector, drawn[2].vector)
    assert not torch.equal(random_directions(like, 3, seed=2)[2].vector, drawn[2].vector)


def test_random_latents_are_as_often_active():
    density = torch.logspace(-4, 0, 100)
    found = random_latents(density, 50, 8)
    assert len(set(found)) == 8
    assert 50 not in found
    ratios = density[found] / density[50]
    assert bool(((ratios >= 0.5) & (ratios <= 2.0)).all())
    assert found == random_latents(density, 50, 8)
    assert found != random_latents(density, 50, 8, seed=1)
    with pytest.raises(ValueError, match="only 1. features are active between .* allow more"):
        random_latents(density, 50, 90)
    density[3] = 0
    with pytest.raises(ValueError, match="never active"):
        random_latents(density, 3, 1)


def test_the_mean_difference_is_the_difference_of_means():
    states, labels = torch.randn(40, 8), torch.rand(40) < 0.3
    found = mean_difference(states, labels)
    torch.testing.assert_close(
        found.vector, states[labels].mean(dim=0) - states[~labels].mean(dim=0)
    )
    with pytest.raises(ValueError, match="the same label"):
        mean_difference(states, torch.ones(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="labels must be bool"):
        inspect.unwrap(mean_difference)(states, labels.long())


def test_shuffled_labels_are_the_same_labels_elsewhere():
    labels = torch.arange(100) < 30
    again = shuffled(labels, seed=1)
    assert int(again.sum()) == 30
    assert not torch.equal(again, labels)
    assert torch.equal(again, shuffled(labels, seed=1))


def test_elsewhere_is_as_many_other_places_whatever_the_batch():
    positions = torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4], [-1, -1, -1, -1, 0]])
    places = Places(None, positions, positions >= 0, cached=0)
    chosen = elsewhere(at_opening, seed=3)(places)
    assert chosen.sum(dim=1).tolist() == [1, 1, 0]  # a prompt of one token has no other
    assert not bool((chosen & at_opening(places)).any())
    assert not bool((chosen & ~places.real).any())
    alone = Places(None, positions[:1], positions[:1] >= 0, cached=0)
    assert torch.equal(elsewhere(at_opening, seed=3)(alone), chosen[:1])
    drawn = {elsewhere(at_opening, seed=s)(places)[1].nonzero().item() for s in range(20)}
    assert len(drawn) > 2
    assert elsewhere(at_opening).__name__ == "elsewhere_than_at_opening"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_opening_is_the_distribution_that_is_sampled_from(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    push = Direction(torch.linspace(-1, 1, 32))
    with steer(model, None, {push: 2.0}, layer=1, where=at_opening) as steered:
        found = opening_probabilities(steered, tokenizer, PROMPTS, batch_size=3)
        drawn = sample(steered, tokenizer, PROMPTS, max_new_tokens=1, alternatives=97)
    rows = torch.arange(len(PROMPTS))
    ids = drawn.alternatives.ids[rows, drawn.prompt_lengths].long()
    wanted = drawn.alternatives.logprobs[rows, drawn.prompt_lengths].exp()
    torch.testing.assert_close(found.gather(1, ids), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4))


def test_promoted_tokens_are_those_whose_probability_rises_most():
    before = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    after = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.5, 0.1]])
    assert promoted_tokens(before, after, count=2) == [1, 2]


def test_permutation_p_counts_the_value_itself():
    assert permutation_p(1.0, [0.0] * 99) == pytest.approx(0.01)
    assert permutation_p(0.5, [0.5, 0.7, 0.1]) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="no others"):
        permutation_p(0.5, [])
