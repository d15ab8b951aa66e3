import inspect
import math

import pytest
import torch

from entropy_probe.loss import (
    counter_means,
    iou,
    kl_terms,
    loss_counters,
    masked_policy_loss,
    policy_terms,
)

ROWS, WIDTH = 4, 7


def batch(dtype=torch.float64, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Give a batch with ratios on both sides of both bounds, and NaN outside ``valid``."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 3, 5, 6])
    valid = (torch.arange(WIDTH) < lengths[:, None]) & (torch.arange(WIDTH) > 0)
    new = -torch.rand(ROWS, WIDTH, generator=random, dtype=dtype) * 3
    old = new + torch.randn(ROWS, WIDTH, generator=random, dtype=dtype) / 2
    return {
        "logprobs": new.where(valid, torch.nan).requires_grad_(),
        "old_logprobs": old.where(valid, torch.nan),
        "advantages": torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=dtype),
        "valid": valid,
        "kept": valid & (torch.rand(ROWS, WIDTH, generator=random) < 0.4),
    }


def in_python(b: dict, mask, divisor: float, low: float = 0.2, high: float = 0.28) -> float:
    """Add up the objective token by token."""
    total = 0.0
    for row, position in mask.nonzero().tolist():
        ratio = math.exp(float((b["logprobs"] - b["old_logprobs"])[row, position].detach()))
        gain = float(b["advantages"][row])
        total -= min(ratio * gain, min(max(ratio, 1 - low), 1 + high) * gain)
    return total / divisor


def test_the_loss_is_the_papers_sum_over_the_count_it_names():
    b = batch()
    selected, valid = int(b["kept"].sum()), int(b["valid"].sum())
    assert 2 < selected < valid
    for normalizer, count in (("selected", selected), ("valid", valid)):
        loss = masked_policy_loss(**b, normalizer=normalizer).loss
        assert float(loss.detach()) == pytest.approx(in_python(b, b["kept"], count), rel=1e-12)
    given = masked_policy_loss(**b, normalizer="selected", denominator=50.0).loss
    assert float(given.detach()) == pytest.approx(in_python(b, b["kept"], 50), rel=1e-12)
    wide = masked_policy_loss(**b, normalizer="valid", clip_low=1.0, clip_high=math.inf).loss
    wanted = in_python(b, b["kept"], valid, 1.0, math.inf)
    assert float(wide.detach()) == pytest.approx(wanted, rel=1e-12)


def test_the_ratio_is_clipped_on_the_side_that_the_advantage_pushes_to():
    ratios = torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 2.0], requires_grad=True)
    gains = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    terms = policy_terms(ratios.log(), torch.zeros(6), gains)
    assert terms.tolist() == pytest.approx([-0.5, -1.0, -1.28, 0.8, 1.0, 2.0])
    terms.sum().backward()
    assert ratios.grad.tolist() == pytest.approx([-1.0, -1.0, 0.0, 0.0, 1.0, 1.0])


def test_kl_terms_agree_in_the_mean_with_the_kl_of_distributions():
    policy = torch.distributions.Categorical(logits=torch.tensor([0.3, -1.0, 0.8, 0.0]))
    other = torch.distributions.Categorical(logits=torch.tensor([0.0, 0.5, 0.2, -0.4]))
    terms = kl_terms(policy.logits, other.logits)
    assert (terms >= 0).all()
    wanted = torch.distributions.kl_divergence(policy, other)
    assert (policy.probs * terms).sum() == pytest.approx(float(wanted), rel=1e-5)


def test_everything_kept_is_the_plain_objective_bit_by_bit():
    b = batch(torch.float32)
    logprobs, valid = b["logprobs"], b["valid"]
    found = masked_policy_loss(**b | {"kept": valid}, normalizer="selected").loss
    (gradient,) = torch.autograd.grad(found, logprobs)
    plain = logprobs.detach().nan_to_num(0.0).requires_grad_()
    ratio = (plain - b["old_logprobs"].nan_to_num(0.0)).exp()
    gains = b["advantages"][:, None]
    terms = -torch.min(ratio * gains, ratio.clamp(0.8, 1.28) * gains)
    wanted = (terms * valid).sum() / valid.sum()
    assert torch.equal(found, wanted)
    assert torch.equal(gradient, torch.autograd.grad(wanted, plain)[0])
    assert gradient[valid].count_nonzero() > 3


@pytest.mark.parametrize("mask_kl", [True, False])
@pytest.mark.parametrize("normalizer", ["selected", "valid"])
def test_the_kl_is_masked_or_not_and_divided_by_what_it_counts(mask_kl, normalizer):
    b = batch()
    reference = (b["logprobs"].detach() + 0.3 * torch.randn(ROWS, WIDTH)).double()
    options = {"beta": 0.1, "reference_logprobs": reference, "mask_kl": mask_kl}
    with_kl = masked_policy_loss(**b, normalizer=normalizer, **options).loss
    without = masked_policy_loss(**b, normalizer=normalizer).loss
    mask = b["kept"] if mask_kl else b["valid"]
    count = b["valid"].sum() if normalizer == "valid" else mask.sum()
    gaps = (reference - b["logprobs"].detach())[mask]
    wanted = 0.1 * (gaps.exp() - gaps - 1).sum() / count
    assert (with_kl - without).detach() == pytest.approx(float(wanted), rel=1e-9)
    (gradient,) = torch.autograd.grad(with_kl, b["logprobs"])
    assert bool(gradient[b["valid"] & ~b["kept"]].any()) is not mask_kl


def test_the_kl_has_a_count_of_its_own_where_it_counts_other_tokens():
    b = batch()
    options = {"beta": 0.1, "reference_logprobs": b["old_logprobs"], "mask_kl": False}
    counts = {"denominator": float(b["kept"].sum()), "kl_denominator": float(b["valid"].sum())}
    own = masked_policy_loss(**b, normalizer="selected", **options).loss
    given = masked_policy_loss(**b, normalizer="selected", **options, **counts).loss
    assert torch.allclose(own, given)
    with pytest.raises(ValueError, match="pass their number .* as kl_denominator"):
        masked_policy_loss(**b, normalizer="selected", **options, denominator=3.0)
    same = masked_policy_loss(**b, normalizer="valid", **options, denominator=20.0).loss
    twice = masked_policy_loss(
        **b, normalizer="valid", **options, denominator=20.0, kl_denominator=20.0
    )
    assert torch.equal(same, twice.loss)


def test_micro_batches_with_the_steps_count_add_up_to_the_whole():
    b = batch()
    for normalizer in ("selected", "valid"):
        count = float(b["kept" if normalizer == "selected" else "valid"].sum())
        whole = masked_policy_loss(**b, normalizer=normalizer)
        (gradient,) = torch.autograd.grad(whole.loss, b["logprobs"])
        parts = []
        for row in range(ROWS):
            one = {name: value[row : row + 1] for name, value in b.items()}
            parts.append(masked_policy_loss(**one, normalizer=normalizer, denominator=count))
        assert torch.allclose(sum(p.loss for p in parts), whole.loss, rtol=1e-12)
        (added,) = torch.autograd.grad(sum(p.loss for p in parts), b["logprobs"])
        assert torch.allclose(added, gradient, rtol=1e-12, atol=0)
        for name, value in whole.counters.items():
            assert torch.allclose(sum(p.counters[name] for p in parts), value), name


def test_a_denominator_a_row_gives_a_mean_over_tokens_then_over_rows():
    b = batch()
    counts = b["kept"].sum(dim=1, keepdim=True).clamp(min=1)
    loss = masked_policy_loss(**b, normalizer="selected", denominator=counts * float(ROWS)).loss
    rows = []
    for row in range(ROWS):
        mask = torch.zeros_like(b["kept"])
        mask[row] = b["kept"][row]
        rows.append(in_python(b, mask, max(int(mask.sum()), 1)))
    assert float(loss.detach()) == pytest.approx(sum(rows) / ROWS, rel=1e-12)


def test_advantages_of_tokens_weigh_tokens():
    b = batch()
    wide = b["advantages"][:, None].expand(ROWS, WIDTH).clone()
    wide[~b["kept"]] = torch.nan  # never read
    one = masked_policy_loss(**b, normalizer="selected").loss
    other = masked_policy_loss(**b | {"advantages": wide}, normalizer="selected").loss
    assert torch.equal(one, other)


def test_nothing_kept_is_a_differentiable_zero():
    b = batch()
    b["kept"] = torch.zeros_like(b["valid"])
    for normalizer in ("selected", "valid"):
        loss, counters = masked_policy_loss(**b, normalizer=normalizer)
        assert float(loss.detach()) == 0.0
        (gradient,) = torch.autograd.grad(loss, b["logprobs"])
        assert not gradient.any()
    assert counter_means(counters)["kept_share"] == 0.0
    assert "clip_kept" not in counter_means(counters)


def test_what_the_sparse_step_did_not_compute_is_unknown_and_not_zero():
    b = batch()
    entropy = torch.rand(ROWS, WIDTH, dtype=torch.float64)
    full = masked_policy_loss(**b, normalizer="selected", entropy=entropy)
    sparse = b | {"logprobs": b["logprobs"].detach().where(b["kept"], torch.nan)}
    found = masked_policy_loss(**sparse, normalizer="selected", entropy=entropy)
    assert torch.equal(found.loss, full.loss.detach())
    known, unknown = counter_means(full.counters), counter_means(found.counters)
    assert set(known) - set(unknown) == {"clip_valid", "ratio_gap_valid"}
    assert unknown == {name: known[name] for name in unknown}


def test_counters_say_what_happened_on_kept_and_on_all_tokens():
    b = batch()
    entropy = torch.rand(ROWS, WIDTH, dtype=torch.float64).where(b["valid"], torch.nan)
    means = counter_means(masked_policy_loss(**b, normalizer="valid", entropy=entropy).counters)
    ratio = (b["logprobs"] - b["old_logprobs"]).exp().detach()
    gains = b["advantages"][:, None].expand(ROWS, WIDTH)
    terms = -torch.min(ratio * gains, ratio.clamp(0.8, 1.28) * gains)
    clipped = (terms != -ratio * gains).double()
    assert means["kept_share"] == pytest.approx(float(b["kept"].sum() / b["valid"].sum()))
    for which, mask in (("kept", b["kept"]), ("valid", b["valid"])):
        assert 0 < means[f"clip_{which}"] == pytest.approx(float(clipped[mask].mean()))
        assert means[f"ratio_gap_{which}"] == pytest.approx(float((ratio - 1).abs()[mask].mean()))
        assert means[f"entropy_{which}"] == pytest.approx(float(entropy[mask].mean()))
    alone = loss_counters(*b.values(), entropy=entropy)
    assert counter_means(alone) == means
    reference = b["old_logprobs"] - 0.3
    options = {"entropy": entropy, "reference_logprobs": reference}
    inside = masked_policy_loss(**b, normalizer="valid", beta=0.1, **options).counters
    gap = (reference - b["logprobs"].detach())[b["kept"]]
    expected = float((gap.exp() - gap - 1).mean())
    assert counter_means(inside)["kl_kept"] == pytest.approx(expected)
    assert counter_means(loss_counters(*b.values(), **options)) == counter_means(inside)
    assert not any(value.requires_grad for value in alone.values())


def test_the_sequence_ratio_is_the_geometric_mean_of_the_rows_ratios():
    b = batch()
    b["kept"] = b["valid"]
    loss, counters = masked_policy_loss(**b, normalizer="valid", ratio="sequence")
    total = 0.0
    for row in range(ROWS):
        gaps = (b["logprobs"] - b["old_logprobs"])[row][b["valid"][row]].detach()
        ratio, gain = math.exp(gaps.mean()), float(b["advantages"][row])
        total -= len(gaps) * min(ratio * gain, min(max(ratio, 0.8), 1.28) * gain)
    assert float(loss.detach()) == pytest.approx(total / int(b["valid"].sum()), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, b["logprobs"])
    for row in range(ROWS):  # one number a row: its tokens share the gradient
        assert gradient[row][b["valid"][row]].unique().numel() == 1
    assert counter_means(counters)["clip_valid"] == counter_means(counters)["clip_kept"]


def test_a_sequence_ratio_under_a_mask_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="those off the mask would be trained through it"):
        masked_policy_loss(**batch(), normalizer="selected", ratio="sequence")


def test_iou_of_masks():
    one, other = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert iou(one, other) == pytest.approx(1 / 3)
    assert iou(one, one) == 1.0
    assert iou(one, ~one) == 0.0
    assert iou(one & ~one, one & ~one) == 1.0


def logits_loss(logits, tokens, old, advantages, valid, kept):
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return masked_policy_loss(logprobs, old, advantages, valid, kept, normalizer="valid").loss


def test_tokens_off_the_mask_contribute_nothing_by_finite_differences_on_logits():
    b = batch()
    tokens, logits = torch.randint(0, 5, (ROWS, WIDTH)), torch.randn(ROWS, WIDTH, 5).double()
    old = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] + 0.1
    rest = (tokens, old, b["advantages"], b["valid"], b["kept"])
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(logits_loss(logits, *rest), logits)
    step, wanted = 1e-6, torch.zeros_like(gradient)
    with torch.no_grad():
        for index in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
            moved = torch.zeros_like(logits)
            moved[tuple(index)] = step
            rise = logits_loss(logits + moved, *rest) - logits_loss(logits - moved, *rest)
            wanted[tuple(index)] = rise / (2 * step)
    assert (wanted[~b["kept"]] == 0).all()
    assert (gradient[~b["kept"]] == 0).all()
    assert torch.allclose(gradient, wanted, atol=1e-9)
    assert (wanted[b["kept"]].abs().amax(-1) > 1e-4).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": torch.ones(ROWS, WIDTH)}, r"valid must be a bool mask.*pass valid.bool\(\)"),
        ({"kept": torch.ones(ROWS, WIDTH).long()}, "kept must be a bool mask, got torch.int64"),
        ({"kept": torch.ones(1, WIDTH, dtype=torch.bool)}, r"valid is \(4, 7\), but kept is"),
        ({"kept": torch.ones(ROWS, WIDTH, dtype=torch.bool)}, r"\[0, 0\] .* kept but not valid"),
        ({"logprobs": torch.full((ROWS, WIDTH), math.nan)}, "logprobs is NaN at .*loss reads"),
        ({"old_logprobs": torch.full((ROWS, WIDTH), math.nan)}, "old_logprobs is NaN at"),
        ({"normalizer": "all"}, "normalizer must be one of .*'all'"),
        ({"ratio": "row"}, "ratio one of .*'row'"),
        ({"clip_low": 1.5}, "clip_low must be 0 to 1"),
        ({"clip_high": -0.1}, "clip_high 0 or more"),
        ({"beta": 0.1}, "reference_logprobs missing"),
        ({"reference_logprobs": torch.zeros(ROWS, WIDTH)}, "beta=0.0, reference_logprobs given"),
        (
            {"beta": 1.0, "reference_logprobs": torch.full((ROWS, WIDTH), math.nan)},
            "reference_logprobs is NaN",
        ),
        ({"kl_denominator": 3.0}, "kl_denominator belongs to beta"),
        ({"denominator": 0.0}, "denominator must be above 0, got 0.0"),
        ({"denominator": torch.zeros(ROWS, 1)}, "denominator must be above 0"),
    ],
)
def test_what_would_train_something_else_in_silence_is_refused(change, message):
    users = inspect.unwrap(masked_policy_loss)  # without the tests' own check of types
    with pytest.raises(ValueError, match=message):
        users(**batch() | {"normalizer": "valid"} | change)


def test_a_kl_at_all_tokens_needs_them_all():
    b = batch()
    b["logprobs"] = b["logprobs"].detach().where(b["kept"], torch.nan)
    options = {"normalizer": "valid", "beta": 0.1, "reference_logprobs": b["old_logprobs"]}
    assert masked_policy_loss(**b, **options).loss.isfinite()
    with pytest.raises(ValueError, match="logprobs is NaN at .*loss reads"):
        masked_policy_loss(**b, **options, mask_kl=False)
