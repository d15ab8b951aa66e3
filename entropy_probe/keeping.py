"""Which residuals stay: states are held until their row ends, then only candidates are kept."""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .drawing import uniform_noise
from .forking import forking_mask

POSITIONS = ("forks", "all", "none")


class StateKeeper:
    """Collects states of finished rows, and keeps no more than the final choice may need.

    "all" keeps every state. "forks" ends with the exact forking tokens of the batch and as many
    random other positions, without which nothing can be compared. How many forks there will be
    is known only at the end, so meanwhile the pool holds every position that can still become
    one, by an upper bound on the number of tokens.
    """

    def __init__(
        self,
        layers: list[int],
        positions: str,
        *,
        fraction: float,
        most_tokens: int,
        seed: int,
        d_model: int,
    ) -> None:
        """Prepare to keep some layers' states.

        Args:
            layers: the layers, keys of what `add` will be given.
            positions: "forks" or "all".
            fraction: share of the valid tokens that are forks.
            most_tokens: upper bound on the valid tokens of the whole batch.
            seed: seed of the choice of random positions.
            d_model: width of a state.
        """
        self.layers = layers
        self.positions = positions
        self.fraction = fraction
        self.seed = seed
        self.d_model = d_model
        self._limit = math.ceil(Fraction(repr(float(fraction))) * most_tokens)
        self._rows = torch.empty(0, dtype=torch.long)
        self._places = torch.empty(0, dtype=torch.long)
        self._entropy = torch.empty(0)
        self._states: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def add(
        self,
        rows: Int[Tensor, " n"],
        places: Int[Tensor, " n"],
        entropy: Float[Tensor, " n"],
        states: Mapping[int, Float[Tensor, "n d_model"]],
    ) -> None:
        """Take the states that predicted the tokens at (row, place) of the finished record."""
        self._rows = torch.cat([self._rows, rows.cpu().long()])
        self._places = torch.cat([self._places, places.cpu().long()])
        self._entropy = torch.cat([self._entropy, entropy.cpu().float()])
        for layer in self.layers:
            self._states[layer].append(states[layer].cpu())
        # Trimmed only when it halves the pool, so that a token is copied a few times at most.
        if self.positions == "forks" and len(self._rows) > 6 * self._limit:
            self._trim()

    def _trim(self) -> None:
        """Drop positions that can become neither a fork nor a control."""
        place = torch.argsort(self._places, stable=True)
        place = place[torch.argsort(self._rows[place], stable=True)]
        by_entropy = place[torch.argsort(self._entropy[place], descending=True, stable=True)]
        by_chance = torch.argsort(_priority(self.seed, self._rows, self._places), stable=True)
        keep = torch.zeros(len(place), dtype=torch.bool)
        keep[by_entropy[: self._limit]] = True
        # As many again as could turn out to be forks themselves.
        keep[by_chance[: 2 * self._limit]] = True
        self._rows, self._places = self._rows[keep], self._places[keep]
        self._entropy = self._entropy[keep]
        self._states = {layer: [torch.cat(parts)[keep]] for layer, parts in self._states.items()}

    def finish(
        self, entropy: Float[Tensor, "batch seq"], valid: Bool[Tensor, "batch seq"]
    ) -> tuple[
        Bool[Tensor, "batch seq"],
        Bool[Tensor, "batch seq"],
        dict[int, Float[Tensor, "captured d_model"]],
    ]:
        """Give (captured, controls, residuals packed in row-major order of captured)."""
        captured, controls = valid, torch.zeros_like(valid)
        if self.positions == "forks":
            forks = forking_mask(entropy, valid, fraction=self.fraction)
            controls = self._controls(forks, valid)
            captured = forks | controls
        width = valid.shape[1]
        slots = torch.full((valid.numel(),), -1)
        slots[self._rows * width + self._places] = torch.arange(len(self._rows))
        wanted = slots[captured.reshape(-1)]
        if bool((wanted < 0).any()):
            raise AssertionError("a captured position was not in the pool")
        nothing = torch.empty(0, self.d_model)
        residuals = {
            layer: (torch.cat(parts) if parts else nothing)[wanted]
            for layer, parts in self._states.items()
        }
        return captured.clone(), controls, residuals

    def _controls(self, forks: Tensor, valid: Tensor) -> Tensor:
        """Choose as many random valid positions beside the forks as there are forks."""
        rows, places = (valid & ~forks).nonzero(as_tuple=True)
        order = torch.argsort(_priority(self.seed, rows, places), stable=True)
        chosen = order[: int(forks.sum())]
        controls = torch.zeros_like(valid)
        controls[rows[chosen], places[chosen]] = True
        return controls


def _priority(seed: int, rows: Tensor, places: Tensor) -> Tensor:
    """Give each position the number by which random positions are chosen."""
    return uniform_noise(seed, rows, places, 1, stream=2)[:, 0]
