"""Steering in other libraries' models: the same steered logits, tokens and forks."""

import pytest
import torch
from dictionaries import tiny_dictionary
from tiny import VOCAB, tiny_model, tiny_tokenizer
from wrapped import LIBRARIES, wrapped

from entropy_probe import sample, score
from sae_steering.places import at_opening
from sae_steering.steering import steer

pytestmark = pytest.mark.slow

PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7], [1, 9, 9, 9, 4]]
DRAWN = {"n": 2, "max_new_tokens": 12, "seed": 3, "stop": list(range(2, VOCAB, 9)), "batch_size": 3}
SAE, FEATURES = tiny_dictionary(), {3: 4.0, 11: 3.0}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("where", ["all", "generated", at_opening, "forks"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_samples_and_scores_are_those_of_the_model_inside(library, family, where, tokenizer):
    options = {"mode": "clamp", "where": where} | ({"threshold": 2.0} if where == "forks" else {})
    model, plain = wrapped(library, family, tokenizer), tiny_model(family)
    with steer(plain, SAE, FEATURES, **options) as steered:
        wanted = sample(steered, tokenizer, PROMPTS, **DRAWN)
    unsteered = sample(plain, tokenizer, PROMPTS, **DRAWN)
    assert not torch.equal(wanted.entropy, unsteered.entropy)
    with steer(model, SAE, FEATURES, **options) as inside:
        found = sample(inside, tokenizer, PROMPTS, **DRAWN)
        assert torch.equal(found.tokens, wanted.tokens)
        assert (found.entropy - wanted.entropy).abs().max() < 1e-4
        if where == "forks":
            assert torch.equal(inside.steps.edited(found), steered.steps.edited(wanted))
        else:
            lengths = found.prompt_lengths
            again = score(inside, tokenizer, found.tokens, found.valid, prompt_lengths=lengths)
            assert (again.entropy - wanted.entropy).abs().max() < 1e-4
    after = sample(model, tokenizer, PROMPTS, **DRAWN)
    assert torch.equal(after.tokens, unsteered.tokens)


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bridge_steers_in_its_own_passes(family, where, tokenizer):
    bridge, plain = wrapped("transformer_lens", family, tokenizer), tiny_model(family)
    ids = torch.tensor([PROMPTS[1]])
    options = {"max_new_tokens": 8, "do_sample": False}
    with steer(plain, SAE, FEATURES, where=where):
        wanted = plain.generate(ids, pad_token_id=0, eos_token_id=None, **options)
        logits = plain(ids).logits if where == "all" else None
    with steer(bridge, SAE, FEATURES, where=where):
        found = bridge.generate(ids, stop_at_eos=False, verbose=False, **options)
        if where == "all":
            assert (bridge(ids) - logits).abs().max() < 1e-4
    width = wanted.shape[1]
    assert torch.equal(found[:, :width], wanted)


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nnsight_steers_in_its_own_traces(family, where, tokenizer):
    model, plain = wrapped("nnsight", family, tokenizer), tiny_model(family)
    ids = torch.tensor([PROMPTS[1]])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with steer(plain, SAE, FEATURES, where=where):
        wanted = plain.generate(ids, **options)
        logits = plain(ids).logits if where == "all" else None
    with steer(model, SAE, FEATURES, where=where):
        with model.generate(ids, **options) as tracer:
            found = tracer.result.save()
        if where == "all":
            with model.trace(ids):
                inside = model.output.logits.save()
            assert (inside - logits).abs().max() < 1e-4
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("library", LIBRARIES)
def test_forks_are_refused_in_a_library_s_own_passes(library, tokenizer):
    model, ids = wrapped(library, "llama", tokenizer), torch.tensor([PROMPTS[0]])

    def generate():
        if library == "transformer_lens":
            return model.generate(ids, max_new_tokens=2, stop_at_eos=False, verbose=False)
        with model.generate(ids, max_new_tokens=2, pad_token_id=0) as tracer:
            result = tracer.result.save()
        return result

    with steer(model, SAE, FEATURES, where="forks", threshold=1.0) as steered:
        with pytest.raises(Exception, match="`sample` does that on what steer gives"):
            generate()
        sample(steered, tokenizer, PROMPTS, max_new_tokens=1)
