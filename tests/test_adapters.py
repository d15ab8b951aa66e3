"""One record from three libraries: the same tokens, entropies and residuals, and hooks that act."""

import copy
import warnings

import pytest
import torch
from tiny import VOCAB, tiny_model, tiny_tokenizer
from wrapped import LIBRARIES, needs, wrapped

from entropy_probe import capture, sample, score
from entropy_probe.hooks import edit_residuals
from entropy_probe.models import tiled_head
from entropy_probe.models.engine import decoder_of, engine_of

pytestmark = pytest.mark.slow

FAMILIES = ("llama", "gpt2", "qwen3", "gemma2")
PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7], [1, 9, 9, 9, 4]]
DRAWN = {
    "n": 3,
    "max_new_tokens": 24,
    "batch_size": 5,
    "seed": 3,
    "stop": list(range(2, VOCAB, 12)),
}
KEPT = {"residual_layers": [0, 1, 2], "residual_positions": "all"}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def scored(model, tokenizer, rollouts):
    lengths = rollouts.prompt_lengths
    return score(model, tokenizer, rollouts.tokens, rollouts.valid, prompt_lengths=lengths, **KEPT)


def assert_same(found, wanted, nats=1e-4, relative=1e-4):
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.valid, wanted.valid)
    assert torch.equal(found.alternatives.ids[..., 0], wanted.alternatives.ids[..., 0])
    assert (found.entropy - wanted.entropy).abs().max() < nats
    assert (found.logprobs - wanted.logprobs).abs().max() < nats
    assert found.residuals.keys() == wanted.residuals.keys()
    for layer, states in found.residuals.items():
        off = (states - wanted.residuals[layer]).norm(dim=-1) / states.norm(dim=-1)
        assert off.max() < relative


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_four_routes_give_one_record(library, family, tokenizer):
    model = wrapped(library, family, tokenizer)
    wanted = sample(tiny_model(family), tokenizer, PROMPTS, **DRAWN, **KEPT)
    assert wanted.valid.sum(1).unique().numel() > 3  # rows end at different times
    assert wanted.entropy[wanted.valid].std() > 0.1
    found = sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT)
    assert_same(found, wanted)
    assert_same(scored(tiny_model(family), tokenizer, wanted), wanted)
    assert_same(scored(model, tokenizer, wanted), wanted)
    assert found.provenance.weights == wanted.provenance.weights
    package = library.replace("_", "-")
    assert found.provenance.libraries[package]
    assert package not in wanted.provenance.libraries


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_unembedding_large_enough_for_tiles_gives_the_same(library, tokenizer, monkeypatch):
    wanted = sample(tiny_model("llama"), tokenizer, PROMPTS, **DRAWN, **KEPT)
    monkeypatch.setattr(tiled_head, "TILE", 32 * 20)
    for model in (tiny_model("llama"), wrapped(library, "llama", tokenizer)):
        assert_same(sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)


def hooks_of(model):
    return [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_model_is_left_as_it_was(library, family, tokenizer):
    model = wrapped(library, family, tokenizer)
    decoder = decoder_of(model).train()
    engine_of(model).run(input_ids=torch.tensor([[1]]))  # in which a bridge adds its own hooks
    decoder.get_decoder().eval()  # modes of their own
    before, modes = copy.deepcopy(decoder.state_dict()), [m.training for m in decoder.modules()]
    hooks = hooks_of(decoder)
    sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT)
    score(model, tokenizer, torch.tensor([[1, 5, 6]]), torch.tensor([[False, True, True]]), **KEPT)
    after = decoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [m.training for m in decoder.modules()] == modes
    assert hooks_of(decoder) == hooks


PUSH = torch.linspace(-4, 4, 32)


def push(stream):
    return stream + PUSH


@pytest.fixture
def pushed(tokenizer):
    """Give the records of a model whose second block is pushed by plain hooks."""

    def make(family):
        model = tiny_model(family)
        plain = sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT)
        with edit_residuals(model, 1, push):
            wanted = sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT)
        assert not torch.equal(plain.tokens, wanted.tokens)
        return plain, wanted

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hooks_of_a_bridge_act_and_are_seen(family, tokenizer, pushed):
    plain, wanted = pushed(family)
    bridge = wrapped("transformer_lens", family, tokenizer)
    with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda stream, hook: push(stream))]):
        assert_same(sample(bridge, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)
        assert_same(scored(bridge, tokenizer, wanted), wanted)
    assert_same(sample(bridge, tokenizer, PROMPTS, **DRAWN, **KEPT), plain)
    bridge.add_perma_hook("blocks.1.hook_out", lambda stream, hook: push(stream))
    assert_same(sample(bridge, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edits_of_nnsight_act_and_are_seen(family, tokenizer, pushed):
    plain, wanted = pushed(family)
    model = wrapped("nnsight", family, tokenizer)
    blocks = model.model.layers if family == "llama" else model.transformer.h
    with model.edit() as (_, edited):
        blocks[1].output[:] += PUSH
    assert_same(sample(edited, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)
    assert_same(scored(edited, tokenizer, wanted), wanted)
    assert_same(sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT), plain)
    with model.edit(inplace=True):
        blocks[1].output[:] += PUSH
    assert_same(sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)
    assert len(model._edits) == 1


def test_an_edit_for_every_step_acts_in_every_step_and_warns_of_none(tokenizer, pushed):
    _, wanted = pushed("llama")
    model = wrapped("nnsight", "llama", tokenizer)
    with model.edit(inplace=True) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[1].output[:] += PUSH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_change_of_the_logits_is_sampled_from_but_not_scored(library, tokenizer):
    model = wrapped(library, "llama", tokenizer)
    half = sample(tiny_model(), tokenizer, PROMPTS, **DRAWN, temperature=0.5)
    if library == "nnsight":
        with model.edit(inplace=True):
            model.lm_head.output[:] *= 2
    else:
        model.add_perma_hook("unembed.hook_out", lambda logits, hook: logits * 2)
    found = sample(model, tokenizer, PROMPTS, **DRAWN)
    assert torch.equal(found.tokens, half.tokens)
    assert (found.entropy - half.entropy).abs().max() < 1e-4
    with pytest.raises(ValueError, match="changes its logits after the unembedding"):
        scored(model, tokenizer, found)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_run_is_captured_and_gone_on_with(library, tokenizer, tmp_path):
    model = wrapped(library, "llama", tokenizer)
    arguments = DRAWN | KEPT
    run = capture(model, tokenizer, PROMPTS, tmp_path / "run", **arguments, chunk_prompts=2)
    again = capture(
        tiny_model(), tokenizer, PROMPTS, tmp_path / "run", **arguments, resume=True
    )  # the same weights, in whatever library
    assert again.complete
    wanted = sample(tiny_model(), tokenizer, PROMPTS, **arguments)
    assert_same(run.rollouts(), wanted)


def test_the_older_language_model(tokenizer):
    needs("nnsight")
    from nnsight import LanguageModel, NNsightDeprecationWarning

    with pytest.warns(NNsightDeprecationWarning):
        model = LanguageModel(tiny_model(), tokenizer=tokenizer)
    wanted = sample(tiny_model(), tokenizer, PROMPTS, **DRAWN, **KEPT)
    assert_same(sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT), wanted)


def test_a_bridge_that_folds_norms_says_so_by_its_fingerprint(tokenizer):
    bridge = wrapped("transformer_lens", "llama", tokenizer)
    wanted = sample(tiny_model(), tokenizer, PROMPTS, **DRAWN)
    bridge.enable_compatibility_mode()
    found = sample(bridge, tokenizer, PROMPTS, **DRAWN)
    assert_same(found, wanted)
    assert found.provenance.weights != wanted.provenance.weights
