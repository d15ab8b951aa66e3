"""Which of the texts that passed are kept: a bounded number, the last ones or a fair sample."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.keeping import StateKeeper

from .passes import Passing, Texts
from .recorded import Recorded, pick_row

POSITIONS = ("forks", "all")
CHOICES = ("sample", "latest")


@dataclass(frozen=True)
class Keeping:
    """What is kept of the texts that pass, checked."""

    keep: int
    """Texts at most."""
    choose: str
    """Which, once there are more: "sample" is a uniform sample of all, "latest" the last ones."""
    layers: list[int]
    """Blocks whose states are kept."""
    residual_positions: str
    """"forks": of each batch's forks and as many random other tokens; "all" valid tokens."""
    fraction: float
    """Share of a batch's tokens that are forks."""
    seed: int
    """Of the sample, and of the random other tokens."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the argument."""
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1:
            raise ValueError(f"keep must be a whole number of 1 or more, got {self.keep!r}")
        if self.choose not in CHOICES:
            raise ValueError(f"choose must be one of {CHOICES}, got {self.choose!r}")
        if self.residual_positions not in POSITIONS:
            raise ValueError(
                f"residual_positions must be one of {POSITIONS}, got {self.residual_positions!r}"
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")

    @property
    def words(self) -> str:
        """Say which positions hold states."""
        if not self.layers:
            return "none"
        if self.residual_positions == "all":
            return "all valid positions"
        return (
            f"top {self.fraction:.6g} of each batch's valid tokens by entropy (exact), and as many "
            "random others"
        )


class Reservoir:
    """Takes batches of texts, and keeps a bounded number of them."""

    def __init__(self, keeping: Keeping) -> None:
        """Begin with nothing."""
        self.keeping = keeping
        self.seen = 0
        self.rows: list[Recorded] = []
        # Not the global generator: the loop's own random numbers must stay what they are.
        self._chance = random.Random(keeping.seed)

    def take(self, batch: Passing, stops: Collection[int]) -> None:
        """Choose among the texts of a batch; generated ones end at the first of ``stops``."""
        texts = batch.texts(stops)
        states, captured, controls = self._states(batch, texts)
        for row in texts.valid.any(dim=1).nonzero()[:, 0].tolist():
            slot = self._slot()
            if slot is not None:
                self.rows[slot : slot + 1] = [
                    pick_row(
                        texts, row, states, captured, controls, batch=batch.number,
                        training=batch.training,
                    )
                ]  # fmt: skip

    def _slot(self) -> int | None:
        """Give the place at which the next text is kept: what is there goes; None drops it."""
        self.seen += 1
        if self.seen <= self.keeping.keep:
            return self.seen - 1
        if self.keeping.choose == "latest":
            return (self.seen - 1) % self.keeping.keep
        slot = self._chance.randrange(self.seen)
        return slot if slot < self.keeping.keep else None

    def _states(
        self, batch: Passing, texts: Texts
    ) -> tuple[
        Mapping[int, Float[Tensor, "batch seq d_model"]],
        Bool[Tensor, "batch seq"],
        Bool[Tensor, "batch seq"],
    ]:
        """Give a batch's states as they passed, and (captured, controls) of its tokens."""
        if not self.keeping.layers:
            nothing = torch.zeros_like(texts.valid)
            return {}, nothing, nothing
        states = {layer: batch.states(layer) for layer in self.keeping.layers}
        keeper = StateKeeper(
            [], self.keeping.residual_positions, fraction=self.keeping.fraction,
            most_tokens=int(texts.valid.sum()), seed=self.keeping.seed, d_model=0,
        )  # fmt: skip
        rows, places = texts.valid.nonzero(as_tuple=True)
        keeper.add(rows, places, texts.entropy[rows, places], {})
        captured, controls, _ = keeper.finish(texts.entropy, texts.valid)
        return states, captured, controls
