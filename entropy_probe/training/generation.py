"""Entropies of a generation that somebody else runs: read from its own logits as it goes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.hooks import HooksSkipped, watch_passes

from .passes import Passing, Piece, own_forward, read_piece


class Generation:
    """What a call of `generate` ran, put together from its passes."""

    def __init__(self, temperature: float) -> None:
        """Begin with nothing.

        Args:
            temperature: of softmax(logits / temperature).
        """
        self.temperature = temperature
        self._passing: Passing | None = None

    def statistics(
        self, completions: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
        """Give (entropy, logprobs) of every token that was generated, nats; zero behind the last.

        Args:
            completions: token ids of each row, in the order of the rows of `generate`.

        Raises:
            HooksSkipped: other rows passed through the model, or more or fewer tokens.
        """
        passing, longest = self._passing, max(map(len, completions))
        if passing is None or passing.rows != len(completions):
            raise HooksSkipped(
                f"{0 if passing is None else passing.rows} rows passed through the model while "
                f"{len(completions)} were generated: something else generates"
            )
        start = passing.width if passing.given is None else passing.given
        if passing.width - start != longest - 1:
            raise HooksSkipped(
                f"{passing.width - start + 1} tokens a row passed through the model while "
                f"{longest} were generated: beam search, or assisted decoding?"
            )
        lengths = torch.tensor([len(row) for row in completions])
        last = [row[-1] if len(row) == longest else 0 for row in completions]
        unknown = torch.full((len(completions), 1), math.nan)
        # The last token was drawn, but never entered the model.
        passing.follow(Piece(torch.tensor(last)[:, None], unknown, unknown))
        inside = torch.arange(longest) < lengths[:, None]
        entropy, logprobs = (
            values[:, start - 1 : -1].cpu().where(inside, 0.0) for values in passing.after()
        )
        return entropy, logprobs

    def _see(self, arguments: Mapping[str, object], output: object) -> None:
        """Add a pass."""
        piece = read_piece(
            arguments, output, temperature=self.temperature, may_go_on=True, states={}
        )
        if self._passing is None:
            self._passing = Passing(0, False, piece, temperature=self.temperature)
        else:
            self._passing.follow(piece)


@contextmanager
def read_generation(model, *, temperature: float) -> Iterator[Generation]:
    """Read the generation that runs inside, by one call of `generate` with a key-value cache.

    It costs the arithmetic of the entropies: no pass of its own.

    Args:
        model: what generates; it is left as it was.
        temperature: of softmax(logits / temperature).
    """
    generation = Generation(temperature)
    with watch_passes(own_forward(model), _nothing, generation._see):
        yield generation


def _nothing(arguments: Mapping[str, object]) -> None:
    """Take no note of what is about to run."""
