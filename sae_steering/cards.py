"""Feature cards: where a feature is active, how often, what it promotes and which tokens it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.drawing import uniform_noise
from entropy_probe.models.engine import body_of, decoder_of
from entropy_probe.models.unembedding import unembedding
from entropy_probe.models.vocabulary import special_ids, token_bytes
from entropy_probe.rollout import Rollouts

from .edits import feature_directions
from .evaluate import records
from .sae import SparseDictionary
from .store import Source

BEFORE, AFTER = 14, 6
"""Tokens that a snippet shows on each side of its peak."""

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True)
class Snippet:
    """A stretch of one sample around a state at which a feature is active."""

    sample: int
    """Number of the sample, over all sources."""
    position: int
    """Position of the token that the state has just read."""
    pieces: tuple[bytes, ...]
    """The bytes of the tokens around it."""
    special: tuple[bool, ...]
    """Which of them are control tokens."""
    acts: tuple[float | None, ...]
    """The feature's activity once each token is read; None where it was not captured."""
    peak: int
    """Which of them the state is at."""


@dataclass(frozen=True)
class Card:
    """What there is to know about one feature."""

    feature: int
    """Its number."""
    density: float
    """Share of the captured states at which it is active."""
    largest: float
    """Its largest activation."""
    mean: float
    """Its mean activation where it is active."""
    top: tuple[Snippet, ...]
    """Where it is most active, one snippet a sample, the strongest first."""
    drawn: tuple[Snippet, ...]
    """Places drawn at random among all where it is active: the top alone misleads."""
    promotes: tuple[tuple[bytes, float], ...] = ()
    """Tokens whose logits its direction raises most, by the direct path, relative to the mean."""
    suppresses: tuple[tuple[bytes, float], ...] = ()
    """Tokens whose logits it lowers most."""
    nearest: tuple[tuple[bytes, float], ...] = ()
    """Tokens whose embedding its direction is most like, with the cosine."""
    scores: dict[str, Any] = field(default_factory=dict)
    """Its line of a table of scores."""


@torch.no_grad()
def feature_cards(
    sae: SparseDictionary,
    sources: Source | Iterable[Source],
    features: Sequence[int],
    *,
    model=None,
    tokenizer=None,
    top: int = 6,
    drawn: int = 3,
    tokens: int = 8,
    seed: int = 0,
) -> list[Card]:
    """Give the cards of some features, reading the states a chunk at a time.

    Args:
        sae: the dictionary.
        sources: records and run directories with states of its layer.
        features: which ones.
        model: the model, for what features promote and resemble; without it there is neither.
        tokenizer: its tokenizer, with it.
        top: places of the strongest activity to show.
        drawn: places to show besides, drawn at random.
        tokens: tokens to name at each end.
        seed: of that draw.

    Raises:
        ValueError: features that the dictionary does not have.
    """
    if wrong := [f for f in features if not 0 <= f < sae.d_sae]:
        raise ValueError(f"the dictionary has features 0 to {sae.d_sae - 1}, got {wrong}")
    finds = [_Finds(top, drawn) for _ in features]
    states = samples = 0
    for record in records(sources):
        held = record.residuals[sae.layer].split(4096)
        acts = torch.cat([sae.encode(part.float())[:, list(features)] for part in held])
        for feature, column, find in zip(features, acts.T, finds, strict=True):
            find.add(record, column, samples, seed + (feature << 32))  # a draw of its own
        states += len(acts)
        samples += len(record)
    words = [((), (), ())] * len(features)
    if model is not None:
        words = _words(sae, model, tokenizer, features, tokens)
    return [
        Card(
            feature, find.count / max(states, 1), find.largest, find.total / max(find.count, 1),
            tuple(s for _, s in find.best), tuple(s for _, s in find.some), *named,
        )
        for feature, find, named in zip(features, finds, words, strict=True)
    ]  # fmt: skip


class _Finds:
    """What was found of one feature so far."""

    def __init__(self, top: int, drawn: int) -> None:
        self.top, self.drawn = top, drawn
        self.count, self.total, self.largest = 0, 0.0, 0.0
        self.best: list[tuple[float, Snippet]] = []
        self.some: list[tuple[float, Snippet]] = []

    def add(self, record: Rollouts, acts: Tensor, before: int, seed: int) -> None:
        """Take in a record's activations, packed as its states are."""
        active = acts != 0
        if not bool(active.any()):
            return
        self.count += int(active.sum())
        self.total += float(acts[active].double().sum())
        self.largest = max(self.largest, float(acts.max()))
        grid = torch.full(record.tokens.shape, torch.nan)
        grid[record.captured] = acts
        row, place = record.captured.nonzero(as_tuple=True)
        strongest = torch.nan_to_num(grid, nan=-torch.inf).amax(dim=1)
        for at in strongest.argsort(descending=True, stable=True)[: self.top].tolist():
            value = float(strongest[at])
            if value > 0 and (len(self.best) < self.top or value > self.best[-1][0]):
                position = int(torch.nan_to_num(grid[at], nan=-torch.inf).argmax())
                self.best.append((value, _snippet(record, grid, at, position, before)))
                self.best.sort(key=lambda pair: -pair[0])
                del self.best[self.top :]
        chance = uniform_noise(seed, row[active] + before, place[active], 1, stream=3)[:, 0]
        for i in chance.argsort()[: self.drawn].tolist():
            at, position = int(row[active][i]), int(place[active][i])
            self.some.append((float(chance[i]), _snippet(record, grid, at, position, before)))
        self.some.sort(key=lambda pair: pair[0])
        del self.some[self.drawn :]


def _snippet(record: Rollouts, grid: Tensor, row: int, place: int, before: int) -> Snippet:
    """Cut a snippet out; the state that produced token ``place`` has read the one before."""
    position = place - 1
    start = max(0, position - BEFORE)
    stop = min(int(record.lengths[row]), position + AFTER + 1)
    ids = record.tokens[row, start:stop].tolist()
    after = torch.cat([grid[row, 1:], torch.tensor([torch.nan])])[start:stop].tolist()
    return Snippet(
        row + before,
        position,
        tuple(record.pieces.get(i, f"<id {i}>".encode()) for i in ids),
        tuple(i in record.special_ids for i in ids),
        tuple(None if value != value else value for value in after),
        position - start,
    )


def _words(
    sae: SparseDictionary, model, tokenizer, features: Sequence[int], count: int
) -> list[tuple[tuple, tuple, tuple]]:
    """Give what each feature promotes, suppresses and resembles."""
    directions = feature_directions(sae, features).float()
    effects = logit_effects(model, directions)
    table = decoder_of(model).get_input_embeddings().weight.detach().float()
    table = torch.nn.functional.normalize(table, dim=1)
    likeness = torch.nn.functional.normalize(directions, dim=1).to(table.device) @ table.T
    ends = [(m, largest) for m, largest in ((effects, True), (effects, False), (likeness, True))]
    picked = [m.topk(min(count, m.shape[1]), dim=1, largest=end) for m, end in ends]
    ids = {i for found in picked for i in found.indices.flatten().tolist()}
    # Rows of an embedding that stand for no token are named by their number.
    pieces = token_bytes(tokenizer, ids | special_ids(tokenizer))
    named = [
        [
            tuple((pieces[i], round(v, 4)) for i, v in zip(line, values, strict=True))
            for line, values in zip(f.indices.tolist(), f.values.tolist(), strict=True)
        ]
        for f in picked
    ]
    return list(zip(*named, strict=True))


@torch.no_grad()
def logit_effects(model, directions: Float[Tensor, "k d_model"]) -> Float[Tensor, "k vocab"]:
    """Give what directions of the stream do to the logits by the direct path, relative to the mean.

    The final norm's weights are applied and its division by the state's length is not, so that
    effects compare within a direction only; what later blocks make of it is left out.
    """
    decoder, head = decoder_of(model), unembedding(model)
    modules = dict(body_of(decoder).named_modules())
    norm = next((modules[name] for name in _FINAL_NORMS if name in modules), None)
    directions = directions.to(head.weight.device, torch.float32)
    if norm is not None and hasattr(norm, "weight"):
        gain = norm.weight.detach().float()
        gain = gain + 1 if type(norm).__name__.startswith("Gemma") else gain
        if isinstance(norm, torch.nn.LayerNorm):
            directions = directions - directions.mean(dim=1, keepdim=True)
        directions = directions * gain
    effects = directions @ head.weight.float().T * head.scale
    return effects - effects.mean(dim=1, keepdim=True)
