"""The head of every family: its parts, what enters it, and heads that it does not describe."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from odd_heads import FAMILIES, SHAPE, Sharpened, model_of
from tiny import CONFIGS
from transformers import AutoModel, AutoModelForCausalLM, Llama4TextConfig

from entropy_probe.models.engine import body_of
from entropy_probe.models.unembedding import check_unembedding, final_states, unembedding

IDS = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(2))
TIED = {"qwen2", "gpt2", "gemma2", "gemma3", "cohere"}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_body_and_unembedding_give_the_models_own_logits(family):
    model = model_of(family)
    entered = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: entered.append(inputs[0])
    )
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    logits = model(input_ids=IDS, attention_mask=mask, use_cache=False).logits
    handle.remove()
    states, head = final_states(model, IDS, mask), unembedding(model)
    assert torch.equal(states, entered[0])
    ours = states.double() @ head.weight.double().T * head.scale
    ours = ours + (0 if head.bias is None else head.bias)
    if head.softcap is not None:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    torch.testing.assert_close(ours.float(), logits, rtol=1e-4, atol=1e-4)
    check_unembedding(model, head, IDS)
    check_unembedding(model, head, IDS[:, :1])
    assert not torch.is_grad_enabled()


def test_each_family_has_the_parts_that_it_is_known_for():
    heads = {family: unembedding(model_of(family)) for family in FAMILIES}
    assert {f for f, h in heads.items() if h.bias is not None} == {"phi"}
    assert {f: h.softcap for f, h in heads.items() if h.softcap} == {"gemma2": 5.0}
    assert {f: h.scale for f, h in heads.items() if h.scale != 1} == {
        "cohere": 0.25,
        "granite": 0.25,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_unembeddings_are_the_embedding_itself_not_a_copy(family):
    model = model_of(family)
    head, embedding = unembedding(model), model.get_input_embeddings().weight
    assert (head.weight.data_ptr() == embedding.data_ptr()) == (family in TIED)
    assert not head.weight.requires_grad


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"scale": 1.01}),
        ("phi", {"bias": None}),
        ("gemma2", {"softcap": None}),
        ("gemma2", {"softcap": 5.5}),
        ("cohere", {"scale": 1.0}),
    ],
)
def test_a_head_taken_for_another_is_noticed(family, change):
    model = model_of(family)
    head = unembedding(model)
    with pytest.raises(ValueError, match="in a way that scoring does not know"):
        check_unembedding(model, replace(head, **change), IDS)


def test_a_head_that_does_what_no_configuration_says_is_noticed():
    model = Sharpened(CONFIGS["llama"]).eval()
    with pytest.raises(ValueError, match=r"Sharpened .* report its name"):
        check_unembedding(model, unembedding(model), IDS)


def test_a_model_whose_states_look_ahead_is_noticed():
    config = copy.deepcopy(CONFIGS["gemma3"])
    config.use_bidirectional_attention = True
    ahead = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="does not predict a token from the tokens before it"):
        check_unembedding(ahead, unembedding(ahead), IDS)
    check_unembedding(ahead, unembedding(ahead), IDS[:, :1])  # nothing is ahead of one token


def test_low_precision_is_not_taken_for_another_head():
    model = model_of("llama").to(torch.bfloat16)
    check_unembedding(model, unembedding(model), IDS)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="LlamaModel has no output embedding: pass a causal"):
        unembedding(AutoModel.from_config(CONFIGS["llama"]))


def test_a_model_that_calls_itself_its_body_has_another():
    config = Llama4TextConfig(
        **SHAPE, head_dim=8, attention_chunk_size=4, num_local_experts=2, moe_layers=[],
        intermediate_size_mlp=48,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.get_decoder() is model
    assert body_of(model) is model.model
    assert body_of(model.model) is model.model
    check_unembedding(model, unembedding(model), IDS)
    odd = SimpleNamespace(get_output_embeddings=model.get_output_embeddings)
    odd.get_decoder = lambda: odd
    with pytest.raises(ValueError, match="SimpleNamespace does not say which module"):
        body_of(odd)
