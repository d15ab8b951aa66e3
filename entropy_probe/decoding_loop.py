"""The decode loop: prefill once a prompt, step all rows together, let finished rows leave."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .drawing import draw, draw_greedy, keep_candidates
from .entropy import shift_and_exp, stats_of_shifted
from .hooks import ResidualReader
from .keeping import StateKeeper
from .kvcache import make_cache, select_rows

LEAVE = 8
"""Finished rows leave when they are at least 1/LEAVE of the batch: leaving copies the cache."""


@dataclass
class Traces:
    """What was generated, by row and by step; meaningful where ``valid``."""

    tokens: Int[Tensor, "rows steps"]
    """Token ids."""
    valid: Bool[Tensor, "rows steps"]
    """Whether the row was still running at this step."""
    entropy: Float[Tensor, "rows steps"]
    """Nats."""
    logprobs: Float[Tensor, "rows steps"]
    """Nats."""
    ranks: Int[Tensor, "rows steps"]
    """0 for the most probable token."""
    alternative_ids: Int[Tensor, "rows steps k"]
    """Most probable tokens."""
    alternative_logprobs: Float[Tensor, "rows steps k"]
    """Their log-probabilities."""
    near_ties: int = 0
    """Draws that rounding could flip."""

    @classmethod
    def empty(cls, rows: int, steps: int, k: int, device: torch.device) -> "Traces":
        """Give traces with room for some rows and steps."""
        shape = (rows, steps)
        return cls(
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.int32, device=device),
            torch.zeros((*shape, k), dtype=torch.int32, device=device),
            torch.zeros((*shape, k), device=device),
        )


@dataclass
class _Batch:
    """The rows that are decoding, one slot each."""

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
    mask: Int[Tensor, "slots columns"]
    """Attention mask over the cache's columns."""
    tails: list[bytes]
    """End of each row's text, kept only where texts stop rows."""

    def select(self, slots: Tensor) -> "_Batch":
        """Keep some slots."""
        return _Batch(
            self.rows[slots], self.made[slots], self.limit[slots], self.alive[slots],
            self.starts[slots], self.mask[slots],
            [self.tails[i] for i in slots.tolist()] if self.tails else [],
        )  # fmt: skip


class Loop:
    """Decodes batches of rows into the traces, and hands finished rows' states to the keeper."""

    def __init__(
        self,
        model,
        settings,
        traces: Traces,
        keeper: StateKeeper,
        reader: ResidualReader | None,
        *,
        ends: set[int],
        stop_texts: Sequence[str],
        pieces: Callable[[list[int]], dict[int, bytes]],
        noise_offset: int,
    ) -> None:
        """Bind the model, the settings of `sample`, and where results go."""
        self.model, self.settings, self.traces = model, settings, traces
        self.keeper, self.reader, self.noise_offset = keeper, reader, noise_offset
        self.device = model.device
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=self.device)
        self.stop_texts = [text.encode() for text in stop_texts]
        self.pieces = pieces
        self._piece_cache: dict[int, bytes] = {}
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def run(self, prompts: list[tuple[int, list[int]]], rows: list[int], limits: list[int]) -> None:
        """Decode some rows to their ends; prompts are (number, token ids), each run once."""
        n = self.settings.n
        numbers = {number: i for i, (number, _) in enumerate(prompts)}
        source = torch.tensor([numbers[row // n] for row in rows], device=self.device)
        cache = make_cache(self.model)
        ids, mask = self._left_padded([ids for _, ids in prompts])
        logits, states = self._forward(ids, mask, mask.cumsum(1).sub(1).clamp(min=0), cache)
        if len(prompts) != len(rows):
            select_rows(cache, source)
            logits, mask = logits[source], mask[source]
            states = {layer: s[source] for layer, s in states.items()}
        batch = _Batch(
            rows=torch.tensor(rows, device=self.device),
            made=torch.zeros(len(rows), dtype=torch.long, device=self.device),
            limit=torch.tensor([limits[row // n] for row in rows], device=self.device),
            alive=torch.ones(len(rows), dtype=torch.bool, device=self.device),
            starts=mask.sum(dim=1),
            mask=mask,
            tails=[b""] * len(rows) if self.stop_texts else [],
        )
        self._decode(batch, cache, logits, states)

    def _decode(self, batch: _Batch, cache, logits: Tensor, states: dict[int, Tensor]) -> None:
        """Step until every row has ended."""
        held: dict[int, list[Tensor]] = {layer: [] for layer in states}
        while True:
            tokens = self._draw(batch, logits)
            for layer, state in states.items():
                held[layer].append(state)
            batch.made = batch.made + 1
            ended = batch.alive & self._ended(batch, tokens)
            batch.alive = batch.alive & ~ended
            running = int(batch.alive.sum())
            if held:
                self._hand_over(batch, ended, held)
            if not running:
                return
            if LEAVE * (len(batch.alive) - running) >= len(batch.alive):
                slots = batch.alive.nonzero()[:, 0]
                select_rows(cache, slots)
                batch, tokens = batch.select(slots), tokens[slots]
                held = {layer: [s[slots] for s in steps] for layer, steps in held.items()}
            batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.mask), 1)], dim=1)
            positions = (batch.starts + batch.made - 1)[:, None]
            logits, states = self._forward(tokens[:, None], batch.mask, positions, cache)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the model; give the last position's logits and residual states."""
        placed = {"position_ids": positions} if self._takes_positions else {}
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **placed,
            **self._last_only,
        )
        states = {}
        if self.reader is not None:
            taken = self.reader.take(tokens=ids.numel())
            states = {layer: state[:, -1] for layer, state in taken.items()}
        return out.logits[:, -1], states

    def _draw(self, batch: _Batch, logits: Tensor) -> Tensor:
        """Draw a token a row and write its statistics."""
        settings, traces = self.settings, self.traces
        scores = logits.to(torch.float32, copy=True).div_(settings.entropy_temperature)
        shifted, weights = shift_and_exp(scores)
        if settings.temperature == 0:
            drawn = draw_greedy(shifted)
        else:
            allowed = keep_candidates(weights, top_p=settings.top_p, top_k=settings.top_k)
            noise_rows = batch.rows + self.noise_offset
            drawn = draw(allowed, seed=settings.seed, rows=noise_rows, positions=batch.made)
        stats = stats_of_shifted(shifted, weights, drawn.tokens, settings.alternatives)
        at = (batch.rows, batch.made)
        # A row that has ended sits at the step after its last, which stays outside `valid`.
        at = tuple(index[batch.alive] for index in at)
        written = (drawn.tokens, *stats)
        fields = (
            traces.tokens, traces.entropy, traces.logprobs, traces.ranks,
            traces.alternative_ids, traces.alternative_logprobs,
        )  # fmt: skip
        for field, value in zip(fields, written, strict=True):
            field[at] = value[batch.alive]
        traces.valid[at] = True
        traces.near_ties += int((drawn.near_tie & batch.alive).sum())
        return drawn.tokens

    def _ended(self, batch: _Batch, tokens: Tensor) -> Tensor:
        """Tell which rows end with the token just drawn."""
        ended = torch.isin(tokens, self.ends) | (batch.made >= batch.limit)
        if self.stop_texts:
            ended = ended | torch.tensor(self._text_stops(batch, tokens), device=self.device)
        return ended

    def _text_stops(self, batch: _Batch, tokens: Tensor) -> list[bool]:
        """Tell which rows' texts now contain a stop text."""
        ids = tokens.tolist()
        self._piece_cache |= self.pieces([i for i in set(ids) if i not in self._piece_cache])
        longest = max(map(len, self.stop_texts))
        found = []
        for slot, token in enumerate(ids):
            text = batch.tails[slot] + self._piece_cache[token]
            found.append(any(stop in text for stop in self.stop_texts))
            batch.tails[slot] = text[-longest:]
        return found

    def _hand_over(self, batch: _Batch, ended: Tensor, held: dict[int, list[Tensor]]) -> None:
        """Give the states of rows that have just ended to the keeper."""
        slots = ended.nonzero()[:, 0]
        if not len(slots):
            return
        steps = len(next(iter(held.values())))
        made = batch.made[slots]
        filled = torch.arange(steps, device=self.device)[None, :] < made[:, None]
        which, step = filled.nonzero(as_tuple=True)
        rows = batch.rows[slots][which]
        states = {
            layer: torch.stack([s[slots] for s in parts], dim=1)[filled]
            for layer, parts in held.items()
        }
        places = batch.starts[slots][which] + step
        self.keeper.add(rows, places, self.traces.entropy[rows, step], states)

    def _left_padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Give token ids and mask, so that every prompt ends in the last column."""
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)
