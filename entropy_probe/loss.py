"""The clipped policy loss at the kept tokens, and what to log about it."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NORMALIZERS = ("selected", "valid")
RATIOS = ("token", "sequence")


class LossOutput(NamedTuple):
    """A loss, and sums over its tokens."""

    loss: Float[Tensor, ""]
    """Differentiable through ``logprobs``; 0 where nothing is kept."""
    counters: dict[str, Tensor]
    """Sums over tokens (see `loss_counters`): add them over micro-batches and ranks."""


def policy_terms(
    logprobs: Float[Tensor, "*tokens"],
    old_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Float[Tensor, "*tokens"]:
    """Give each token's -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(new - old).

    PPO's clipped objective with DAPO's two bounds (arXiv 2503.14476). ``clip_low=1,
    clip_high=inf`` never clips.
    """
    return _clipped((logprobs - old_logprobs).exp(), advantages, clip_low, clip_high)


def kl_terms(
    logprobs: Float[Tensor, "*tokens"], reference_logprobs: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Give each token's estimate of KL(policy | reference): exp(d) - d - 1, d = reference - new.

    It is never negative, and unbiased for tokens that the policy sampled ("k3", Schulman 2020).
    """
    gap = reference_logprobs - logprobs
    return gap.exp() - gap - 1


def masked_policy_loss(
    logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    kept: Bool[Tensor, "batch seq"],
    *,
    normalizer: str,
    denominator: float | Tensor | None = None,
    kl_denominator: float | Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    ratio: str = "token",
    beta: float = 0.0,
    reference_logprobs: Float[Tensor, "batch seq"] | None = None,
    mask_kl: bool = True,
    entropy: Float[Tensor, "batch seq"] | None = None,
) -> LossOutput:
    """Give the sum of the kept tokens' terms over a count: arXiv 2506.01939, Eq. 6.

    Tokens that are not kept get a gradient of exactly 0, whatever stands there, NaN included;
    with ``kept`` equal to ``valid`` this is the plain objective, bit by bit. Where a step's rows
    come in several micro-batches or ranks, pass the step's count as ``denominator`` to each:
    their losses then add up to the loss of the whole, however they were split.

    Args:
        logprobs: of the current policy, nats; may be NaN (not computed) where they are not read.
        old_logprobs: of the policy that the ratio is taken against.
        advantages: one a row, or one a token.
        valid: the tokens that take part.
        kept: the tokens among them that train.
        normalizer: "selected" divides by the number of kept tokens (the paper's second version
            and its authors' code), "valid" by that of valid ones (its first version, TRL).
        denominator: what to divide by instead of this batch's own count: a number, or a tensor
            that broadcasts to the tokens, such as [batch 1] for a mean over each row's tokens
            and then over rows (`entropy_probe.training.denominators.token_denominator`).
        kl_denominator: the same for the KL; needed where its count is another one:
            ``normalizer="selected", mask_kl=False`` with a ``denominator``.
        clip_low: how far below 1 the ratio counts.
        clip_high: how far above 1 the ratio counts.
        ratio: "token", or "sequence": exp of the mean log-ratio of the row's valid tokens
            (GSPO, arXiv 2507.18071), which needs ``kept`` equal to ``valid``.
        beta: weight of the KL to a reference policy; 0 leaves it out.
        reference_logprobs: of the reference; belongs to ``beta``.
        mask_kl: whether the KL, too, is taken at kept tokens only.
        entropy: nats; for the counters, never differentiated.

    Raises:
        ValueError: masks that are not bool, kept tokens that are not valid, NaN at a token that
            the loss reads, a sequence ratio under a mask, or an option that would not be read.
    """
    _check_masks(valid, kept)
    _check_options(normalizer, ratio, clip_low, clip_high, beta, reference_logprobs)
    kl_mask = kept if mask_kl else valid
    _check_numbers(logprobs, kl_mask if beta else kept, "logprobs")
    _check_numbers(old_logprobs, kept, "old_logprobs")
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(valid)
    # Put 0 where nothing is read, before any arithmetic: 0 times an infinite gradient is NaN.
    old, gains = old_logprobs.where(kept, 0.0), advantages.where(kept, 0.0)
    ratios = (logprobs.where(kept, 0.0) - old).exp()
    if ratio == "sequence":
        ratios = _sequence_ratios(logprobs, old_logprobs, valid, kept)
    terms = _clipped(ratios, gains, clip_low, clip_high).where(kept, 0.0)
    counted = kept if normalizer == "selected" else valid
    loss = _over(terms, counted if denominator is None else denominator)
    with torch.no_grad():
        seen = ratios if ratio == "sequence" else (logprobs - old_logprobs).exp()
        counters = _sums(seen, advantages, valid, kept, clip_low, clip_high, entropy)
    if beta:
        _check_numbers(reference_logprobs, kl_mask, "reference_logprobs")
        current = logprobs.where(kl_mask, 0.0)
        terms = kl_terms(current, reference_logprobs.where(kl_mask, 0.0))
        divisor = _kl_denominator(denominator, kl_denominator, normalizer, mask_kl)
        own = valid if normalizer == "valid" else kl_mask
        loss = loss + beta * _over(terms.where(kl_mask, 0.0), own if divisor is None else divisor)
        counters |= _both("kl", kl_terms(logprobs, reference_logprobs).detach(), valid, kept)
    elif kl_denominator is not None:
        raise ValueError("kl_denominator belongs to beta, which is 0: it would not be read")
    return LossOutput(loss, counters)


@torch.no_grad()
def loss_counters(
    logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    kept: Bool[Tensor, "batch seq"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    entropy: Float[Tensor, "batch seq"] | None = None,
    reference_logprobs: Float[Tensor, "batch seq"] | None = None,
) -> dict[str, Tensor]:
    """Give sums to log, over the valid and over the kept tokens; `counter_means` divides them.

    ``valid`` and ``kept`` count tokens; ``clip_*`` those whose ratio is clipped, ``ratio_gap_*``
    adds up |ratio - 1|, ``entropy_*`` nats, ``kl_*`` the `kl_terms` to a reference. A
    log-probability that was not computed is NaN, and makes the sum over the valid tokens NaN:
    unknown, not zero.
    """
    _check_masks(valid, kept)
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(valid)
    ratios = (logprobs - old_logprobs).exp()
    sums = _sums(ratios, advantages, valid, kept, clip_low, clip_high, entropy)
    if reference_logprobs is None:
        return sums
    return sums | _both("kl", kl_terms(logprobs, reference_logprobs), valid, kept)


def counter_means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Give ``kept_share`` and the mean of each counter over its tokens; unknown ones are left out.

    Where no token is kept there is no mean over kept tokens either.
    """
    counts = {name: float(sums[name]) for name in ("valid", "kept", "first") if name in sums}
    means = {"kept_share": counts["kept"] / counts["valid"]} if counts["valid"] else {}
    for name, value in sums.items():
        count = counts.get(name.rpartition("_")[2], 0.0)
        if name not in counts and count and not math.isnan(float(value)):
            means[name] = float(value) / count
    return means


@torch.no_grad()
def iou(one: Bool[Tensor, "*tokens"], other: Bool[Tensor, "*tokens"]) -> float:
    """Give the share of tokens in both masks among those in either; 1.0 for two empty masks."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def _clipped(ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Give -min(r A, clip(r) A)."""
    return -torch.min(ratios * advantages, ratios.clamp(1 - clip_low, 1 + clip_high) * advantages)


def _sequence_ratios(logprobs: Tensor, old: Tensor, valid: Tensor, kept: Tensor) -> Tensor:
    """Give each row's ratio, at all of its positions."""
    if not torch.equal(valid, kept):
        raise ValueError(
            'ratio="sequence" needs every valid token to be kept: a row\'s ratio is made of all '
            "its tokens, so those off the mask would be trained through it; use "
            'ratio="token", or keep all tokens'
        )
    gaps = logprobs.where(valid, 0.0) - old.where(valid, 0.0)
    means = gaps.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return means.exp().expand_as(gaps)


def _over(terms: Tensor, counted: Tensor | float) -> Tensor:
    """Add the terms up, over the number of tokens in a mask or over what was given."""
    if isinstance(counted, Tensor) and counted.dtype == torch.bool:
        return terms.sum() / counted.sum().clamp(min=1)
    if not bool(torch.as_tensor(counted > 0).all()):
        raise ValueError(f"denominator must be above 0, got {counted}; nothing counted: pass 1")
    if isinstance(counted, Tensor) and counted.dim():
        return (terms / counted).sum()
    return terms.sum() / counted


def _kl_denominator(
    denominator: Tensor | float | None,
    kl_denominator: Tensor | float | None,
    normalizer: str,
    mask_kl: bool,
) -> Tensor | float | None:
    """Give what the KL is divided by: the policy term's count where both count the same tokens."""
    if kl_denominator is not None or denominator is None:
        return kl_denominator
    if normalizer == "selected" and not mask_kl:
        raise ValueError(
            'with normalizer="selected" and mask_kl=False the KL is a mean over the valid '
            "tokens: pass their number in the whole step as kl_denominator, beside denominator"
        )
    return denominator


def _sums(
    ratios: Tensor,
    advantages: Tensor,
    valid: Tensor,
    kept: Tensor,
    clip_low: float,
    clip_high: float,
    entropy: Tensor | None,
) -> dict[str, Tensor]:
    """Add up what to log; NaN ratios are tokens that were not computed."""
    above = (ratios > 1 + clip_high) & (advantages > 0)
    below = (ratios < 1 - clip_low) & (advantages < 0)
    clipped = (above | below).to(ratios.dtype).where(~ratios.isnan(), torch.nan)
    sums = {"valid": valid.sum(), "kept": kept.sum()}
    sums |= _both("clip", clipped, valid, kept) | _both(
        "ratio_gap", (ratios - 1).abs(), valid, kept
    )
    return sums if entropy is None else sums | _both("entropy", entropy.detach(), valid, kept)


def _both(name: str, values: Tensor, valid: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Add a number up over the valid and over the kept tokens."""
    return {
        f"{name}_{which}": values.where(mask, 0.0).sum()
        for which, mask in (("valid", valid), ("kept", kept))
    }


def _check_masks(valid: Tensor, kept: Tensor) -> None:
    """Refuse masks that would index or multiply into something else."""
    for name, mask in (("valid", valid), ("kept", kept)):
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} must be a bool mask, got {mask.dtype}: pass {name}.bool()")
    if valid.shape != kept.shape:
        raise ValueError(f"valid is {tuple(valid.shape)}, but kept is {tuple(kept.shape)}")
    if bool((kept & ~valid).any()):
        where = (kept & ~valid).nonzero()[0].tolist()
        raise ValueError(f"the token at {where} (row, position) is kept but not valid")


def _check_numbers(values: Tensor, mask: Tensor, name: str) -> None:
    """Refuse NaN where the loss reads."""
    if bool((values.isnan() & mask).any()):
        where = (values.isnan() & mask).nonzero()[0].tolist()
        raise ValueError(f"{name} is NaN at {where} (row, position), which the loss reads")


def _check_options(
    normalizer: str,
    ratio: str,
    clip_low: float,
    clip_high: float,
    beta: float,
    reference_logprobs: Tensor | None,
) -> None:
    """Refuse options that do not exist, or that would not be read."""
    if normalizer not in NORMALIZERS or ratio not in RATIOS:
        raise ValueError(
            f"normalizer must be one of {NORMALIZERS} and ratio one of {RATIOS}, got "
            f"{normalizer!r}, {ratio!r}"
        )
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(
            "clip_low must be 0 to 1 and clip_high 0 or more (1 and inf never clip), got "
            f"{clip_low} and {clip_high}"
        )
    if (beta != 0) != (reference_logprobs is not None):
        raise ValueError(
            f"reference_logprobs belongs to a beta that is not 0: got beta={beta}, "
            f"reference_logprobs {'missing' if reference_logprobs is None else 'given'}"
        )
