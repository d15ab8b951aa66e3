"""What an update's loss reads: which tokens, with what weights, under which options."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..loss import kl_terms, masked_policy_loss, policy_terms
from .batch import UpdateBatch


@dataclass(frozen=True)
class Objective:
    """The clipped policy loss of a batch, and the KL to a reference where there is one."""

    batch: UpdateBatch
    """The step's rows."""
    denominator: float | Tensor
    """What the terms are divided by; broadcasts to the tokens."""
    kl_denominator: float | Tensor | None = None
    """What those of the KL are divided by; None for the same."""
    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio counts up to 1 + clip_high."""
    ratio: str = "token"
    """"token" or "sequence"."""
    beta: float = 0.0
    """Weight of the KL."""
    mask_kl: bool = True
    """Whether the KL is taken at kept tokens only."""

    def check(self, kept: Bool[Tensor, "rows seq"], rows: Int[Tensor, " rows"]) -> None:
        """Raise where `masked_policy_loss` would, before anything is computed.

        Raises:
            ValueError: see there; or an advantage that is NaN, or a KL at all valid tokens
                whose denominator is not given.
        """
        if self.beta and not self.mask_kl and self.kl_denominator is None:
            raise ValueError(
                "with mask_kl=False the KL is summed over all valid tokens: pass what it is "
                "divided by as kl_denominator, beside denominator"
            )
        if kept.dtype != torch.bool or kept.shape != (len(rows), self.batch.tokens.shape[1]):
            raise ValueError(
                f"kept must be a bool mask of {len(rows)} rows, "
                f"{self.batch.tokens.shape[1]} wide, got {kept.dtype} {tuple(kept.shape)}"
            )
        unknown = self.batch.token_advantages[rows].isnan() & kept
        if bool(unknown.any()):
            where = unknown.nonzero()[0].tolist()
            raise ValueError(f"the advantage at {where} (row, position) is NaN")
        self.over(torch.zeros_like(self.batch.old_logprobs[rows]), rows, kept)

    def over(
        self,
        logprobs: Float[Tensor, "rows seq"],
        rows: Int[Tensor, " rows"],
        kept: Bool[Tensor, "rows seq"],
    ) -> Float[Tensor, ""]:
        """Give the loss of some rows from all their log-probabilities."""
        part = self.batch.take(rows).to(logprobs.device)
        own, kl = (
            value[rows].to(logprobs.device) if isinstance(value, Tensor) and value.dim() else value
            for value in (self.denominator, self.kl_denominator)
        )
        return masked_policy_loss(
            logprobs, part.old_logprobs, part.advantages, part.valid, kept.to(logprobs.device),
            normalizer="valid", denominator=own, kl_denominator=kl, clip_low=self.clip_low,
            clip_high=self.clip_high, ratio=self.ratio, beta=self.beta, mask_kl=self.mask_kl,
            reference_logprobs=part.reference_logprobs if self.beta else None,
        ).loss  # fmt: skip

    def read(self, kept: Bool[Tensor, "rows seq"], rows: Tensor) -> Bool[Tensor, "rows seq"]:
        """Give the tokens of some rows whose log-probability gets a gradient."""
        if self.beta:
            return kept if self.mask_kl else self.batch.valid[rows]
        return kept & (self.batch.token_advantages[rows] != 0)

    def terms(
        self, kept: Bool[Tensor, "rows seq"], rows: Tensor, read: tuple[Tensor, Tensor], device
    ) -> "Terms":
        """Give what the loss needs at some tokens, ``read`` being rows and positions of them."""
        where = (rows[read[0]], read[1])
        ones = torch.ones_like(self.batch.old_logprobs)
        over = [
            None if value is None else (1.0 / value * ones)[where]
            for value in (self.denominator, self.kl_denominator)
        ]
        trains, reference = kept[read], self.batch.reference_logprobs
        values = (
            self.batch.old_logprobs[where].where(trains, 0.0),
            self.batch.token_advantages[where].where(trains, 0.0),
            over[0].where(trains, 0.0),
            reference[where] if self.beta else None,
            self.beta * (over[0] if over[1] is None else over[1]) if self.beta else None,
        )
        moved = (None if value is None else value.to(device) for value in values)
        return Terms(*moved, self.clip_low, self.clip_high)


@dataclass(frozen=True)
class Terms:
    """The loss at some tokens as a function of their log-probabilities."""

    old_logprobs: Float[Tensor, " tokens"]
    """Of the policy that the ratio is taken against."""
    advantages: Float[Tensor, " tokens"]
    """0 at tokens that do not train."""
    weights: Float[Tensor, " tokens"]
    """What each policy term counts."""
    reference_logprobs: Float[Tensor, " tokens"] | None
    """Of the policy that the KL is taken against."""
    kl_weights: Float[Tensor, " tokens"] | None
    """What each KL term counts."""
    clip_low: float
    """The ratio counts down to 1 - clip_low."""
    clip_high: float
    """The ratio counts up to 1 + clip_high."""

    def __call__(self, logprobs: Float[Tensor, " some"], tokens: slice) -> Float[Tensor, " some"]:
        """Give the terms of some of the tokens."""
        found = self.weights[tokens] * policy_terms(
            logprobs, self.old_logprobs[tokens], self.advantages[tokens],
            clip_low=self.clip_low, clip_high=self.clip_high,
        )  # fmt: skip
        if self.reference_logprobs is None:
            return found
        return found + self.kl_weights[tokens] * kl_terms(logprobs, self.reference_logprobs[tokens])
