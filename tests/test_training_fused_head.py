"""The unembedding's gradients, a tile at a time, against autograd on whole logits."""

import pytest
import torch

from entropy_probe.training import fused_head
from entropy_probe.training.fused_head import Readout, fused_loss, token_logprobs
from entropy_probe.training.in_place import InPlace

ROWS, WIDTH, VOCAB = 37, 8, 50
HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 3.0, "temperature": 1.7},
    "scale": {"scale": 0.25},
    "all": {"softcap": 5.0, "temperature": 0.8, "scale": 2.0},
}


def inputs(*, bias: bool, dtype=torch.float64, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    shapes = [(ROWS, WIDTH), (VOCAB, WIDTH)] + ([(VOCAB,)] if bias else [])
    made = [torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes]
    tokens = torch.randint(VOCAB, (ROWS,), generator=random)
    made = [x.requires_grad_() for x in made]
    return (made if bias else [*made, None]), tokens


def plainly(hidden, weight, bias, readout):
    logits = readout.scale * (hidden.double() @ weight.double().T)
    logits = logits if bias is None else logits + bias.double()
    if readout.softcap is not None:
        logits = readout.softcap * torch.tanh(logits / readout.softcap)
    logprobs = (logits / readout.temperature).log_softmax(-1)
    return logprobs.gather(1, readout.tokens[:, None])[:, 0]


def terms(logprobs, rows):
    """Something that is not linear, and other for each row."""
    weights = torch.arange(1.0, ROWS + 1, dtype=logprobs.dtype)
    return weights[rows] * (0.3 * logprobs).exp()


def gradients(value, wanted):
    return torch.autograd.grad(value, [x for x in wanted if x is not None])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(fused_head, "TILE", 16 * VOCAB)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_both_ways_are_autograds(head, bias):
    head_inputs, tokens = inputs(bias=bias)
    readout = Readout(tokens, **HEADS[head])
    expected = plainly(*head_inputs, readout)
    theirs = gradients(3 * terms(expected, slice(None)).sum(), head_inputs)
    loss, logprobs = fused_loss(*head_inputs, readout, terms)
    torch.testing.assert_close(logprobs, expected.detach())
    torch.testing.assert_close(loss, terms(expected, slice(None)).sum())
    assert not logprobs.requires_grad
    torch.testing.assert_close(gradients(3 * loss, head_inputs), theirs)
    again = token_logprobs(*head_inputs, readout)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(gradients(3 * terms(again, slice(None)).sum(), head_inputs), theirs)


def test_tiles_cover_the_rows_once_and_are_of_like_size():
    for rows in (0, 1, 15, 16, 17, 37, 100):
        tiles = list(fused_head._tiles(rows, VOCAB))
        covered = [i for tile in tiles for i in range(rows)[tile]]
        assert covered == list(range(rows))
        sizes = [len(range(rows)[tile]) for tile in tiles]
        assert all(size <= 16 for size in sizes)
        assert not sizes or max(sizes) - min(sizes) <= 1


def test_sums_of_bfloat16_states_are_in_float32():
    head_inputs, tokens = inputs(bias=True, dtype=torch.bfloat16)
    readout = Readout(tokens)
    loss, logprobs = fused_loss(*head_inputs, readout, terms)
    assert (loss.dtype, logprobs.dtype) == (torch.float32, torch.float32)
    expected = plainly(*head_inputs, readout)
    torch.testing.assert_close(logprobs, expected.detach().float(), atol=1e-5, rtol=1e-5)
    ours = gradients(loss, head_inputs)
    theirs = gradients(terms(expected, slice(None)).sum(), head_inputs)
    assert {g.dtype for g in ours} == {torch.bfloat16}
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)


def test_large_logits_neither_overflow_nor_give_a_probability_above_1():
    (hidden, weight, bias), tokens = inputs(bias=False, dtype=torch.float32)
    hidden = (hidden * 1e4).detach().requires_grad_()
    loss, logprobs = fused_loss(hidden, weight, bias, Readout(tokens), terms)
    assert logprobs.isfinite().all()
    assert (logprobs <= 0).all()
    assert all(g.isfinite().all() for g in gradients(loss, (hidden, weight)))


@pytest.mark.parametrize("before", [None, 2.0])
def test_the_weights_gradient_can_be_added_where_it_belongs(before):
    (hidden, weight, bias), tokens = inputs(bias=False)
    weight = torch.nn.Parameter(weight.detach())
    theirs = gradients(
        terms(plainly(hidden, weight, bias, Readout(tokens)), slice(None)).sum(), (hidden, weight)
    )
    weight.grad = None if before is None else torch.full_like(weight, before)
    loss, _ = fused_loss(hidden, weight, bias, Readout(tokens), terms, sums=InPlace(weight))
    (own,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(own, theirs[0])
    torch.testing.assert_close(weight.grad, theirs[1] + (before or 0.0))


def test_no_rows_are_a_zero_with_gradients():
    (hidden, weight, bias), tokens = inputs(bias=False)
    none = hidden[:0].detach().requires_grad_()
    loss, logprobs = fused_loss(none, weight, bias, Readout(tokens[:0]), terms)
    assert (loss.item(), len(logprobs)) == (0.0, 0)
    assert not gradients(loss, (weight,))[0].any()
