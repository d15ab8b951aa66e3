"""The bugs that public code of masked policy gradients has had, each with a test that sees it.

Each test shows the bug on its input first, so that it is known to be able to fail.
"""

import gc
import inspect
import weakref

import pytest
import torch
from ranks import on_ranks

from entropy_probe import forking_mask, token_entropy
from entropy_probe.entropy import logit_stats
from entropy_probe.loss import masked_policy_loss
from entropy_probe.training import Selection, keep_tokens, preset, token_denominator
from entropy_probe.training.presets import PRESETS

ROWS, WIDTH = 6, 12


def batch(seed: int = 0, *, lengths=(11, 4, 12, 7, 2, 8)) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    # Rows differ in how uncertain they are, as answers do.
    scale = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0, 0.3])[: len(lengths), None]
    entropy = torch.rand(len(lengths), WIDTH, generator=random) * scale
    new = -torch.rand(len(lengths), WIDTH, generator=random)
    return {
        "entropy": entropy,
        "valid": torch.arange(WIDTH) < torch.tensor(lengths)[:, None],
        "new": new,
        "old": new + torch.randn(len(lengths), WIDTH, generator=random) / 3,
        "advantages": torch.randn(len(lengths), generator=random),
        "rows": torch.arange(len(lengths)),
        "groups": torch.arange(len(lengths)) // 3,
        "micro_batches": torch.arange(len(lengths)) // 2,
    }


def choose(selection: Selection, b: dict, *, gather=None):
    names = ("entropy", "valid", "rows", "groups", "micro_batches")
    return keep_tokens(selection, **{name: b[name] for name in names}, gather=gather)


def step(selection: Selection, b: dict):
    """Give the mask, the step's loss and its gradient, micro-batch by micro-batch."""
    kept = choose(selection, b).mask
    divisor = token_denominator(selection, kept, b["valid"], micro_batches=b["micro_batches"])
    new, total = b["new"].clone().requires_grad_(), 0.0
    for number in b["micro_batches"].unique():
        part = b["micro_batches"] == number
        total = total + masked_policy_loss(
            new[part], b["old"][part], b["advantages"][part], b["valid"][part], kept[part],
            normalizer=selection.normalizer,
            denominator=divisor[part] if divisor.dim() else divisor,
        ).loss  # fmt: skip
    return kept, total.detach(), torch.autograd.grad(total, new)[0]


def take(b: dict, rows: torch.Tensor) -> dict:
    return {name: value[rows] for name, value in b.items()}


def test_an_integer_mask_would_gather_positions_0_and_1():
    b = batch()
    number = b["valid"].long()
    flat = b["entropy"].flatten()
    assert set(flat[number.flatten()].tolist()) == set(flat[:2].tolist())  # the bug: no error
    fed = b | {"valid": number}
    users = inspect.unwrap  # without the tests' own check of types
    rest = {"rows": b["rows"], "groups": b["groups"]}
    kept = forking_mask(b["entropy"], b["valid"])
    terms = (b["new"], b["old"], b["advantages"])
    for call in (
        lambda: users(forking_mask)(fed["entropy"], fed["valid"]),
        lambda: users(keep_tokens)(Selection(), fed["entropy"], fed["valid"], **rest),
        lambda: users(masked_policy_loss)(*terms, number, kept, normalizer="valid"),
        lambda: users(masked_policy_loss)(*terms, b["valid"], kept.long(), normalizer="valid"),
        lambda: users(token_denominator)(Selection(), kept.long(), b["valid"]),
        lambda: users(token_denominator)(Selection(), kept, number),
    ):
        with pytest.raises(ValueError, match="must be a bool mask, got torch.int64"):
            call()


@pytest.mark.parametrize("name", PRESETS)
def test_padding_has_no_vote_in_the_threshold(name):
    b, selection = batch(), preset(name)
    padded = b["entropy"].where(b["valid"], 9.0)
    assert padded.quantile(0.8) > 8 > b["entropy"][b["valid"]].quantile(0.8)  # the bug
    one, other = choose(selection, b), choose(selection, b | {"entropy": padded})
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.threshold, other.threshold)
    wider = b | {
        key: torch.nn.functional.pad(b[key], (0, 5), value=fill)
        for key, fill in (("entropy", 9.0), ("valid", False))
    }
    assert torch.equal(choose(selection, wider).mask[:, :WIDTH], one.mask)


def test_the_threshold_of_each_rank_is_another_one():
    b = batch(lengths=(12,) * 6)
    parts = [b["rows"] < 2, b["rows"] >= 2]
    whole = choose(Selection(), b).mask
    alone = torch.cat([choose(Selection(), take(b, part)).mask for part in parts])
    assert not torch.equal(alone, whole)  # the bug: each rank by itself
    inputs = [{"b": take(b, part)} for part in parts]
    found = on_ranks(lambda b, gather: choose(Selection(), b, gather=gather), inputs)
    assert torch.equal(torch.cat([each.mask for each in found]), whole)
    assert found[0].threshold[0] == found[1].threshold[0]


@pytest.mark.parametrize("name", PRESETS)
def test_a_micro_batch_without_tokens_gives_a_differentiable_zero(name):
    with pytest.raises(RuntimeError, match="non-empty"):
        torch.empty(0).quantile(0.8)  # the bug
    b = batch(lengths=(11, 4, 0, 0, 2, 9))
    kept, loss, gradient = step(preset(name), b)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert not kept[2:4].any()
    assert not gradient[2:4].any()
    assert gradient.any()


def test_an_option_that_nothing_reads_is_an_error():
    settings = {"actor": {}, "model": {"entropy_top_ratio": 0.2}}
    assert settings["actor"].get("entropy_top_ratio") is None  # the bug: trains on every token
    with pytest.raises(ValueError, match="no option 'entropy_top_ratio'"):
        Selection.from_dict({"entropy_top_ratio": 0.2})
    with pytest.raises(ValueError, match="would not be read"):
        Selection(select="all", fraction=0.2)
    with pytest.raises(TypeError, match="unexpected keyword"):
        Selection(top_ratio=0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"fraction": 0.5}, {"select": "bottom"}, {"select": "random"}, {"scope": "sequence"},
        {"scope": "group"}, {"scope": "micro_batch"}, {"scope": "global_micro_batch"},
        {"rule": "threshold", "quantile": "kth", "fraction": 0.3}, {"count": "floor"},
        {"rule": "threshold", "quantile": "linear", "fraction": 0.5},
        {"rule": "threshold", "threshold": 1.0}, {"normalizer": "valid"},
        {"average": "sequence"}, {"average": "micro_batch"},
    ],
)  # fmt: skip
def test_every_option_changes_what_is_trained(change):
    b = batch()
    assert int(b["valid"].sum()) % 5  # so that counts round apart
    usual, changed = step(Selection(), b), step(Selection(**change), b)
    assert not torch.equal(usual[2], changed[2])


@pytest.mark.parametrize("name", PRESETS)
def test_cut_rows_that_are_left_out_are_in_no_count_and_no_threshold(name):
    b = batch()
    rest = b["rows"] % 2 == 1  # one row of each micro-batch stays
    out = b | {"valid": b["valid"] & rest[:, None]}
    selection = preset(name)
    everything = step(selection, b)[2][rest]
    kept, loss, gradient = step(selection, out)
    alone = step(selection, take(b, rest))
    assert not torch.equal(everything, alone[2])  # the bug: they still count
    assert torch.equal(kept[rest], alone[0])
    assert not gradient[~rest].any()
    assert torch.allclose(loss, alone[1])
    assert torch.allclose(gradient[rest], alone[2])


def entropy_with_graph(logits: torch.Tensor):
    """Give a differentiable entropy, and a reference to what its graph holds on to."""
    logp = logits.log_softmax(-1)
    held = logp * logp.exp()
    return -held.sum(-1), weakref.ref(logp)


def test_the_graph_of_the_entropy_is_let_go():
    b = batch()
    b["new"] = b["new"].requires_grad_()
    logits = torch.randn(ROWS, WIDTH, 7, requires_grad=True)
    entropy, held = entropy_with_graph(logits)
    bonus = (entropy * 0.0).sum()
    del entropy
    gc.collect()
    assert held() is not None  # the bug: a bonus with a coefficient of 0 keeps all of it
    del bonus
    gc.collect()
    assert held() is None
    entropy, held = entropy_with_graph(logits)
    kept = choose(Selection(), b | {"entropy": entropy})
    found = masked_policy_loss(
        b["new"], b["old"], b["advantages"], b["valid"], kept.mask, normalizer="selected",
        entropy=entropy,
    )  # fmt: skip
    assert found.loss.requires_grad
    del entropy
    gc.collect()
    assert held() is None
    assert not any(value.requires_grad for value in found.counters.values())
    assert torch.autograd.grad(found.loss, logits, allow_unused=True) == (None,)
    assert not token_entropy(logits).requires_grad


@pytest.mark.parametrize("scope", ["sequence", "group", "micro_batch", "batch", "global"])
def test_ties_keep_a_fifth_and_not_everything(scope):
    b = batch(lengths=(10,) * 6) | {"entropy": torch.zeros(ROWS, WIDTH)}
    least = b["entropy"][b["valid"]].quantile(0.8)
    assert (b["valid"] & (b["entropy"] >= least)).sum() == 60  # the bug
    assert choose(Selection(scope=scope), b).mask.sum() == 12
    mostly = b | {"entropy": (torch.rand(ROWS, WIDTH) > 0.9).float()}
    assert choose(Selection(scope=scope), mostly).mask.sum() == 12


def test_the_kl_is_masked_only_where_it_is_said():
    b = batch()
    kept = choose(Selection(), b).mask
    off = b["valid"] & ~kept
    gradients = {}
    for mask_kl in (True, False):
        new = b["new"].clone().requires_grad_()
        loss = masked_policy_loss(
            new, b["old"], b["advantages"] * 0, b["valid"], kept, normalizer="valid", beta=1.0,
            reference_logprobs=b["new"] + 0.5, mask_kl=mask_kl,
        ).loss  # fmt: skip
        gradients[mask_kl] = torch.autograd.grad(loss, new)[0]
    assert not gradients[True][off].any()
    assert gradients[False][off].all()
    assert torch.allclose(gradients[True][kept], gradients[False][kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_logits_are_not_written_into(dtype):
    logits = torch.randn(5, 33).to(dtype)
    before = logits.clone()
    scaled = logits.float().div_(0.7)
    assert (dtype == torch.float32) == (scaled.data_ptr() == logits.data_ptr())  # the bug
    logits = before.clone()
    first = token_entropy(logits, temperature=0.7)
    stats = logit_stats(logits, torch.zeros(5, dtype=torch.int32), temperature=0.7)
    assert torch.equal(logits, before)
    assert torch.equal(stats.entropy, first)
    wanted = torch.distributions.Categorical(logits=before.float() / 0.7).entropy()
    assert torch.allclose(first, wanted, atol=1e-5)


def test_rows_in_another_order_are_chosen_as_before():
    b, order = batch(), torch.tensor([3, 0, 5, 1, 4, 2])
    for scope in ("sequence", "group", "global"):
        for select in ("forks", "random"):
            selection = Selection(scope=scope, select=select)
            whole = choose(selection, b).mask
            assert torch.equal(choose(selection, take(b, order)).mask, whole[order])
            assert not torch.equal(whole[order], whole)  # the bug: masks left in another's order
