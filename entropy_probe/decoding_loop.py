"""The decode loop: prefill once a prompt, step all rows together; rows leave and others join."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .drawing import draw, draw_greedy, keep_candidates
from .entropy import shift_and_exp, stats_of_shifted
from .hooks import ResidualReader
from .keeping import StateKeeper
from .kvcache import Columns, is_roomy, make_cache, splice
from .models.engine import Engine

LEAVE = 8
"""Rows leave, and others join, when 1/LEAVE of the slots are free: it copies the cache."""


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
    logits: Float[Tensor, "slots vocab"]
    """What the next tokens are drawn from."""
    cache: Cache
    """Keys and values of what has run."""
    held: dict[int, Columns]
    """Layer -> residual states of the tokens generated so far."""
    tails: list[bytes]
    """End of each row's text, kept only where texts stop rows."""

    def keep(self, slots: Tensor, joining: "_Batch | None" = None) -> None:
        """Keep some slots, and append those of another batch."""
        none = slots[:0]
        others = none if joining is None else torch.arange(len(joining.rows), device=slots.device)
        columns = int((self.starts + self.made)[slots].max()) if len(slots) else 0
        splice(self.cache, slots, columns, joining and joining.cache, others)
        # The state that the next token is drawn from may be there already: one column more.
        steps = int(self.made[slots].max()) + 1 if len(slots) else 0
        for layer, states in self.held.items():
            states.splice(slots, steps, joining and joining.held[layer], others)
        self.mask = self.mask[slots, -columns:] if is_roomy(self.cache) else self.mask[slots]
        self.tails = [self.tails[i] for i in slots.tolist()] if self.tails else []
        for name in ("rows", "made", "limit", "alive", "starts", "logits"):
            setattr(self, name, getattr(self, name)[slots])
        if joining is not None:
            width = max(self.mask.shape[1], joining.mask.shape[1])
            self.mask = torch.cat([_pad_left(b.mask, width) for b in (self, joining)])
            self.tails = self.tails + joining.tails
            for name in ("rows", "made", "limit", "alive", "starts", "logits"):
                setattr(self, name, torch.cat([getattr(self, name), getattr(joining, name)]))


class Loop:
    """Decodes rows into the traces, and hands finished rows' states to the keeper."""

    def __init__(
        self,
        engine: Engine,
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
        """Bind the engine, the settings of `sample`, and where results go."""
        self.engine, self.settings, self.traces = engine, settings, traces
        self.keeper, self.reader, self.noise_offset = keeper, reader, noise_offset
        self.device = engine.model.device
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=self.device)
        self.stop_texts = [text.encode() for text in stop_texts]
        self.pieces = pieces
        self._piece_cache: dict[int, bytes] = {}
        self._takes_positions = "position_ids" in engine.arguments

    def run(
        self,
        prompts: list[list[int]],
        limits: list[int],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Decode n rows a prompt to their ends; prompts are token ids, limits their lengths."""
        total, started = len(prompts) * self.settings.n, 0
        batch = None
        while True:
            free = self.settings.batch_size - (int(batch.alive.sum()) if batch else 0)
            room = batch is None or is_roomy(batch.cache) or not bool(batch.alive.any())
            if started < total and room and LEAVE * free >= self.settings.batch_size:
                rows = range(started, min(started + free, total))
                joining = self._prefill(prompts, rows, limits)
                started += len(rows)
                if batch is None or not bool(batch.alive.any()):
                    batch = joining
                else:
                    batch.keep(batch.alive.nonzero()[:, 0], joining)
            tokens = self._step(batch)
            alive = int(batch.alive.sum())
            if progress is not None:
                progress(started - alive)
            if not alive and started == total:
                return
            if alive:
                self._advance(batch, tokens)

    def _prefill(self, prompts: list[list[int]], rows: range, limits: list[int]) -> _Batch:
        """Run each prompt that some rows need once; give the rows, ready for their first draw."""
        n = self.settings.n
        first = rows.start // n
        needed = prompts[first : (rows.stop - 1) // n + 1]
        source = torch.tensor([row // n - first for row in rows], device=self.device)
        ids, mask = self._left_padded(needed)
        cache = make_cache(self.engine.model)
        logits, states = self._forward(ids, mask, mask.cumsum(1).sub(1).clamp(min=0), cache)
        splice(cache, source, ids.shape[1], None, source[:0])
        held = {layer: Columns() for layer in states}
        for layer, state in states.items():
            held[layer].append(state[source])
        return _Batch(
            rows=torch.tensor(rows, device=self.device),
            made=torch.zeros(len(rows), dtype=torch.long, device=self.device),
            limit=torch.tensor([limits[row // n] for row in rows], device=self.device),
            alive=torch.ones(len(rows), dtype=torch.bool, device=self.device),
            starts=mask.sum(dim=1)[source],
            mask=mask[source],
            logits=logits[source],
            cache=cache,
            held=held,
            tails=[b""] * len(rows) if self.stop_texts else [],
        )

    def _step(self, batch: _Batch) -> Int[Tensor, " slots"]:
        """Draw a token a row, end rows, and hand over the states of those that ended."""
        tokens = self._draw(batch)
        batch.made = batch.made + 1
        ended = batch.alive & self._ended(batch, tokens)
        batch.alive = batch.alive & ~ended
        if batch.held:
            self._hand_over(batch, ended.nonzero()[:, 0])
        return tokens

    def _advance(self, batch: _Batch, tokens: Int[Tensor, " slots"]) -> None:
        """Run the model on the tokens just drawn; rows that have ended leave first."""
        alive = batch.alive.nonzero()[:, 0]
        if LEAVE * (len(batch.alive) - len(alive)) >= len(batch.alive):
            batch.keep(alive)
            tokens = tokens[alive]
        batch.mask = torch.nn.functional.pad(batch.mask, (0, 1), value=1)
        # A row that has ended but not left must not run past the context.
        made = torch.minimum(batch.made, batch.limit)
        positions = (batch.starts + made - 1)[:, None]
        batch.logits, states = self._forward(tokens[:, None], batch.mask, positions, batch.cache)
        for layer, state in states.items():
            batch.held[layer].append(state)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the model; give the last position's logits and residual states."""
        placed = {"position_ids": positions} if self._takes_positions else {}
        logits = self.engine.run(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **placed,
            **self.engine.last_only,
        )
        states = {} if self.reader is None else self.reader.take(tokens=ids.numel())
        return logits[:, -1], states

    def _draw(self, batch: _Batch) -> Int[Tensor, " slots"]:
        """Draw a token a row and write its statistics."""
        settings, traces = self.settings, self.traces
        scores = batch.logits.to(torch.float32, copy=True).div_(settings.entropy_temperature)
        shifted, weights = shift_and_exp(scores)
        if settings.temperature == 0:
            drawn = draw_greedy(shifted)
        else:
            allowed = keep_candidates(weights, top_p=settings.top_p, top_k=settings.top_k)
            noise_rows = batch.rows + self.noise_offset
            drawn = draw(allowed, seed=settings.seed, rows=noise_rows, positions=batch.made)
        stats = stats_of_shifted(shifted, weights, drawn.tokens, settings.alternatives)
        alive = batch.alive.nonzero()[:, 0]
        at = (batch.rows[alive], batch.made[alive])
        fields = (
            traces.tokens, traces.entropy, traces.logprobs, traces.ranks,
            traces.alternative_ids, traces.alternative_logprobs,
        )  # fmt: skip
        for field, value in zip(fields, (drawn.tokens, *stats), strict=True):
            field[at] = value[alive]
        traces.valid[at] = True
        traces.near_ties += int(drawn.near_tie[alive].sum())
        return drawn.tokens

    def _ended(self, batch: _Batch, tokens: Int[Tensor, " slots"]) -> Bool[Tensor, " slots"]:
        """Tell which rows end with the token just drawn."""
        ended = torch.isin(tokens, self.ends) | (batch.made >= batch.limit)
        if self.stop_texts:
            ended = ended | torch.tensor(self._text_stops(batch, tokens), device=self.device)
        return ended

    def _text_stops(self, batch: _Batch, tokens: Int[Tensor, " slots"]) -> list[bool]:
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

    def _hand_over(self, batch: _Batch, slots: Int[Tensor, " ended"]) -> None:
        """Give the states of rows that have just ended to the keeper."""
        if not len(slots):
            return
        made = batch.made[slots]
        columns = next(iter(batch.held.values())).length
        newest = torch.arange(columns, device=self.device)[None, :] - (columns - made)[:, None]
        filled = newest >= 0
        which, step = filled.nonzero(as_tuple=True)[0], newest[filled]
        rows = batch.rows[slots][which]
        states = {layer: held.view()[slots][filled] for layer, held in batch.held.items()}
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


def _pad_left(mask: Int[Tensor, "slots columns"], width: int) -> Int[Tensor, "slots width"]:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))
