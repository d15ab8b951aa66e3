"""Sampling at one temperature where the model is unsure, and at another one elsewhere."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_probe.entropy import token_entropy
from entropy_probe.models.engine import Draws, Engine, engine_of


@dataclass(frozen=True)
class TwoTemperatures:
    """Divides a step's logits by a temperature that its entropy chooses.

    T' = T_high at a fork, else T_low, a fork being a step whose entropy at temperature 1 reaches
    the threshold (arXiv 2506.01939, section on decoding temperature).
    """

    threshold: float
    """Nats: the entropy from which on a step is a fork."""
    at_forks: float
    """Temperature there; 0 takes the most probable token."""
    elsewhere: float
    """Temperature at all other steps."""

    def __post_init__(self) -> None:
        """Refuse temperatures that are none."""
        for name in ("at_forks", "elsewhere"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a temperature, 0 (greedy) or more, got {value}")

    def describe(self) -> str:
        """Say what is done, in words."""
        return (
            f"temperature {self.at_forks:g} at steps of {self.threshold:.4g} nats or more, "
            f"{self.elsewhere:g} at others"
        )

    def sampling(self, rows: int, steps: int) -> AbstractContextManager:
        """Need nothing around a sampling."""
        del rows, steps
        return nullcontext()

    def scoring(
        self, rows: Int[Tensor, " batch"], prompt_lengths: Int[Tensor, " batch"]
    ) -> AbstractContextManager:
        """Refuse: what a pass over given tokens computes is not what was drawn from."""
        raise ValueError(
            "two temperatures are for `sample`: to score its tokens, pass the model itself"
        )

    def revise(self, draws: Draws, again: Callable[[], Tensor]) -> Float[Tensor, "batch vocab"]:
        """Give the logits to draw from, in float32 as `sample` divides them.

        Raises:
            ValueError: `sample` was given a temperature besides, 0 included.
        """
        del again  # the stream stays as it is
        if draws.drawn_at != 1:
            raise ValueError(
                f"two temperatures take the place of temperature={draws.drawn_at:g}: pass 1"
            )
        logits = draws.logits.float()
        fork = token_entropy(logits) >= self.threshold
        return torch.where(
            fork[:, None], _divided(logits, self.at_forks), _divided(logits, self.elsewhere)
        )


def tempered(model, temperatures: TwoTemperatures) -> Engine:
    """Give what `sample` takes in a model's place, to draw at two temperatures.

    The record's entropies and log-probabilities are of what was drawn from, so after the
    division; tokens are those of plain sampling where both temperatures are 1.

    Args:
        model: as for `sample`.
        temperatures: where to draw at which.

    Raises:
        ValueError: a model whose steps are edited already.

    >>> from entropy_probe import load, sample
    >>> model, tokenizer = load("organism:amenable")
    >>> cool = tempered(model, TwoTemperatures(threshold=0.5, at_forks=0.3, elsewhere=1.0))
    >>> len(sample(cool, tokenizer, ["Compute 3"], max_new_tokens=4))
    1
    """
    engine = engine_of(model)
    if engine.editor is not None:
        raise ValueError(f"the model's steps are edited already: {engine.edit}")
    words = filter(None, (engine.edit, temperatures.describe()))
    return dataclasses.replace(engine, editor=temperatures, edit="; ".join(words))


def _divided(logits: Float[Tensor, "batch vocab"], temperature: float) -> Tensor:
    """Give logits / temperature, in the limit of 0 nothing but the first of the largest."""
    if temperature > 0:
        return logits / temperature
    best = torch.zeros_like(logits, dtype=torch.bool)
    best.scatter_(1, logits.argmax(dim=1, keepdim=True), True)
    return logits.masked_fill(~best, -math.inf)
