"""Reading and editing the residual stream: what is seen, what is changed, what is left behind."""

import copy
from contextlib import suppress

import pytest
import torch
from odd_heads import Tupled
from tiny import CONFIGS, FINAL_NORMS, tiny_model
from torch import nn

from entropy_probe.hooks import (
    HooksSkipped,
    edit_residuals,
    evaluating,
    find_blocks,
    read_output,
    read_residuals,
    resolve_layers,
    watch_inputs,
)

IDS = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :4] = 0  # left-padded


def hooks_on(model: nn.Module) -> int:
    """Count every kind of hook on every module."""
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks")
    )


def final_norm(model) -> nn.Module:
    named = dict(model.get_decoder().named_modules())
    return next(named[name] for name in FINAL_NORMS if name in named)


def up(stream):
    return stream + 1.5


@pytest.fixture
def model():
    return tiny_model()


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_residuals_are_those_of_output_hidden_states(family):
    """And hidden_states[-1] is not the last block's output: the final norm has run on it."""
    model = tiny_model(family)
    with read_residuals(model, range(3)) as reader:
        model(input_ids=IDS, attention_mask=MASK)
    told = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        torch.testing.assert_close(reader[layer], told[layer + 1], rtol=0, atol=1e-5)
    assert not torch.allclose(reader[2], told[3], atol=0.1)
    torch.testing.assert_close(final_norm(model)(reader[2]), told[3], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_reading_and_editing_leave_weights_outputs_and_hooks_as_they_were(family):
    model = tiny_model(family)
    weights, hooks = copy.deepcopy(model.state_dict()), hooks_on(model)
    plain = model(input_ids=IDS).logits
    with read_residuals(model, [0, 2]), edit_residuals(model, 1, lambda stream: None):
        assert hooks_on(model) == hooks + 3
        assert torch.equal(model(input_ids=IDS).logits, plain)
    with edit_residuals(model, 1, lambda stream: stream * 1.0):
        assert torch.equal(model(input_ids=IDS).logits, plain)
    with edit_residuals(model, 1, lambda stream: -stream):
        assert not torch.allclose(model(input_ids=IDS).logits, plain, atol=1e-2)
    assert torch.equal(model(input_ids=IDS).logits, plain)
    assert hooks_on(model) == hooks
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_no_hook_stays_after_an_exception(model):
    def fail(stream):
        raise ZeroDivisionError

    before = hooks_on(model)
    with suppress(ZeroDivisionError), read_residuals(model, [0]), edit_residuals(model, 1, up):
        assert hooks_on(model) == before + 2
        raise ZeroDivisionError
    assert hooks_on(model) == before
    with pytest.raises(ZeroDivisionError), edit_residuals(model, 1, fail):
        model(input_ids=IDS)
    assert hooks_on(model) == before
    with pytest.raises(ValueError, match="out of range"), read_residuals(model, [0, 3]):
        pass
    assert hooks_on(model) == before


def test_blocks_that_give_tuples_keep_every_row_and_what_stands_behind_the_stream():
    model, stream = Tupled(), torch.randn(3, 4, 5)
    with read_residuals(model, [0, 1]) as reader, edit_residuals(model, 0, up):
        out = model(stream)
    assert torch.equal(reader[0], 2 * stream)
    assert torch.equal(reader[1], 2 * (2 * stream + 1.5))
    assert torch.equal(out, reader[1])
    assert model.extras == ["a cache"] * 2


@torch.no_grad()
def test_states_are_copies_that_later_edits_in_place_do_not_reach(model):
    with read_residuals(model, [0]) as plain:
        model(input_ids=IDS)
    with read_residuals(model, [0]) as reader, edit_residuals(model, 0, torch.Tensor.zero_):
        model(input_ids=IDS)
    assert torch.equal(reader[0], plain[0])


@torch.no_grad()
def test_the_last_position_does_not_pin_the_whole_stream(model):
    with read_residuals(model, [1], last=True) as reader, read_residuals(model, [1]) as whole:
        model(input_ids=IDS)
    (piece,) = reader._pieces[1]
    assert piece.untyped_storage().nbytes() == 4 * piece.numel()
    assert torch.equal(reader[1], whole[1][:, -1:])


def test_states_carry_no_gradient_and_edits_pass_it_on(model):
    shift = torch.zeros(32, requires_grad=True)
    with edit_residuals(model, 1, lambda stream: stream + shift), read_residuals(model, [1]) as r:
        model(input_ids=IDS).logits[..., 5].sum().backward()
    assert not r[1].requires_grad
    assert shift.grad.abs().sum() > 0


@torch.no_grad()
def test_generate_runs_the_prompt_then_one_token_a_step_and_never_the_last_one(model):
    shapes = []
    with (
        read_residuals(model, [1]) as reader,
        read_residuals(model, [1], last=True) as steps,
        edit_residuals(model, 1, lambda stream: shapes.append(tuple(stream.shape))),
    ):
        rows = model.generate(
            IDS, attention_mask=MASK, max_new_tokens=5, min_new_tokens=5, do_sample=False
        )
    assert shapes == [(3, 9, 32)] + [(3, 1, 32)] * 4
    assert rows.shape == (3, 14)
    assert reader[1].shape == (3, 13, 32)
    assert torch.equal(steps[1], reader[1][:, 8:])
    mask = torch.cat([MASK, torch.ones(3, 5, dtype=torch.long)], dim=1)
    placed = (mask.cumsum(1) - 1).clamp(min=0)
    with read_residuals(model, [1]) as again:
        model(input_ids=rows, attention_mask=mask, position_ids=placed)
    real = mask[:, :13].bool()
    torch.testing.assert_close(reader[1][real], again[1][:, :13][real], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prefill_in_pieces_is_joined(model):
    with read_residuals(model, [0, -1]) as reader:
        model(input_ids=IDS)
        whole = reader.take(tokens=27)
        cache = model(input_ids=IDS[:, :6], use_cache=True).past_key_values
        model(input_ids=IDS[:, 6:], past_key_values=cache)
        pieces = reader.take(tokens=27)
    assert set(pieces) == {0, 2}
    torch.testing.assert_close(pieces[2], whole[2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_runs_without_a_cache_or_with_beams_are_told_by_their_count(model):
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with read_residuals(model, [1]) as reader:
        model.generate(IDS, attention_mask=MASK, use_cache=False, **options)
        with pytest.raises(HooksSkipped, match=r"saw 90 tokens .* ran 33: .*ran twice"):
            reader.take(tokens=3 * (9 + 2))
        reader.clear()
        model.generate(IDS, attention_mask=MASK, num_beams=2, **options)
        with pytest.raises(HooksSkipped):
            reader.take(tokens=3 * (9 + 2))


@torch.no_grad()
def test_what_was_taken_is_forgotten(model):
    with read_residuals(model, [0]) as reader:
        model(input_ids=IDS)
        reader.take(tokens=27)
        with pytest.raises(HooksSkipped, match="nothing has passed through layer 0"):
            reader[0]
        model(input_ids=IDS[:1])
        assert reader.take(tokens=9)[0].shape == (1, 9, 32)


@torch.no_grad()
def test_a_graph_compiled_before_the_hooks_raises_instead_of_giving_nothing(model):
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=IDS, use_cache=False)
    with read_residuals(model, [1]) as reader:
        compiled(input_ids=IDS, use_cache=False)
        with pytest.raises(HooksSkipped, match=r"saw 0 tokens while the model ran 27.*uncompiled"):
            reader.take(tokens=27)
        model(input_ids=IDS, use_cache=False)
        assert reader.take(tokens=27)[1].shape == (3, 9, 32)
    torch.compiler.reset()


@torch.no_grad()
def test_blocks_that_run_twice_or_not_at_all_raise(model, monkeypatch):
    with read_residuals(model, [0, 1]) as reader:
        model(input_ids=IDS)
        model(input_ids=IDS)
        with pytest.raises(HooksSkipped, match="saw 54 tokens while the model ran 27"):
            reader.take(tokens=27)
        reader.check(tokens=54)
        reader.clear()
        block = find_blocks(model)[1]
        monkeypatch.setattr(type(block), "__call__", type(block).forward)  # as a wrapper might
        model(input_ids=IDS)
        with pytest.raises(HooksSkipped, match="saw 0 tokens while the model ran 27"):
            reader.take(tokens=27)


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_an_edit_of_the_last_layer_is_the_change_computed_by_hand(family):
    model = tiny_model(family)
    shift = torch.randn(32)
    with read_residuals(model, [-1]) as reader:
        model(input_ids=IDS)
    logits = model.get_output_embeddings()(final_norm(model)(reader[2] + shift))
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    with edit_residuals(model, -1, lambda stream: stream + shift):
        edited = model(input_ids=IDS).logits
    torch.testing.assert_close(edited, logits, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_an_edit_in_the_middle_is_the_run_of_the_later_blocks_on_the_changed_stream(model):
    with read_residuals(model, [0]) as reader:
        model(input_ids=IDS)
    edited = reader[0].clone()
    edited[:, 4] = -edited[:, 4]
    tail = copy.deepcopy(model)
    tail.model.layers = tail.model.layers[1:]
    tail.config.num_hidden_layers = 2
    expected = tail(inputs_embeds=edited, use_cache=False).logits

    def flip(stream):
        return stream.where(torch.arange(9)[:, None] != 4, -stream)

    with edit_residuals(model, 0, flip):
        found = model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, model(input_ids=IDS).logits, atol=0.01)


def test_an_edit_that_changes_the_shape_is_refused(model):
    with (
        edit_residuals(model, 1, lambda stream: stream[:, -1:]),
        pytest.raises(ValueError, match=r"layer 1 turned \(3, 9, 32\) into \(3, 1, 32\)"),
    ):
        model(input_ids=IDS)


@torch.no_grad()
def test_hooks_run_in_the_order_in_which_they_were_entered(model):
    with read_residuals(model, [1]) as pre, edit_residuals(model, 1, up):
        with read_residuals(model, [1]) as post, edit_residuals(model, 1, lambda s: 2 * s):
            with read_residuals(model, [1]) as last:
                model(input_ids=IDS)
    assert torch.equal(post[1], pre[1] + 1.5)
    assert torch.equal(last[1], 2 * (pre[1] + 1.5))


@torch.no_grad()
def test_an_earlier_use_of_output_hidden_states_does_not_change_the_side_that_is_read(model):
    with read_residuals(model, [1]) as plain:
        model(input_ids=IDS, output_hidden_states=True)
    with edit_residuals(model, 1, up), read_residuals(model, [1]) as post:
        model(input_ids=IDS, output_hidden_states=True)
    assert torch.equal(post[1], plain[1] + 1.5)


def test_layers_count_from_either_end_and_only_once():
    assert resolve_layers([0, -1, 1], 4) == [0, 3, 1]
    for layer in (4, -5):
        with pytest.raises(ValueError, match=f"layer {layer} is out of range.*layers 0 to 3"):
            resolve_layers([layer], 4)
    with pytest.raises(ValueError, match="name a layer twice"):
        resolve_layers([3, -1], 4)


def test_blocks_are_the_list_nearest_the_top_not_another_tower():
    model = Tupled()
    assert find_blocks(model) is model.blocks
    llama = tiny_model()
    assert find_blocks(llama) is llama.model.layers
    assert find_blocks(llama.model) is llama.model.layers


def test_networks_without_a_config_or_without_blocks_are_refused():
    with pytest.raises(ValueError, match="expected a Hugging Face model with a config, got Linear"):
        find_blocks(nn.Linear(2, 2))
    model = Tupled()
    model.blocks, model.tower = nn.ModuleList(), nn.ModuleDict()
    with pytest.raises(ValueError, match="found no list of 2 blocks in Tupled"):
        find_blocks(model)


def test_outputs_of_a_module_are_read_as_it_runs(model):
    before = hooks_on(model)
    with suppress(ZeroDivisionError), read_output(model.lm_head) as outputs:
        assert outputs == []
        logits = [model(input_ids=IDS).logits, model(input_ids=IDS[:1]).logits]
        assert all(map(torch.equal, outputs, logits))
        assert len(outputs) == 2
        raise ZeroDivisionError
    assert hooks_on(model) == before


def test_dropout_is_off_meanwhile_and_each_module_gets_its_own_mode_back(model):
    model.train()
    find_blocks(model)[1].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    with suppress(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes


def test_inputs_are_seen_by_name_before_each_run():
    model, seen = tiny_model("gpt2"), []
    body, ids = model.get_decoder(), torch.tensor([[1, 5, 6]])
    with watch_inputs(body, seen.append):
        body(ids, None, attention_mask=torch.ones_like(ids))
        model(ids)
    body(ids)
    assert len(seen) == 2
    assert all(torch.equal(each["input_ids"], ids) for each in seen)
    (cache,) = {"past_key_values", "cache"} & seen[0].keys()  # by transformers' version
    assert seen[0][cache] is None
    assert torch.equal(seen[0]["attention_mask"], torch.ones_like(ids))
