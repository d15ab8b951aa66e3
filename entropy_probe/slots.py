"""The rows that decode together, one slot each; rows leave, and others take their slots."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .kvcache import Columns, Moves, empty_like, is_roomy, move

_PER_SLOT = ("rows", "made", "limit", "alive", "starts", "logits")


@dataclass
class Prefilled:
    """Prompts that have run, and the rows that will begin with them."""

    waiting: range
    """Rows of the record that have not begun yet."""
    first: int
    """Row of the record that the first of these prompts begins."""
    n: int
    """Rows a prompt."""
    limits: Int[Tensor, " prompts"]
    """Tokens at which the rows of each prompt are cut."""
    starts: Int[Tensor, " prompts"]
    """Tokens of each prompt."""
    logits: Float[Tensor, "prompts vocab"]
    """What the first tokens are drawn from."""
    mask: Columns
    """Attention mask, ``[prompts, columns, 1]``."""
    cache: Cache
    """Keys and values."""
    held: dict[int, Columns]
    """Layer -> the residual state that predicts the first token."""


@dataclass
class Slots:
    """The rows that are decoding."""

    rows: Int[Tensor, " slots"]
    """Row of the record."""
    made: Int[Tensor, " slots"]
    """Tokens generated so far."""
    limit: Int[Tensor, " slots"]
    """Tokens at which the row is cut."""
    alive: Bool[Tensor, " slots"]
    """False once the row has ended and waits to leave."""
    starts: Int[Tensor, " slots"]
    """Tokens of the prompt."""
    logits: Float[Tensor, "slots vocab"]
    """What the next tokens are drawn from."""
    mask: Columns
    """Attention mask over the cache's columns, ``[slots, columns, 1]``."""
    cache: Cache
    """Keys and values of what has run."""
    held: dict[int, Columns]
    """Layer -> residual states of the tokens generated so far."""
    tails: list[bytes]
    """End of each row's text, for the texts that stop rows."""

    @classmethod
    def empty(cls, prefilled: Prefilled, cache: Cache | None = None) -> "Slots":
        """Give slots, none yet, for rows that begin as those prefilled do, in a cache if given."""
        none = prefilled.starts[:0]
        if cache is None:
            cache = prefilled.cache
            cache = empty_like(cache) if is_roomy(cache) else cache
        return cls(
            none, none, none, none.bool(), none, prefilled.logits[:0], Columns(),
            cache, {layer: Columns() for layer in prefilled.held}, [],
        )  # fmt: skip

    @property
    def open(self) -> bool:
        """Tell whether rows may join those that are decoding."""
        return is_roomy(self.cache)

    def leave(self) -> Int[Tensor, " slots"]:
        """Drop the rows that have ended, but not their logits; give the slots that stay."""
        moves = Moves.fill(self.alive, 0)
        self._move(moves, None, moves.to[:0], {})
        return moves.index

    def join(self, prefilled: Prefilled, count: int) -> int:
        """Drop the rows that have ended, and begin some of those that wait; give how many."""
        beginning, prefilled.waiting = prefilled.waiting[:count], prefilled.waiting[count:]
        rows = torch.arange(beginning.start, beginning.stop, device=self.rows.device)
        which = (rows - prefilled.first) // prefilled.n
        begun = {
            "rows": rows,
            "made": torch.zeros_like(rows),
            "limit": prefilled.limits[which],
            "alive": torch.ones_like(rows, dtype=torch.bool),
            "starts": prefilled.starts[which],
            "logits": prefilled.logits[which],
        }
        self._move(Moves.fill(self.alive, len(rows)), prefilled, which, begun)
        return len(rows)

    def _move(
        self, moves: Moves, prefilled: Prefilled | None, which: Tensor, begun: dict[str, Tensor]
    ) -> None:
        """Move the state of every slot, and take that of the prompts prefilled."""
        some = bool(self.alive.any())
        columns = int((self.starts + self.made)[self.alive].max()) if some else 0
        # The state that the next token is drawn from may be there already: one column more.
        steps = int(self.made[self.alive].max()) + 1 if some else 0
        if self.open:
            last = prefilled is not None and not prefilled.waiting
            move(self.cache, moves, columns, prefilled and prefilled.cache, which, forget=last)
        elif prefilled is None:
            columns = self.mask.length  # such a cache keeps them all
            self.cache.reorder_cache(moves.index)
        else:
            self.cache = copy.deepcopy(prefilled.cache)
            self.cache.reorder_cache(which)
        self.mask.move(moves, columns, prefilled and prefilled.mask, which)
        for layer, states in self.held.items():
            states.move(moves, steps, prefilled and prefilled.held[layer], which)
        tails = self.tails + [b""] * len(which)
        self.tails = [tails[i] for i in moves.index.tolist()]
        for name in _PER_SLOT if begun else _PER_SLOT[:-1]:
            value = getattr(self, name)
            value = torch.cat([value, begun[name]]) if begun else value
            setattr(self, name, value[moves.index])
