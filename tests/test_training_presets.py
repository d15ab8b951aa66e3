"""Presets against references written here from the published descriptions, not from our code."""

import dataclasses
import math

import pytest
import torch
from ranks import on_ranks

from entropy_probe.loss import masked_policy_loss
from entropy_probe.training import Selection, keep_tokens, preset, token_denominator
from entropy_probe.training.presets import PRESETS, presets_table

ROWS, WIDTH = 12, 15
MICRO = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3])


def batch(seed: int = 0, *, tied: bool = False) -> dict[str, torch.Tensor]:
    """Give a step's rows in four micro-batches, NaN outside ``valid``."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, WIDTH + 1, (ROWS,), generator=random)
    valid = (torch.arange(WIDTH) < lengths[:, None]) & (torch.arange(WIDTH) > 0)
    entropy = torch.rand(ROWS, WIDTH, generator=random) * 3
    if tied:
        entropy = torch.randint(0, 3, (ROWS, WIDTH), generator=random) / 2.0
    new = -torch.rand(ROWS, WIDTH, generator=random, dtype=torch.float64) * 2
    old = new + torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64) / 2
    reference = new + torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64) / 3
    return {
        "entropy": entropy.where(valid, torch.nan),
        "valid": valid,
        "new": new.where(valid, torch.nan),
        "old": old.where(valid, torch.nan),
        "reference": reference.where(valid, torch.nan),
        "advantages": torch.randn(ROWS, generator=random, dtype=torch.float64),
        "micro_batches": MICRO,
        "rows": torch.arange(ROWS),
    }


def pick(b: dict, rows) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in b.items()}


def ours(selection: Selection, b: dict, *, beta: float = 0.0, gather=None):
    """Give the mask, this rank's part of the step's loss and its gradient, as a trainer would."""
    kept = keep_tokens(
        selection, b["entropy"], b["valid"], rows=b["rows"], groups=b["rows"] // 4,
        micro_batches=b["micro_batches"], gather=gather,
    ).mask  # fmt: skip
    counted = {"micro_batches": b["micro_batches"], "gather": gather}
    divisor = token_denominator(selection, kept, b["valid"], **counted)
    kl_divisor = token_denominator(selection, kept, b["valid"], **counted, kl=True)
    new, total = b["new"].clone().requires_grad_(), 0.0
    for number in b["micro_batches"].unique():
        part = b["micro_batches"] == number
        options = {"beta": beta, "reference_logprobs": b["reference"][part]} if beta else {}
        if beta:
            options["kl_denominator"] = kl_divisor[part] if kl_divisor.dim() else kl_divisor
        total = total + masked_policy_loss(
            new[part], b["old"][part], b["advantages"][part], b["valid"][part], kept[part],
            normalizer=selection.normalizer, mask_kl=selection.mask_kl,
            denominator=divisor[part] if divisor.dim() else divisor, **options,
        ).loss  # fmt: skip
    return kept, total.detach(), torch.autograd.grad(total, new)[0]


def terms_of(b: dict, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the clipped terms and the KL of each token, zero where it is not valid."""
    valid = b["valid"]
    gap = new.where(valid, 0.0) - b["old"].where(valid, 0.0)
    gain = b["advantages"][:, None]
    terms = -torch.minimum(gap.exp() * gain, gap.exp().clip(0.8, 1.28) * gain)
    away = b["reference"].where(valid, 0.0) - new.where(valid, 0.0)
    return terms * valid, (away.exp() - 1 - away) * valid


# The references: the mask of one micro-batch of one rank, then the loss of one rank.


def top_k(values: torch.Tensor, k: int) -> torch.Tensor:
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.topk(k).indices] = True
    return mask


def authors_mask(entropy, valid, fraction):
    out, values = torch.zeros_like(valid), entropy[valid]
    if len(values):
        out[valid] = top_k(values, max(1, int(len(values) * fraction + 0.9999)))
    return out


def swift_mask(entropy, valid, fraction):
    holes = entropy.where(valid, torch.nan).flatten()
    if holes.isnan().all():
        return torch.zeros_like(valid)
    return (entropy >= torch.nanquantile(holes, 1 - fraction)) & valid


def lightrft_mask(entropy, valid, fraction):
    out = torch.zeros_like(valid)
    for row in range(len(valid)):
        if valid[row].any():
            k = max(1, int(int(valid[row].sum()) * fraction))
            out[row, valid[row]] = top_k(entropy[row, valid[row]], k)
    return out


def prime_mask(entropy, valid, fraction):
    values = entropy[valid]
    k = max(int(fraction * len(values)), 1)
    least = sorted(values.tolist(), reverse=True)[k - 1]
    return (entropy >= least) & valid


MASKS = {
    "paper": authors_mask, "paper_v1": authors_mask, "swift": swift_mask,
    "lightrft": lightrft_mask, "prime_rl": prime_mask,
}  # fmt: skip


def masks_of(name: str, b: dict, fraction: float) -> torch.Tensor:
    out = torch.zeros_like(b["valid"])
    for number in b["micro_batches"].unique():
        part = b["micro_batches"] == number
        out[part] = MASKS[name](b["entropy"][part], b["valid"][part], fraction)
    return out


def reference_loss(name: str, b: dict, mask, new, *, beta: float, tokens: float, ranks: int):
    """Give a rank's loss, whose mean over the ranks is the step's."""
    terms, kl = terms_of(b, new)
    total = 0.0
    for number in b["micro_batches"].unique():
        part = b["micro_batches"] == number
        m, v = mask[part].double(), b["valid"][part].double()
        if name.startswith("paper"):  # means of micro-batches, weighed by their rows
            weight = part.sum() / len(part)
            count = m.sum() if name == "paper" else v.sum()
            mean = (terms[part] * m).sum() / count + beta * (kl[part] * v).sum() / v.sum()
            total = total + mean * weight
        elif name == "lightrft":  # means of rows
            mean = (terms[part] * m).sum(1) / m.sum(1) + beta * (kl[part] * v).sum(1) / v.sum(1)
            total = total + mean.sum() / len(part)
        else:  # sums over the tokens of all ranks; their mean over the ranks is taken later
            total = total + ((terms[part] * m + beta * kl[part]) * v).sum() / (tokens / ranks)
    return total


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("fraction", [0.2, 0.35])
@pytest.mark.parametrize("name", MASKS)
def test_mask_loss_and_gradient_are_the_sources(name, fraction, beta):
    for seed in range(3):
        b = batch(seed)
        kept, loss, gradient = ours(preset(name, fraction=fraction), b, beta=beta)
        assert torch.equal(kept, masks_of(name, b, fraction))
        new = b["new"].clone().requires_grad_()
        tokens = float(b["valid"].sum())
        wanted = reference_loss(name, b, kept, new, beta=beta, tokens=tokens, ranks=1)
        (slope,) = torch.autograd.grad(wanted, new)
        assert float(loss) == pytest.approx(float(wanted.detach()), rel=1e-6)
        assert torch.allclose(gradient, slope, rtol=1e-6, atol=1e-12)
        assert gradient.count_nonzero() > 2


@pytest.mark.parametrize("name", MASKS)
def test_on_two_ranks_the_losses_add_up_to_the_mean_of_the_sources(name):
    b = batch(7)
    halves = [pick(b, slice(0, 5)), pick(b, slice(5, 10))]  # ranks have as many rows each
    selection, tokens = preset(name), float(b["valid"][:10].sum())
    found = on_ranks(
        lambda gather, b: ours(selection, b, gather=gather), [{"b": h} for h in halves]
    )
    wanted = 0.0
    for half, (kept, _, _) in zip(halves, found, strict=True):
        assert torch.equal(kept, masks_of(name, half, 0.2))
        wanted += reference_loss(name, half, kept, half["new"], beta=0.0, tokens=tokens, ranks=2)
    assert float(sum(loss for _, loss, _ in found)) == pytest.approx(float(wanted) / 2, rel=1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_ties_are_counted_or_all_kept_as_by_the_source(name):
    for seed in range(5):
        b = batch(seed, tied=True)
        kept = ours(preset(name), b)[0]
        wanted = masks_of(name, b, 0.2)
        if name in ("swift", "prime_rl"):
            assert torch.equal(kept, wanted)
        for number in b["micro_batches"].unique():
            part = b["micro_batches"] == number
            assert kept[part].sum() == wanted[part].sum()
        assert kept.any()
        assert b["entropy"][kept].sum() == pytest.approx(float(b["entropy"][wanted].sum()))


def test_five_readings_of_the_same_sentence_differ_by_a_factor_of_five():
    b = batch(1)
    norms = {name: float(ours(preset(name), b)[2].norm()) for name in MASKS}
    assert norms["paper"] / norms["paper_v1"] == pytest.approx(5, rel=0.25)
    assert norms["paper"] / norms["swift"] > 3


def test_a_preset_is_a_selection_with_its_share_and_temperature():
    assert preset("trl", fraction=0.1, temperature=0.6) == Selection(
        fraction=0.1, scope="global_micro_batch", rule="threshold", quantile="linear",
        entropy_source="current", normalizer="valid", mask_kl=False, temperature=0.6,
    )  # fmt: skip
    assert preset("lightrft").temperature == 1.0
    with pytest.raises(ValueError, match="lightrft takes entropies at temperature 1 whatever"):
        preset("lightrft", temperature=0.6)
    with pytest.raises(ValueError, match="preset must be one of .*'paper'.*got 'verl'"):
        preset("verl")


def test_the_table_says_every_fact_of_every_preset():
    lines = presets_table().splitlines()
    assert len(lines) == 2 + len(PRESETS)
    for line, (name, each) in zip(lines[2:], PRESETS.items(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == f"`{name}`"
        facts = dataclasses.asdict(each)
        assert all(facts[k] in cells for k in ("source", "selects", "divides", "differs"))
        assert f"the {each.selection.entropy_source} policy" in cells


def test_denominators_of_a_step():
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    kept = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    parts = torch.tensor([5, 5, 9, 9])

    def of(kl=False, **options):
        found = token_denominator(Selection(**options), kept, valid, micro_batches=parts, kl=kl)
        return found.flatten().tolist()

    assert of() == [3.0]
    assert of(normalizer="valid") == [7.0]
    assert of(kl=True) == [3.0]
    assert of(kl=True, mask_kl=False) == [7.0]
    # The last row has no valid token: there are three rows, two and one in the micro-batches.
    assert of(average="sequence") == [6.0, 3.0, 3.0, 3.0]
    assert of(average="micro_batch") == [4.5, 4.5, 3.0, 3.0]
    assert of(average="micro_batch", normalizer="valid") == [9.0, 9.0, 3.0, 3.0]
    none = torch.zeros_like(valid)
    for average in ("step", "sequence", "micro_batch"):
        found = token_denominator(Selection(average=average), none, none, micro_batches=parts)
        assert (found > 0).all()
        assert math.isfinite(float(found.sum()))
    with pytest.raises(ValueError, match=r"needs micro_batches, \[4\].*got nothing"):
        token_denominator(Selection(average="micro_batch"), kept, valid)
