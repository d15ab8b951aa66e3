"""What a step draws from its logits, and what it records of them.

On a GPU these are some two hundred small kernels, whose launches cost more than their work. Where
steps are compiled, they are captured as a CUDA graph, one launch for all.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .drawing import draw, draw_greedy, keep_candidates
from .entropy import shift_and_exp, stats_of_shifted

DRAWN = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Logits that tokens are drawn from at once: copies of all rows' would rival the cache."""


def draw_and_describe(
    logits: Float[Tensor, "rows vocab"],
    rows: Int[Tensor, " rows"],
    positions: Int[Tensor, " rows"],
    settings,
) -> tuple[Tensor, ...]:
    """Draw a token a row and describe the distribution it comes from, some rows at a time.

    Args:
        logits: left as they are.
        rows: number of each row in the whole run, which its noise belongs to.
        positions: how many tokens the row has generated so far.
        settings: temperatures, top_p, top_k, alternatives and seed, as in `Sampling`.

    Returns:
        Tokens, whether each was a near-tie, and the fields of `TokenStats`.
    """
    most = DRAWN.get(logits.device.type, DRAWN["cpu"])
    step = max(1, most // logits.shape[1])
    parts = [
        _some(logits[at : at + step], rows[at : at + step], positions[at : at + step], settings)
        for at in range(0, len(logits), step)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _some(logits: Tensor, rows: Tensor, positions: Tensor, settings) -> tuple[Tensor, ...]:
    """Draw for some rows, all at once."""
    # A copy: the model's user may hold the logits.
    scores = logits.to(torch.float32, copy=True)
    if settings.entropy_temperature != 1:
        scores.div_(settings.entropy_temperature)
    shifted, weights = shift_and_exp(scores)
    if settings.temperature == 0:
        drawn = draw_greedy(shifted)
    else:
        allowed = keep_candidates(weights, top_p=settings.top_p, top_k=settings.top_k)
        drawn = draw(allowed, seed=settings.seed, rows=rows, positions=positions)
    return (*drawn, *stats_of_shifted(shifted, weights, drawn.tokens, settings.alternatives))


class Replayed:
    """A function of tensors with at most so many rows, captured as a CUDA graph when first called.

    Rows must not depend on each other: those beyond what is given hold what was given before.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], rows: int) -> None:
        """Plan the rows."""
        self.function, self.rows = function, rows
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Give what the function gives."""
        count = len(given[0])
        if self._graph is None:
            with torch.cuda.device(given[0].device):
                self._capture(given)
        for held, new in zip(self._held, given, strict=True):
            held[:count].copy_(new)
        self._graph.replay()
        return tuple(out[:count].clone() for out in self._out)

    def _capture(self, given: tuple[Tensor, ...]) -> None:
        """Record the function's kernels over buffers that stay, on a stream of this device."""
        self._held = [new.new_zeros((self.rows, *new.shape[1:])) for new in given]
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # once before: libraries then make what they need
            self.function(*self._held)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            self._out = self.function(*self._held)
        self._graph = graph
