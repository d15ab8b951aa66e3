"""The decode loop: prefill once a prompt, step all rows together; rows leave and others join."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .compiled_step import CompiledStep
from .describing import Replayed, draw_and_describe
from .hooks import ResidualReader
from .keeping import StateKeeper
from .kvcache import Columns, cache_inputs, check_filled, drop_newest, make_cache
from .models.engine import Draws, Engine
from .models.finite import not_finite
from .slots import Prefilled, Slots

LEAVE = 16
"""Rows leave, and others join, when 1/LEAVE of the slots are free."""


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
        self._compiled: CompiledStep | None = None
        self._describe = partial(draw_and_describe, settings=settings)

    def run(
        self,
        prompts: list[list[int]],
        limits: list[int],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Decode n rows a prompt to their ends; prompts are token ids, limits their lengths."""
        n, size = self.settings.n, self.settings.batch_size
        total, alive, begun = len(prompts) * n, 0, 0
        waiting: Prefilled | None = None
        slots: Slots | None = None
        if self.settings.compile:
            longest = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True))
            self._compiled = CompiledStep(
                self.engine, self.reader, rows=min(size, total), longest=longest
            )
            if self.device.type == "cuda":
                self._describe = Replayed(self._describe, min(size, total))
        while True:
            free = min(size - alive, total - begun)
            if not alive:
                slots = None  # their buffers would lie beside the next prompts' cache
            if LEAVE * (size - alive) >= size and (slots is None or slots.open):
                while free:
                    waiting = waiting or self._prefill(prompts, limits, begun, free)
                    slots = slots or Slots.empty(
                        waiting, None if self._compiled is None else self._compiled.cache.clear()
                    )
                    joined = slots.join(waiting, free)
                    begun += joined
                    waiting = waiting if waiting.waiting else None
                    free = free - joined if slots.open else 0
            tokens = self._step(slots)
            alive = int(slots.alive.sum())
            left = total - begun
            if progress is not None:
                progress(total - left - alive)
            if not alive and not left:
                return
            if alive:
                self._advance(slots, tokens, alive)

    def _prefill(
        self, prompts: list[list[int]], limits: list[int], first: int, count: int
    ) -> Prefilled:
        """Run the prompts of some rows, and of as many more as a quarter of the slots may hold."""
        n, at = self.settings.n, first // self.settings.n
        count = max(-(-count // n), self.settings.batch_size // max(n, 4))
        needed = prompts[at : at + count]
        ids, mask = self._left_padded(needed)
        cache = make_cache(self.engine.model)
        rows = torch.arange(at * n, (at + len(needed)) * n, device=self.device).view(-1, n)
        positions = mask.cumsum(1).sub(1).clamp(min=0)
        logits, states = self._forward(
            ids, mask, positions, cache,
            rows=rows, step=torch.zeros_like(rows[:, 0]), alive=rows[:, 0] >= 0,
        )  # fmt: skip
        check_filled(cache, self.engine.model)
        columns, held = Columns(), {layer: Columns() for layer in states}
        columns.append(mask[..., None])
        for layer, state in states.items():
            held[layer].append(state)
        return Prefilled(
            waiting=range(first, (at + len(needed)) * n),
            first=at * n,
            n=n,
            limits=torch.tensor(limits[at : at + count], device=self.device),
            starts=mask.sum(dim=1),
            logits=logits,
            mask=columns,
            cache=cache,
            held=held,
        )

    def _step(self, slots: Slots) -> Int[Tensor, " slots"]:
        """Draw a token a row, end rows, and hand over the states of those that ended."""
        tokens = self._draw(slots)
        slots.made = slots.made + 1
        ended = slots.alive & self._ended(slots, tokens)
        slots.alive = slots.alive & ~ended
        if slots.held:
            self._hand_over(slots, ended.nonzero()[:, 0])
        return tokens

    def _advance(self, slots: Slots, tokens: Int[Tensor, " slots"], alive: int) -> None:
        """Run the model on the tokens just drawn; rows that have ended leave first."""
        if LEAVE * (len(slots.alive) - alive) >= len(slots.alive):
            tokens = tokens[slots.leave()]
        mask = slots.mask.append(torch.ones_like(tokens)[:, None, None])[..., 0]
        # A row that has ended but not left must not run past the context.
        made = torch.minimum(slots.made, slots.limit)
        positions = (slots.starts + made - 1)[:, None]
        slots.logits, states = self._forward(
            tokens[:, None], mask, positions, slots.cache,
            rows=slots.rows[:, None], step=slots.made, alive=slots.alive,
        )  # fmt: skip
        for layer, state in states.items():
            slots.held[layer].append(state)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache, *,
        rows: Int[Tensor, "batch each"], step: Int[Tensor, " batch"], alive: Bool[Tensor, " batch"],
    ) -> tuple[Tensor, dict[int, Tensor]]:  # fmt: skip
        """Run the model; give the last position's logits and residual states."""
        logits, states = self._run(ids, mask, positions, cache)
        if self.engine.editor is None:
            return logits, states

        def again() -> Tensor:
            nonlocal states
            drop_newest(cache)
            logits, states = self._run(ids[:, -1:], mask, positions[:, -1:], cache)
            return logits

        basis, drawn_at = self.settings.entropy_temperature, self.settings.temperature
        draws = Draws(logits, basis, drawn_at, rows, step, alive)
        return self.engine.editor.revise(draws, again), states

    def _run(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the model once."""
        names, more = self.engine.arguments, {"use_cache": True, **self.engine.last_only}
        more |= {"position_ids": positions} if "position_ids" in names else {}
        if self._compiled is not None and cache is self._compiled.cache:
            return self._compiled.run(ids, mask, more)
        logits = self.engine.run(input_ids=ids, **more, **cache_inputs(names, cache, ids, mask))
        states = {} if self.reader is None else self.reader.take(tokens=ids.numel())
        return logits[:, -1], states

    def _draw(self, slots: Slots) -> Int[Tensor, " slots"]:
        """Draw a token a row and write its statistics."""
        traces, made, alive = self.traces, slots.made, slots.alive.nonzero()[:, 0]
        numbers = slots.rows + self.noise_offset
        tokens, near_tie, *stats = self._describe(slots.logits, numbers, made)
        at = (slots.rows[alive], made[alive])
        fields = (
            traces.tokens, traces.entropy, traces.logprobs, traces.ranks,
            traces.alternative_ids, traces.alternative_logprobs,
        )  # fmt: skip
        for field, value in zip(fields, (tokens, *stats), strict=True):
            field[at] = value[alive]
        traces.valid[at] = True
        entropy = stats[0][alive]
        # One transfer for both; a sum is finite where all that it sums is.
        sums = torch.stack([near_tie[alive].sum(), entropy.sum()]).tolist()
        if not math.isfinite(sums[1]):
            odd = alive[~entropy.isfinite()][0]
            where = f"row {numbers[odd]}, generated token {made[odd]}"
            basis = self.settings.entropy_temperature
            raise not_finite(self.engine, where, slots.logits[odd], basis)
        traces.near_ties += int(sums[0])
        return tokens

    def _ended(self, slots: Slots, tokens: Int[Tensor, " slots"]) -> Bool[Tensor, " slots"]:
        """Tell which rows end with the token just drawn."""
        ended = torch.isin(tokens, self.ends) | (slots.made >= slots.limit)
        if self.stop_texts:
            ended = ended | torch.tensor(self._text_stops(slots, tokens), device=self.device)
        return ended

    def _text_stops(self, slots: Slots, tokens: Int[Tensor, " slots"]) -> list[bool]:
        """Tell which rows' texts now contain a stop text."""
        ids = tokens.tolist()
        self._piece_cache |= self.pieces([i for i in set(ids) if i not in self._piece_cache])
        longest = max(map(len, self.stop_texts))
        found = []
        for slot, token in enumerate(ids):
            text = slots.tails[slot] + self._piece_cache[token]
            found.append(any(stop in text for stop in self.stop_texts))
            slots.tails[slot] = text[-longest:]
        return found

    def _hand_over(self, slots: Slots, ended: Int[Tensor, " ended"]) -> None:
        """Give the states of rows that have just ended to the keeper."""
        if not len(ended):
            return
        made = slots.made[ended]
        columns = next(iter(slots.held.values())).length
        newest = torch.arange(columns, device=self.device)[None, :] - (columns - made)[:, None]
        filled = newest >= 0
        which, step = filled.nonzero(as_tuple=True)[0], newest[filled]
        rows = slots.rows[ended][which]
        states = {layer: held.view()[ended][filled] for layer, held in slots.held.items()}
        places = slots.starts[ended][which] + step
        self.keeper.add(rows, places, self.traces.entropy[rows, step], states)

    def _left_padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Give token ids and mask, so that every prompt ends in the last column."""
        width = max(map(len, prompts))
        ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)
