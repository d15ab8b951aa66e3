"""The unembedding in tiles: the same logits, inside all hooks, and only where it is known."""

import pytest
import torch
from odd_heads import model_of
from tiny import VOCAB, tiny_model, tiny_tokenizer
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from entropy_probe import sample
from entropy_probe.models import tiled_head as module
from entropy_probe.models.tiled_head import tiled_head


class Products(TorchDispatchMode):
    """The widths of all matrix products made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.widths.append(out.shape[-1])
        return out


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "TILE", 32 * 20)  # 20 tokens of the tiny models


@pytest.mark.parametrize("shape", [(7, 32), (3, 1, 32), (32,)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi"])  # untied, tied, with a bias
def test_tiles_give_the_product(family, shape):
    model, states = model_of(family), torch.randn(shape)
    head = model.get_output_embeddings()
    with torch.no_grad(), tiled_head(model):
        with Products() as made:
            found = head(states)
        assert made.widths == [20, 20, 20, 20, 17]
    expected = states.double() @ head.weight.double().T
    expected = expected if head.bias is None else expected + head.bias.double()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(head)


def test_sampling_runs_it_in_tiles_and_hooks_of_the_head_see_and_change_its_logits(monkeypatch):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    arguments = {"n": 3, "max_new_tokens": 9, "seed": 4, "residual_layers": [1]}
    with Products() as tiled:
        found = sample(model, tokenizer, [[1, 5], [1, 6, 7]], **arguments)
    monkeypatch.setattr(module, "TILE", 32 * VOCAB)
    with Products() as whole:
        expected = sample(model, tokenizer, [[1, 5], [1, 6, 7]], **arguments)
    assert (VOCAB in whole.widths, VOCAB in tiled.widths) == (True, False)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=0)

    monkeypatch.setattr(module, "TILE", 32 * 20)
    seen = []

    def only_nine(layer, inputs, logits):
        seen.append(logits.shape[-1])
        return torch.where(torch.arange(VOCAB) == 9, logits, logits - 1e4)

    handle = model.get_output_embeddings().register_forward_hook(only_nine)
    with Products() as tiled:
        found = sample(model, tokenizer, [[1, 5]], **arguments)
    handle.remove()
    assert VOCAB not in tiled.widths
    assert set(seen) == {VOCAB}
    assert (found.tokens[found.valid] == 9).all()


def test_what_more_is_asked_for_is_done_by_the_layer_itself():
    model, states = tiny_model("llama"), torch.randn(4, 32)
    head = model.get_output_embeddings()
    with tiled_head(model):
        assert head(states).requires_grad  # as training inside a hook would want it
        with torch.no_grad(), Products() as made:
            head(torch.randn(module._ROWS + 1, 32))
            head(states[:0])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert head(states).dtype == torch.bfloat16
    assert set(made.widths) == {VOCAB}


class Odd(nn.Linear):
    """A layer of somebody's, that may do anything."""


@pytest.mark.parametrize("kind", ["subclass", "parametrized", "forward", "half", "small", "none"])
def test_other_heads_are_left_alone(kind, monkeypatch):
    model = tiny_model("llama")
    head = model.lm_head
    if kind == "subclass":
        model.lm_head = head = Odd(32, VOCAB, bias=False)
    elif kind == "parametrized":
        parametrizations.weight_norm(head)
    elif kind == "forward":
        head.forward = lambda states: states @ head.weight.T
    elif kind == "half":
        model.to(torch.bfloat16)
    elif kind == "small":
        monkeypatch.setattr(module, "TILE", 32 * VOCAB)
    else:
        model.lm_head = None
    before = None if head is None else head.forward
    with tiled_head(model):
        assert head.forward == before


def test_it_is_left_as_it_was_after_an_error():
    model = tiny_model("llama")

    def fail(layer, inputs):
        assert "forward" in vars(layer)
        raise RuntimeError("stop")

    handle = model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        sample(model, tiny_tokenizer(), [[1, 5]], max_new_tokens=2)
    handle.remove()
    assert "forward" not in vars(model.lm_head)
