"""Liger's head: asked for only where it is a kernel, equal to the tiles up to its own rounding."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture_scores, liger, score
from entropy_probe.entropy import token_stats
from entropy_probe.models.unembedding import Unembedding

HOPPER = (9, 0)
OPERATION = "liger_kernel.ops.fused_linear_scaled_cross_entropy"


def head_of(*, dtype=torch.bfloat16, bias=None, softcap=None):
    return Unembedding(torch.zeros(5, 4, dtype=dtype), bias, softcap, 1.0)


@pytest.mark.parametrize(
    ("head", "alternatives", "capability", "missing", "reason"),
    [
        (head_of(), 0, HOPPER, [], None),
        (head_of(), 1, HOPPER, [], "alternatives=0"),
        (head_of(bias=torch.zeros(5)), 0, HOPPER, [], "no bias"),
        (head_of(softcap=30.0), 0, HOPPER, [], "no soft cap|no bias and no soft cap"),
        (head_of(dtype=torch.float32), 0, HOPPER, [], "bfloat16 alone"),
        (head_of(), 0, None, [], "for CUDA, and the model is on cpu"),
        (head_of(), 0, (8, 0), [], "this one's is 8.0"),
        (head_of(), 0, (12, 0), [], "this one's is 12.0"),
        (head_of(), 0, HOPPER, ["cutlass"], r"cutlass cannot be imported \(pip install"),
    ],
)
def test_the_kernel_serves_what_it_can_compute(head, alternatives, capability, missing, reason):
    found = liger.why_not(head, alternatives, capability=capability, missing=missing)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(found)


def test_what_it_cannot_compute_is_refused_before_anything_runs(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokens, valid = torch.tensor([[1, 5, 6]]), torch.tensor([[False, True, True]])
    with pytest.raises(ValueError, match="head must be one of .* got 'liger2'"):
        score(model, tokenizer, tokens, valid, head="liger2")
    with pytest.raises(ValueError, match="head='liger' cannot be used: .*CUDA.*'tiles' always can"):
        score(model, tokenizer, tokens, valid, head="liger", alternatives=0)
    with pytest.raises(ValueError, match="alternatives=0"):
        capture_scores(model, tokenizer, ["w1 w2 "], tmp_path / "run", head="liger")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stand_in(monkeypatch):
    """Put the operation's contract, computed in float64, where Liger's would be."""

    class Operation:
        @staticmethod
        def apply(states, weight, targets, temperature, ignored, tiles, entropies):
            assert targets.dtype == torch.int64
            assert (ignored, tiles, entropies) == (-100, 1, True)
            logs = (states.double() @ weight.double().T / temperature).log_softmax(dim=1)
            losses = -logs.gather(1, targets[:, None])[:, 0].float()
            return losses, -(logs.exp() * logs).sum(dim=1).bfloat16()

    module = SimpleNamespace(LigerFusedLinearScaledCrossEntropyFunction=Operation)
    monkeypatch.setitem(sys.modules, OPERATION, module)
    monkeypatch.setattr(liger, "why_not", lambda *_, **__: None)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name == "liger-kernel" else version(name)
    )


def test_a_record_by_the_kernel_is_that_of_the_tiles_less_what_it_does_not_give(stand_in, tmp_path):
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    tokens = torch.randint(3, 97, (3, 9))
    valid = torch.arange(9)[None, :] >= torch.tensor([[2], [4], [9]])  # a row without any
    options = {"temperature": 0.7, "alternatives": 0, "residual_layers": [1], "batch_size": 2}
    ours = score(model, tokenizer, tokens, valid, **options)
    theirs = score(model, tokenizer, tokens, valid, head="liger", **options)
    torch.testing.assert_close(theirs.logprobs, ours.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.entropy, ours.entropy, rtol=2**-8, atol=1e-5)
    assert theirs.ranks[valid].eq(-1).all()
    assert theirs.alternatives.ids.shape == (3, 9, 0)
    assert ours.provenance.computed_by is None
    assert theirs.provenance.computed_by.startswith("liger-kernel 0: logits rounded")

    run = capture_scores(
        model, tokenizer, ["w1 w2 w3 "], tmp_path / "run", head="liger", alternatives=0
    )
    assert run.plan.arguments["head"] == "liger"
    assert run.provenance.computed_by == theirs.provenance.computed_by


def test_no_tokens_are_no_work(stand_in):
    found = liger.liger_stats(torch.zeros(0, 4), torch.zeros(5, 4), torch.zeros(0).long())
    assert [len(field) for field in found] == [0] * 5


def states_and_weights(dtype, device="cpu", *, rows=700, vocab=1000, width=64):
    """Give states whose distributions reach from nearly certain to nearly flat."""
    hidden = torch.randn(rows, width) * torch.logspace(-2, -0.3, rows)[:, None]
    weight, tokens = torch.randn(vocab, width), torch.randint(vocab, (rows,))
    return hidden.to(device, dtype), weight.to(device, dtype), tokens.to(device)


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.25)])
def test_the_operation_itself_computes_what_the_tiles_compute(temperature, scale):
    pytest.importorskip("liger_kernel")
    hidden, weight, tokens = states_and_weights(torch.float32)
    hidden = hidden * (temperature / scale)  # the same distributions for all
    how = {"temperature": temperature, "scale": scale}
    ours = token_stats(hidden, weight, tokens, alternatives=0, **how)
    theirs = liger.liger_stats(hidden, weight, tokens, **how)
    assert ours.entropy.min() < 3
    assert ours.entropy.max() > 6
    torch.testing.assert_close(theirs.entropy, ours.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.logprobs, ours.logprobs, rtol=1e-5, atol=1e-5)


def test_the_operation_rounds_entropies_to_the_dtype_of_the_states():
    pytest.importorskip("liger_kernel")
    hidden, weight, tokens = states_and_weights(torch.bfloat16)
    entropy = liger.liger_stats(hidden, weight, tokens).entropy
    torch.testing.assert_close(entropy, entropy.bfloat16().float(), rtol=0, atol=0)
    exact = token_stats(hidden, weight, tokens, alternatives=0).entropy
    assert 1e-3 < (entropy - exact).abs().max() < 0.1


@pytest.mark.gpu
def test_the_kernel_on_a_hopper_gpu_agrees_with_the_tiles_up_to_its_rounding():
    pytest.importorskip("liger_kernel")
    pytest.importorskip("cutlass")
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("it is a kernel on Hopper GPUs alone")
    hidden, weight, tokens = states_and_weights(torch.bfloat16, "cuda", vocab=151_936, width=896)
    hidden = hidden / 4  # logits as wide as above, with more terms in each
    head = Unembedding(weight, None, None, 1.0)
    liger.check_head("liger", head, 0)
    for temperature in (1.0, 0.6):
        ours = token_stats(hidden, weight, tokens, alternatives=0, temperature=temperature)
        theirs = liger.liger_stats(hidden, weight, tokens, temperature=temperature)
        torch.testing.assert_close(theirs.entropy, ours.entropy, rtol=2**-7, atol=2e-2)
        torch.testing.assert_close(theirs.logprobs, ours.logprobs, rtol=2**-9, atol=2e-2)
