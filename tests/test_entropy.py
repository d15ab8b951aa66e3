import inspect
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from entropy_probe import entropy, token_entropy, token_stats
from entropy_probe.entropy import logit_stats


def reference(logits, temperature: float = 1.0) -> np.ndarray:
    """Entropy in float64 by the definition, with 0 log 0 = 0."""
    scores = logits.double().numpy() / temperature
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    p = weights / weights.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


class LargestAllocation(TorchDispatchMode):
    """The largest tensor made inside, in elements; views of what was there do not count."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    size = storage.nbytes() // tensor.element_size()
                    self.elements = max(self.elements, size)
        return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_equals_float64_and_torch_distributions_in_every_dtype(dtype, temperature):
    logits = (torch.randn(3, 5, 1000) * 4).to(dtype)
    found = token_entropy(logits, temperature=temperature)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, reference(logits, temperature), atol=1e-5, rtol=1e-6)
    theirs = torch.distributions.Categorical(logits=logits.double() / temperature).entropy()
    torch.testing.assert_close(found.double(), theirs, atol=1e-5, rtol=1e-6)


def test_a_vocabulary_of_152_thousand_is_summed_without_drift():
    logits = torch.randn(4, 152_000) * torch.tensor([[0.01], [1.0], [3.0], [10.0]])
    np.testing.assert_allclose(token_entropy(logits), reference(logits), atol=2e-5)


@pytest.mark.parametrize("vocab", [1, 2, 97, 50_257])
def test_uniform_gives_log_of_the_vocabulary(vocab):
    assert token_entropy(torch.full((1, vocab), -3.0)).item() == pytest.approx(math.log(vocab))


def test_one_certain_token_gives_zero_and_never_less():
    logits = torch.zeros(2, 50)
    logits[0, 7], logits[1, 3] = 1e4, 60.0
    assert token_entropy(logits).tolist() == pytest.approx([0.0, 0.0], abs=1e-20)
    assert token_entropy(torch.randn(500, 9) * 40).min() >= 0


def test_filtered_scores_of_minus_infinity_give_the_entropy_of_what_is_left():
    logits = torch.randn(6, 200)
    kept = logits.scatter(1, logits.topk(190, largest=False).indices, -torch.inf)
    naive = -(kept.softmax(-1) * kept.log_softmax(-1)).sum(-1)
    assert naive.isnan().all()  # what the textbook line gives
    for temperature in (1e-3, 1.0, 50.0):
        ten = kept[kept.isfinite()].view(6, 10)
        found = token_entropy(kept, temperature=temperature)
        np.testing.assert_allclose(found, reference(ten, temperature), atol=1e-6)


def test_bf16_logits_select_the_same_forks_as_float64():
    # Entropies that differ by a few hundredths of a nat: a step of bf16 arithmetic there is 0.03.
    logits = torch.randn(300, 8000).bfloat16()

    def best(values) -> set[int]:
        return set(torch.as_tensor(values).double().topk(60).indices.tolist())

    def jaccard(values) -> float:
        return len(best(values) & truth) / len(best(values) | truth)

    truth = best(reference(logits))
    p, logp = logits.softmax(-1), logits.log_softmax(-1)
    assert jaccard(-(p * logp).sum(-1)) < 0.7
    assert jaccard(token_entropy(logits)) == 1.0


def test_the_size_of_a_chunk_does_not_matter(monkeypatch):
    logits = torch.randn(37, 50)
    whole = token_entropy(logits)
    for tile in (1, 50, 149, 10_000):
        monkeypatch.setattr(entropy, "TILE", tile)
        torch.testing.assert_close(token_entropy(logits), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[:, :-1],
        lambda x: x[::2],
        lambda x: x.transpose(0, 1),
        lambda x: x[:, 3],
    ],
)
def test_no_copy_of_a_large_input_is_made(monkeypatch, dtype, view):
    monkeypatch.setattr(entropy, "TILE", 1 << 11)
    logits = view(torch.randn(8, 20, 512).to(dtype))
    with LargestAllocation(logits) as made:
        found = token_entropy(logits)
    assert made.elements <= 1 << 11
    np.testing.assert_allclose(found, reference(logits), atol=1e-5)


def test_the_input_is_left_as_it_was_and_no_gradient_flows():
    logits = torch.randn(4, 9, requires_grad=True)
    before = logits.detach().clone()
    assert not token_entropy(logits, temperature=2.0).requires_grad
    assert torch.equal(logits, before)


def test_empty_inputs_give_empty_outputs():
    assert token_entropy(torch.zeros(0, 7)).shape == (0,)
    assert token_entropy(torch.zeros(2, 0, 7).transpose(0, 1)).shape == (0, 2)
    assert token_entropy(torch.zeros(7)).shape == ()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        token_entropy(torch.zeros(1, 3), temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        token_stats(
            torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), temperature=temperature
        )


def test_logits_without_a_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"must be \[..., vocab\]"):
        token_entropy(torch.zeros(3, 0))


# Statistics from hidden states


def materialised(
    hidden, unembed, tokens, *, temperature=1.0, bias=None, softcap=None, scale=1.0, k=5
):
    """The same statistics in float64 from all the logits at once."""
    logits = hidden.double() @ unembed.double().T * scale
    logits = logits if bias is None else logits + bias.double()
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    logits = logits / temperature
    logp = logits.log_softmax(-1)
    own = logp.gather(-1, tokens[..., None])
    top = logp.topk(k, dim=-1)
    ranks = (logp > own).sum(-1)
    return reference(logits), own[..., 0], ranks, top.indices, top.values


def assert_same(found, expected, *, atol: float) -> None:
    entropies, logprobs, ranks, ids, values = expected
    np.testing.assert_allclose(found.entropy, entropies, atol=atol)
    np.testing.assert_allclose(found.logprobs, logprobs, atol=atol)
    assert torch.equal(found.ranks.long(), ranks)
    assert torch.equal(found.alternative_ids.long(), ids)
    np.testing.assert_allclose(found.alternative_logprobs, values, atol=atol)
    assert all(v.dtype == torch.float32 for v in (found.entropy, found.logprobs))


@pytest.mark.parametrize("tile", [1, 333, 1 << 22])
@pytest.mark.parametrize(
    "head",
    [
        {},
        {"temperature": 0.4},
        {"bias": torch.linspace(-9, 9, 101)},
        {"softcap": 3.0},
        {"scale": 0.25},
        {"temperature": 1.7, "bias": torch.linspace(5, -5, 101), "softcap": 6.0, "scale": 2.0},
    ],
    ids=["plain", "temperature", "bias", "softcap", "scale", "all"],
)
def test_stats_from_hidden_states_equal_those_of_all_logits(monkeypatch, head, tile):
    monkeypatch.setattr(entropy, "TILE", tile)
    monkeypatch.setattr(entropy, "_ROWS", 8)
    hidden, unembed = torch.randn(3, 7, 16), torch.randn(101, 16)
    tokens = torch.randint(101, (3, 7))
    found = token_stats(hidden, unembed, tokens, **head)
    assert_same(found, materialised(hidden, unembed, tokens, **head), atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_multiplied_in_float32(dtype):
    hidden, unembed = torch.randn(50, 64).to(dtype), torch.randn(300, 64).to(dtype)
    tokens = torch.randint(300, (50,))
    found = token_stats(hidden, unembed, tokens)
    assert_same(found, materialised(hidden, unembed, tokens), atol=5e-5)


def test_stats_from_logits_equal_those_from_hidden_states():
    hidden, unembed = torch.randn(20, 16), torch.randn(60, 16)
    tokens = torch.randint(60, (20,))
    found = logit_stats(hidden @ unembed.T, tokens, temperature=0.7)
    assert_same(found, materialised(hidden, unembed, tokens, temperature=0.7), atol=3e-5)


def test_alternatives_are_merged_over_tiles_wherever_their_edges_fall(monkeypatch):
    # One state whose logits are the numbers below, best tokens at every edge of a width of 8.
    logits = torch.arange(40.0) / 100
    for place, value in zip((0, 7, 8, 15, 16, 39), (3, 9, 5, 7, 8, 6), strict=True):
        logits[place] = value
    expected = [7, 16, 15, 39, 8]
    for width in range(1, 42):
        monkeypatch.setattr(entropy, "TILE", width)
        found = token_stats(torch.ones(1, 1), logits[:, None], torch.tensor([39]), alternatives=5)
        assert found.alternative_ids.tolist() == [expected], width
        assert found.ranks.tolist() == [3]
        np.testing.assert_allclose(found.entropy, reference(logits[None]), atol=1e-6)


@pytest.mark.parametrize("tile", [1, 30, 1 << 22])
def test_equal_tokens_share_a_rank(monkeypatch, tile):
    monkeypatch.setattr(entropy, "TILE", tile)
    unembed = torch.tensor([2.0, 5.0, 5.0, 1.0, 5.0, 2.0])[:, None]
    tokens = torch.arange(6)
    found = token_stats(torch.ones(6, 1), unembed, tokens, alternatives=6)
    assert found.ranks.tolist() == [3, 0, 0, 5, 0, 3]
    assert sorted(found.alternative_ids[0].tolist()) == list(range(6))
    assert logit_stats(unembed.T.expand(6, 6), tokens, alternatives=0).ranks.tolist() == [
        3, 0, 0, 5, 0, 3,
    ]  # fmt: skip


def test_rounding_lets_no_token_outrank_its_twin():
    unembed = torch.randn(64, 48).repeat(2, 1)  # token i + 64 is token i again
    hidden, tokens = torch.randn(2000, 48) * 10, torch.randint(64, (2000,))
    first = token_stats(hidden, unembed, tokens).ranks
    assert torch.equal(first, token_stats(hidden, unembed, tokens + 64).ranks)
    assert (first % 2 == 0).all()  # whatever is more probable is so twice


def test_later_tiles_may_hold_everything(monkeypatch):
    monkeypatch.setattr(entropy, "TILE", 10)
    for bias in (torch.linspace(-300, 300, 50), torch.linspace(300, -300, 50)):
        hidden, unembed = torch.randn(9, 4), torch.randn(50, 4)
        tokens = torch.randint(50, (9,))
        found = token_stats(hidden, unembed, tokens, bias=bias)
        assert_same(found, materialised(hidden, unembed, tokens, bias=bias), atol=1e-4)


def test_a_bias_of_minus_infinity_removes_a_token():
    hidden, unembed = torch.randn(5, 8), torch.randn(30, 8)
    bias = torch.zeros(30)
    bias[10:] = -torch.inf
    found = token_stats(hidden, unembed, torch.arange(5), bias=bias)
    assert_same(found, materialised(hidden, unembed[:10], torch.arange(5)), atol=1e-5)


def test_all_logits_are_never_held(monkeypatch):
    monkeypatch.setattr(entropy, "TILE", 1 << 12)
    monkeypatch.setattr(entropy, "_ROWS", 64)
    hidden, unembed = torch.randn(8, 30, 4), torch.randn(1000, 4)
    with LargestAllocation(hidden, unembed) as made:
        token_stats(hidden, unembed, torch.randint(1000, (8, 30)))
    assert made.elements <= 1 << 12 < 8 * 30 * 1000


def test_no_token_and_no_alternative_are_fine():
    found = token_stats(torch.zeros(0, 4), torch.randn(9, 4), torch.zeros(0, dtype=torch.long))
    assert found.entropy.shape == (0,)
    assert found.alternative_ids.shape == (0, 5)
    found = token_stats(torch.randn(2, 4), torch.randn(9, 4), torch.tensor([1, 2]), alternatives=0)
    assert found.alternative_logprobs.shape == (2, 0)


def test_more_alternatives_than_tokens_are_refused():
    with pytest.raises(ValueError, match=r"must be 0 to 9 \(the vocabulary\), got 10"):
        token_stats(torch.zeros(1, 4), torch.zeros(9, 4), torch.tensor([0]), alternatives=10)


def test_tokens_must_lie_on_their_states():
    users = inspect.unwrap(token_stats)  # without the tests' own check of shapes
    with pytest.raises(ValueError, match=r"tokens must be \(2, 3\), got \(3, 2\)"):
        users(torch.zeros(2, 3, 4), torch.zeros(9, 4), torch.zeros(3, 2, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logprob_of_each_token_comes_with_its_entropy(dtype):
    logits = (torch.randn(3, 5, 41) * 4).to(dtype)
    tokens = torch.randint(0, 41, (3, 4))
    # A slice, as a training loop has it, and rows that span several tiles.
    found = entropy.entropy_and_logprobs(logits[:, :-1], tokens, temperature=0.7)
    scores = (logits[:, :-1].double() / 0.7).log_softmax(-1)
    own = scores.gather(-1, tokens[..., None])[..., 0]
    np.testing.assert_allclose(found[0].numpy(), reference(logits[:, :-1], 0.7), atol=2e-6)
    np.testing.assert_allclose(found[1].numpy(), own.numpy(), atol=1e-5)
    assert torch.equal(found[0], token_entropy(logits[:, :-1], temperature=0.7))


def test_logprobs_refuse_tokens_of_another_shape():
    with pytest.raises(ValueError, match=r"tokens must be \(2, 3\), got \(2, 4\)"):
        inspect.unwrap(entropy.entropy_and_logprobs)(  # without the tests' own check of shapes
            torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long)
        )


def test_leave_to_round_products_does_not_reach_the_statistics(monkeypatch):
    seen, scores = [], entropy._scores

    def spied(*parts):
        seen.append(torch.get_float32_matmul_precision())
        return scores(*parts)

    monkeypatch.setattr(entropy, "_scores", spied)
    torch.set_float32_matmul_precision("medium")
    try:
        token_stats(torch.randn(3, 8), torch.randn(11, 8), torch.tensor([0, 5, 10]))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen
    assert set(seen) == {"highest"}


def test_autocast_around_a_training_loop_does_not_round_the_statistics():
    logits, hidden, unembed = torch.randn(6, 50) * 3, torch.randn(6, 16), torch.randn(50, 16)
    ids = torch.randint(0, 50, (6,))

    def statistics():
        return [token_entropy(logits), *token_stats(hidden, unembed, ids)]

    plain = statistics()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (logits @ logits.mT).dtype == torch.bfloat16  # so there is something to withstand
        rounded = statistics()
    for one, other in zip(plain, rounded, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tiles_on_a_gpu_give_what_float64_gives(dtype):
    hidden = torch.randn(300, 256).to("cuda", dtype)  # in two tiles of the vocabulary
    unembed, tokens = (torch.randn(150_000, 256) / 4).to("cuda", dtype), torch.arange(300).cuda()
    head = {"temperature": 0.7, "softcap": 30.0, "bias": torch.linspace(-1, 1, 150_000).cuda()}
    found = token_stats(hidden, unembed, tokens, **head)
    cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in head.items()}
    expected = materialised(hidden.cpu(), unembed.cpu(), tokens.cpu(), **cpu)
    entropies, logprobs, ranks, *_ = expected
    np.testing.assert_allclose(found.entropy.cpu(), entropies, atol=1e-4)
    np.testing.assert_allclose(found.logprobs.cpu(), logprobs, atol=1e-4)
    assert ((found.ranks.cpu() - ranks).abs() <= 1).all()  # where two scores round to one
