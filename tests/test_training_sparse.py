"""The sparse step against gradients written plainly: whole logits, padded rows, autograd."""

import inspect

import pytest
import torch
from tiny import VOCAB, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from updates import (
    FAMILIES,
    furthest,
    logprobs_of,
    make_batch,
    plain_step,
    random_mask,
    replaced,
    take_gradients,
    trainable,
)

from entropy_probe import entropy, token_entropy
from entropy_probe.loss import counter_means
from entropy_probe.training import fused_head
from entropy_probe.training.objective import Objective
from entropy_probe.training.selection import Selection, keep_tokens
from entropy_probe.training.sparse import current_statistics, policy_step


def step(model, batch, kept, **options):
    """Give the loss, the gradients and what the step says of itself."""
    options = {"denominator": float(kept.sum()) if torch.is_tensor(kept) else 7.0} | options
    out = policy_step(model, batch, kept=kept, **options)
    return out.loss, take_gradients(model), out


@pytest.fixture
def case():
    """Give a model, rows and a mask."""
    model = trainable("llama")
    batch = make_batch(model)
    return model, batch, random_mask(batch.valid)


# The same gradients


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_whole_logits(family, tied):
    model = trainable(family, tied=tied)
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    expected, theirs = plain_step(model, batch, kept, float(kept.sum()), temperature=0.7)
    loss, ours, out = step(model, batch, kept, temperature=0.7)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5
    assert out.logits_rows == int(kept.sum())


@pytest.mark.parametrize("family", ["phi", "cohere", "granite", "mistral"])  # bias, scales, window
def test_gradients_of_odd_heads(family):
    model = trainable(family)
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    expected, theirs = plain_step(model, batch, kept, float(kept.sum()))
    loss, ours, _ = step(model, batch, kept)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5


def test_in_float64_they_are_equal_to_the_last_digits():
    model = trainable("gpt2", tied=True, dtype=torch.float64)  # its norms stay in float64
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    expected, theirs = plain_step(model, batch, kept, 11.0)
    loss, ours, _ = step(model, batch, kept, denominator=11.0)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert furthest(ours, theirs) < 1e-12


@pytest.mark.parametrize(
    "how",
    [
        {"micro_rows": 1}, {"micro_rows": 8}, {"micro_tokens": 20}, {"share": False},
        {"packed": False}, {"packed": False, "micro_rows": 2}, {"passes": 6},
        {"sparse": False}, {"sparse": False, "packed": False, "micro_rows": 4},
        {"micro_batches": torch.arange(9) % 4},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_how_rows_are_run_changes_nothing(family, how):
    model = trainable(family)
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    expected, theirs, _ = step(model, batch, kept)
    loss, ours, out = step(model, batch, kept, **how)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5
    assert out.passes >= how.get("passes", 1)
    if "micro_rows" in how:
        run = len(batch) if not how.get("sparse", True) else int(kept.any(dim=1).sum())
        assert out.passes == -(-run // how["micro_rows"])
    if how.get("sparse", True):
        assert out.logits_rows == int(kept.sum())


@pytest.mark.parametrize("mask_kl", [True, False])
def test_the_kl_to_a_reference(mask_kl):
    model = trainable("llama")
    batch = make_batch(model, reference=True)
    kept = random_mask(batch.valid)
    options = {"beta": 0.3, "mask_kl": mask_kl, "kl_denominator": 31.0}
    expected, theirs = plain_step(model, batch, kept, 13.0, **options)
    loss, ours, out = step(model, batch, kept, denominator=13.0, **options)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5
    assert out.logits_rows == int((kept if mask_kl else batch.valid).sum())
    without = step(model, batch, kept, denominator=13.0)[1]
    assert furthest(without, theirs) > 1e-2


def test_a_denominator_a_row_and_an_advantage_a_token(case):
    model, batch, kept = case
    batch = replaced(batch, advantages=torch.randn(batch.tokens.shape))
    divisor = torch.rand(len(batch), 1) + 1
    expected, theirs = plain_step(model, batch, kept, divisor)
    loss, ours, _ = step(model, batch, kept, denominator=divisor)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5


def test_the_ratio_of_a_sequence_needs_every_token(case):
    model, batch, kept = case
    expected, theirs = plain_step(model, batch, batch.valid, 9.0, ratio="sequence")
    loss, ours, _ = step(
        model, batch, batch.valid, denominator=9.0, ratio="sequence", sparse=False, micro_rows=2
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5
    with pytest.raises(ValueError, match="before any gradient: pass sparse=False"):
        step(model, batch, batch.valid, ratio="sequence")
    with pytest.raises(ValueError, match="needs every valid token to be kept"):
        step(model, batch, kept, ratio="sequence", sparse=False)


def test_gradients_are_added_to_what_is_there(case):
    model, batch, kept = case
    once = step(model, batch, kept)[1]
    for _ in range(2):
        policy_step(model, batch, kept=kept, denominator=float(kept.sum()))
    assert furthest(take_gradients(model), {k: 2 * v for k, v in once.items()}) < 1e-5


@pytest.mark.parametrize("frozen", ["embed_tokens", "lm_head", "layers.1"])
def test_what_does_not_train_gets_no_gradient(case, frozen):
    model, batch, kept = case
    whole = step(model, batch, kept)[1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    ours = step(model, batch, kept)[1]
    assert all((value is None) == (frozen in name) for name, value in ours.items())
    rest = {name: value for name, value in ours.items() if value is not None}
    assert furthest(rest, {name: whole[name] for name in rest}) < 1e-5


def test_hooks_on_the_vocabularys_matrices_see_their_gradients(case):
    model, batch, kept = case
    expected = step(model, batch, kept)[1]
    seen = []
    model.lm_head.weight.register_hook(seen.append)
    model.model.embed_tokens.weight.register_hook(lambda gradient: 2 * gradient)
    ours = step(model, batch, kept)[1]
    torch.testing.assert_close(seen[0], expected["lm_head.weight"])
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(ours[name], 2 * expected[name])


def test_bfloat16_blocks_give_nearly_the_same_direction(case):
    model, batch, kept = case
    exact = step(model, batch, kept)[1]
    rough = step(model, batch, kept, precision="bfloat16")[1]
    one, other = (torch.cat([g.flatten() for g in each.values()]) for each in (exact, rough))
    assert 0.98 < torch.cosine_similarity(one, other, dim=0) < 0.999999
    assert {g.dtype for g in rough.values()} == {torch.float32}


# What is not computed


def test_rows_without_an_advantage_are_skipped(case):
    model, batch, kept = case
    advantages = batch.advantages.where(batch.groups != 1, 0.0)
    advantages[-1] = 0.0
    batch = replaced(batch, advantages=advantages)
    expected, theirs = plain_step(model, batch, kept, 8.0)
    loss, ours, out = step(model, batch, kept, denominator=8.0)
    everything = step(model, batch, kept, denominator=8.0, sparse=False)[2]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5
    assert out.rows_skipped >= 4
    assert everything.rows_skipped == 0
    assert out.tokens_run < everything.tokens_run
    reference = replaced(batch, reference_logprobs=batch.old_logprobs)
    assert step(model, reference, kept, beta=0.1)[2].rows_skipped < 4  # there is a KL to learn


def test_rows_end_at_the_last_token_that_is_read(case):
    model, batch, _ = case
    early = torch.zeros_like(batch.valid)
    early[torch.arange(len(batch)), batch.prompt_lengths] = True  # each row's first token
    out = step(model, batch, early)[2]
    assert out.tokens_run == 5 + 2 + 9  # the prompts, once each
    assert out.logits_rows == 9


def test_nothing_to_learn_is_a_zero(case):
    model, batch, kept = case
    none = torch.zeros_like(kept)
    for masked, rows in ((none, batch), (kept, replaced(batch, advantages=torch.zeros(9)))):
        loss, gradients, out = step(model, rows, masked, denominator=1.0)
        assert (loss, out.logits_rows, out.rows_skipped) == (0.0, 0, 9)
        assert not any(g.any() for g in gradients.values() if g is not None)


class Largest(TorchDispatchMode):
    """Notes the most rows of logits in any tensor that any operation gives."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor) and tensor.shape[-1:] == (VOCAB,):
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return out


@pytest.mark.parametrize("source", ["known", "current"])
def test_there_are_never_more_logits_than_a_tile(source, monkeypatch):
    model = trainable("llama")
    batch = make_batch(model, n=6)
    monkeypatch.setattr(fused_head, "TILE", 40 * VOCAB)
    monkeypatch.setattr(entropy, "TILE", 40 * VOCAB)
    wanted = batch.valid if source == "known" else lambda rows, *_: batch.valid[rows]
    with Largest() as seen:
        step(model, batch, wanted)
    # The unembedding's transpose has 32 rows itself.
    assert 32 <= seen.rows <= 40 < int(batch.valid.sum())
    with Largest() as seen:
        plain_step(model, batch, batch.valid, 1.0)
    assert seen.rows == batch.tokens.numel()


# The current policy's entropies


def test_statistics_are_those_of_whole_logits(case):
    model, batch, _ = case
    with torch.no_grad():
        logits = model(batch.tokens).logits[:, :-1]
    expected = token_entropy(logits, temperature=0.7)
    for how in ({}, {"micro_rows": 2}, {"packed": False}):
        entropy, logprobs = current_statistics(model, batch, temperature=0.7, **how)
        inside = batch.valid[:, 1:]
        torch.testing.assert_close(entropy[:, 1:][inside], expected[inside], atol=1e-4, rtol=1e-4)
        own = logprobs_of(model, batch.tokens, 0.7).detach()
        torch.testing.assert_close(logprobs[batch.valid], own[batch.valid], atol=1e-4, rtol=1e-4)
        assert not entropy[~batch.valid].any()


@pytest.mark.parametrize("sparse", [True, False])
def test_a_mask_of_the_current_policy_is_made_in_the_same_pass(case, sparse):
    model, batch, _ = case
    entropy, logprobs = current_statistics(model, batch)
    numbers = torch.arange(len(batch)) % 3
    selection = Selection(scope="micro_batch", entropy_source="current")
    rows = {"rows": torch.arange(len(batch)), "groups": batch.groups, "micro_batches": numbers}
    kept = keep_tokens(selection, entropy, batch.valid, **rows).mask
    calls = []

    def choose(some, entropies, own):
        calls.append(len(some))
        torch.testing.assert_close(entropies[batch.valid[some]], entropy[some][batch.valid[some]])
        torch.testing.assert_close(own[batch.valid[some]], logprobs[some][batch.valid[some]])
        few = {name: value[some] for name, value in rows.items()}
        return keep_tokens(selection, entropies, batch.valid[some], **few).mask

    expected, theirs = plain_step(model, batch, kept, 7.0)
    loss, ours, out = step(
        model, batch, choose, denominator=7.0, micro_batches=numbers, sparse=sparse
    )
    assert calls == [3, 3, 3]
    assert torch.equal(out.kept, kept)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5


# What it says, and what it refuses


def test_it_says_what_it_knows(case):
    model, batch, kept = case
    _, _, out = step(model, batch, kept)
    own = logprobs_of(model, batch.tokens).detach()
    torch.testing.assert_close(out.logprobs[kept], own[kept], atol=1e-4, rtol=1e-4)
    assert out.logprobs[~kept].isnan().all()
    assert int(out.counters["kept"]) == int(kept.sum())
    gaps = ((own - batch.old_logprobs).exp() - 1).abs()[kept].sum()
    assert float(out.counters["ratio_gap_kept"]) == pytest.approx(float(gaps), rel=1e-4)
    assert out.counters["ratio_gap_valid"].isnan()
    dense = step(model, batch, kept, sparse=False)[2]
    assert dense.counters["ratio_gap_valid"].isfinite()


@pytest.mark.parametrize("how", [{}, {"mask_kl": False, "kl_denominator": 9.0}, {"sparse": False}])
def test_it_says_the_kl_where_it_was_computed(how):
    model = trainable("llama")
    batch = make_batch(model, reference=True)
    kept = random_mask(batch.valid)
    means = counter_means(step(model, batch, kept, beta=0.3, **how)[2].counters)
    gap = batch.reference_logprobs - logprobs_of(model, batch.tokens).detach()
    kl = gap.exp() - gap - 1
    assert means["kl_kept"] == pytest.approx(float(kl[kept].mean()), rel=1e-4)
    assert ("kl_valid" in means) == bool(how)
    if how:
        assert means["kl_valid"] == pytest.approx(float(kl[batch.valid].mean()), rel=1e-4)
        assert means["kl_valid"] != pytest.approx(means["kl_kept"], rel=1e-2)
    without = replaced(batch, reference_logprobs=None)
    assert "kl_kept" not in step(model, without, kept)[2].counters


def test_the_model_is_left_as_it_was(case):
    model, batch, kept = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, how = model(batch.tokens).logits, model.config._attn_implementation
    step(model, batch, kept)
    unknown = replaced(batch, old_logprobs=batch.old_logprobs * torch.nan)
    with pytest.raises(ValueError, match="old_logprobs is NaN at"):
        step(model, unknown, kept)
    assert model.config._attn_implementation == how
    assert torch.equal(model(batch.tokens).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_what_would_train_something_else_is_refused(case, monkeypatch):
    model, batch, kept = case
    # Without the tests' own check of types.
    call = inspect.unwrap(policy_step)
    monkeypatch.setattr(Objective, "check", inspect.unwrap(Objective.check))
    with pytest.raises(ValueError, match=r"kept must be a bool mask of 9 rows, 23 wide, got"):
        call(model, batch, kept=kept.long(), denominator=1.0)
    with pytest.raises(ValueError, match="is kept but not valid"):
        call(model, batch, kept=~batch.valid, denominator=1.0)
    lost = batch.advantages.clone()
    lost[4] = torch.nan
    with pytest.raises(ValueError, match=r"the advantage at \[4, \d+\] .* is NaN"):
        call(model, replaced(batch, advantages=lost), kept=batch.valid, denominator=1.0)
    with pytest.raises(ValueError, match="denominator must be above 0, got 0"):
        call(model, batch, kept=kept, denominator=0.0)
    reference = replaced(batch, reference_logprobs=batch.old_logprobs)
    with pytest.raises(ValueError, match="pass what it is divided by as kl_denominator"):
        call(model, reference, kept=kept, denominator=1.0, beta=0.1, mask_kl=False)
    with pytest.raises(ValueError, match="precision must be one of"):
        call(model, batch, kept=kept, denominator=1.0, precision="float16")
    with pytest.raises(ValueError, match="has no linear output layer"):
        call(torch.nn.Linear(2, 2), batch, kept=kept, denominator=1.0)
    model.config.max_position_embeddings = 12
    with pytest.raises(ValueError, match="but the model's context is 12"):
        call(model, batch, kept=batch.valid, denominator=1.0)


def test_a_batch_is_checked():
    batch = make_batch(tiny_model())
    kind = inspect.unwrap(type(batch).__init__)
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}

    def made(**changes):
        kind(object.__new__(type(batch)), **values | changes)

    made()
    with pytest.raises(ValueError, match="valid must be a bool mask"):
        made(valid=batch.valid.long())
    with pytest.raises(ValueError, match=r"so advantages must be \(9,\) or \(9, 23\), got \(8,\)"):
        made(advantages=torch.zeros(8))
    with pytest.raises(ValueError, match="nothing produced the first token"):
        made(valid=torch.ones_like(batch.valid))
