"""Attention over packed rows against the model's own over padded ones, backwards too."""

import copy
import functools

import pytest
import torch
from tiny import CONFIGS, tiny_model
from transformers import AutoModelForCausalLM, GptOssConfig, PhimoeConfig, Qwen2MoeConfig
from updates import furthest, make_batch, take_gradients

from entropy_probe.hooks import replace_forward
from entropy_probe.training.attention import why_not_packed
from entropy_probe.training.body import running_body
from entropy_probe.training.packing import run_lengths

# Grouped heads, none, all to one; windows of 6, which end in prompts and behind them; a softcap.
# Sinks, which take part in each softmax.
FAMILIES = ("llama", "gpt2", "one-head", "mistral", "gemma2", "gemma3", "llama-eager", "sinks")


SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings",
)  # fmt: skip


def model_of(name):
    family, _, way = name.partition("-")
    if name == "one-head":
        config = copy.deepcopy(CONFIGS["mistral"])
        config.num_key_value_heads = 1
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
    if name == "sinks":
        return model_with_sinks()
    model = tiny_model(family)
    if way:
        model.set_attn_implementation(way)
    return model


def model_with_sinks():
    """Give a model of windows and sinks that is not set to attend by its own plain function."""
    shape = CONFIGS["llama"].to_dict()
    config = GptOssConfig(
        **{name: shape[name] for name in SHARED}, sliding_window=6, num_local_experts=2,
        num_experts_per_tok=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.linspace(-1, 2, len(parameter)))
    return model


def body_gradients(model):
    """Give the gradients of all but an unembedding of its own, which has no part here."""
    return {name: x for name, x in take_gradients(model).items() if x is not None}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_are_attended_as_padded_ones(name, share):
    model = model_of(name)
    batch = make_batch(model, prompts=(5, 2, 9), n=3)
    lengths = run_lengths(batch.valid)
    weights = torch.randn(*batch.tokens.shape, 32, generator=torch.Generator().manual_seed(0))
    runs = torch.arange(batch.tokens.shape[1]) < lengths[:, None]
    expected = model.get_decoder()(input_ids=batch.tokens).last_hidden_state[runs]
    (expected * weights[runs]).sum().backward()
    theirs = body_gradients(model)
    with running_body(model, packed=True, share=share) as body:
        layouts = body.layouts(batch, lengths, most_rows=4, most_tokens=None)
        found = torch.zeros(*batch.tokens.shape, 32)
        for layout in layouts:
            at = runs[layout.rows].nonzero(as_tuple=True)
            where = (layout.rows[at[0]], at[1])
            states = body.states(layout)[layout.places(*at)]
            found[where] = states.detach()
            (states * weights[where]).sum().backward()
    assert len(layouts) > 1
    torch.testing.assert_close(found[runs], expected, rtol=1e-4, atol=2e-5)
    assert furthest(body_gradients(model), theirs) < 1e-5
    assert model.config._attn_implementation != "entropy_probe_packed"


def test_a_prompt_is_run_once_for_its_rows():
    model = tiny_model("llama")
    batch = make_batch(model, prompts=(9, 9), n=4)
    lengths = run_lengths(batch.valid)
    with running_body(model, packed=True, share=True) as body:
        (layout,) = body.layouts(batch, lengths, most_rows=None, most_tokens=None)
    assert layout.ids.numel() == int(lengths.sum()) - 6 * 9


def test_what_mixes_tokens_otherwise_is_not_packed():
    model = tiny_model("qwen3")
    assert why_not_packed(model) is None
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert "linear_attention" in why_not_packed(model)
    model = tiny_model("gemma2")
    assert why_not_packed(model) is None
    model.config._attn_implementation = "sdpa"  # older transformers' default, without the softcap
    assert "softcap" in why_not_packed(model)
    model = tiny_model("llama")
    model._supports_attention_backend = False
    assert "LlamaForCausalLM" in why_not_packed(model)
    with (
        pytest.raises(ValueError, match="packed=False"),
        running_body(model, packed=True, share=True),
    ):
        pass


def run_packed(model, longest):
    """Run random rows packed, the longest of so many tokens."""
    batch = make_batch(model, prompts=(3, 2), n=2, longest=9)
    lengths = run_lengths(batch.valid).clamp(max=longest)
    with running_body(model, packed=None, share=True) as body:
        (layout,) = body.layouts(batch, lengths, most_rows=None, most_tokens=None)
        assert int(layout.positions.max()) + 1 == longest
        return body.states(layout)


@pytest.mark.parametrize("kind", [PhimoeConfig, Qwen2MoeConfig])
def test_a_window_that_only_a_mask_knows_is_not_lost(kind):
    shape = CONFIGS["llama"].to_dict()
    shape = {name: shape[name] for name in SHARED if name != "head_dim"}
    config = kind(
        **shape, sliding_window=6, use_sliding_window=True, max_window_layers=3,
        num_experts=2, num_local_experts=2, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert run_packed(model, 6).isfinite().all()
    with pytest.raises(RuntimeError, match="window of 6 tokens .* rows of 7 .* packed=False"):
        run_packed(model, 7)


def test_what_an_attention_is_told_besides_is_not_lost():
    model, given = tiny_model("llama"), torch.zeros(1, 4, 1, 1)
    layer = model.model.layers[1].self_attn
    with running_body(model, packed=True, share=True) as body:
        told = functools.partial(layer.forward, indices=given)
        with (
            replace_forward(layer, told),
            pytest.raises(RuntimeError, match="LlamaAttention attends with indices.*packed=False"),
        ):
            body.states(body.idle())

        def deaf(*args, packing, **options):
            return type(layer).forward(layer, *args, **options)

        with (
            replace_forward(layer, deaf),
            pytest.raises(RuntimeError, match="does not pass on what it is given.*packed=False"),
        ):
            body.states(body.idle())
        body.states(body.idle())
