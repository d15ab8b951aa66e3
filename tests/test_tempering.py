"""Two temperatures: nothing at 1 and 1, plain temperatures where they are equal, and the law."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import load, sample, score
from entropy_probe.entropy import token_entropy
from entropy_probe.models.engine import Draws
from entropy_probe.tempering import TwoTemperatures, tempered

PROMPTS = ["Compute 473, plus 8, minus 9, times 3.\n", "What is 12?\n"]
OPTIONS = {"n": 4, "max_new_tokens": 16, "seed": 3}


@pytest.fixture(scope="module")
def organism():
    return load("organism:amenable")


def both(temperature: float, threshold: float = 0.3) -> TwoTemperatures:
    return TwoTemperatures(threshold, temperature, temperature)


def test_two_temperatures_of_one_are_none(organism):
    model, tokenizer = organism
    plain = sample(model, tokenizer, PROMPTS, **OPTIONS)
    found = sample(tempered(model, both(1.0)), tokenizer, PROMPTS, **OPTIONS)
    for name in ("tokens", "valid", "entropy", "logprobs"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    assert "temperature 1 at steps of 0.3 nats or more" in found.provenance.edit


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_equal_ones_are_the_temperature_of_sample(organism, temperature):
    model, tokenizer = organism
    found = sample(tempered(model, both(temperature)), tokenizer, PROMPTS, **OPTIONS)
    plain = sample(model, tokenizer, PROMPTS, temperature=temperature, **OPTIONS)
    assert torch.equal(found.tokens, plain.tokens)
    warm = sample(model, tokenizer, PROMPTS, **OPTIONS)
    assert not torch.equal(found.tokens, warm.tokens)


def test_a_low_precision_model_is_divided_in_float32_as_sample_does():
    model, tokenizer = tiny_model().bfloat16(), tiny_tokenizer()
    found = sample(tempered(model, both(0.7)), tokenizer, [[1, 5, 6]], **OPTIONS)
    plain = sample(model, tokenizer, [[1, 5, 6]], temperature=0.7, **OPTIONS)
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.entropy, plain.entropy)
    assert torch.equal(found.logprobs, plain.logprobs)


def test_only_forks_are_greedy_where_only_they_are_cold(organism):
    model, tokenizer = organism
    cold = TwoTemperatures(0.3, at_forks=0.0, elsewhere=1.0)
    found = sample(tempered(model, cold), tokenizer, PROMPTS, **OPTIONS)
    again = score(model, tokenizer, found.tokens, found.valid)
    forks = found.valid & (again.entropy >= 0.3)
    assert forks.any()
    assert (again.ranks[forks] == 0).all()
    assert (found.entropy[forks] == 0).all()
    others = found.valid & ~forks
    assert torch.allclose(found.entropy[others], again.entropy[others], atol=1e-4)


def test_each_step_is_divided_by_its_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
    empty = torch.zeros(2, 1, dtype=torch.long)
    draws = Draws(logits, 1.0, 1.0, empty, empty[:, 0], torch.ones(2, dtype=torch.bool))
    assert token_entropy(logits)[1] < 0.1 < token_entropy(logits)[0]
    found = TwoTemperatures(0.1, at_forks=2.0, elsewhere=0.5).revise(draws, lambda: logits)
    assert found.tolist() == [[1.0, 0.5, 0.0], [18.0, 0.0, 0.0]]


def test_what_makes_no_sense_is_refused(organism):
    model, tokenizer = organism
    with pytest.raises(ValueError, match="elsewhere must be a temperature"):
        TwoTemperatures(0.3, 1.0, -1.0)
    engine = tempered(model, both(0.5))
    for besides in (0.7, 0.0):  # greedy too, whose entropies are those at 1
        with pytest.raises(ValueError, match=f"take the place of temperature={besides:g}: pass 1"):
            sample(engine, tokenizer, PROMPTS, temperature=besides, max_new_tokens=2)
    with pytest.raises(ValueError, match="edited already"):
        tempered(engine, both(0.5))
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="pass the model itself"):
        score(engine, tokenizer, ids, torch.tensor([[False, True, True]]))
