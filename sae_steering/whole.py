"""Edits that are decided before a pass, and so need no second one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from .places import Places


class Whole:
    """Edits the chosen places of every pass; the engine's editor where nothing is run again."""

    def __init__(self, choose: Callable[[Places], Tensor]) -> None:
        """Keep the choice."""
        self.choose = choose
        self._rows: Tensor | None = None
        self._prompt_lengths: Tensor | None = None

    @contextmanager
    def sampling(self, rows: int, steps: int) -> Iterator[None]:
        """Be entered around a sampling, which changes nothing."""
        yield

    def revise(self, draws, again: Callable[[], Tensor]) -> Tensor:
        """Give the logits as they are."""
        return draws.logits

    @contextmanager
    def scoring(self, rows: Tensor, prompt_lengths: Tensor) -> Iterator[None]:
        """Know, for as long as it lasts, which rows of a record are run."""
        self._rows, self._prompt_lengths = rows, prompt_lengths
        try:
            yield
        finally:
            self._rows = self._prompt_lengths = None

    def choose_places(self, places: Places) -> Bool[Tensor, "batch seq"]:
        """Choose the places to edit in a pass."""
        if self._rows is not None:
            lengths = self._prompt_lengths.to(places.real.device)
            places = replace(places, rows=self._rows, prompt_lengths=lengths)
        chosen = self.choose(places)
        if chosen.dtype != torch.bool or chosen.shape != places.real.shape:
            raise ValueError(
                f"where must give a bool mask of {tuple(places.real.shape)}, got "
                f"{chosen.dtype} of {tuple(chosen.shape)}"
            )
        return chosen
