"""What a gain by steering is held against: directions that mean nothing, words, other places."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.drawing import uniform_noise
from entropy_probe.hooks import edit_residuals, evaluating, find_blocks, resolve_layers
from entropy_probe.kvcache import cache_inputs, make_cache
from entropy_probe.models.engine import Engine, engine_of
from entropy_probe.models.prompts import encode_prompts

from .edits import Dictionary, Direction
from .places import Places


def mean_difference(
    states: Float[Tensor, "n d_model"], labels: Bool[Tensor, " n"], *, name: str = "mean difference"
) -> Direction:
    """Give the mean of the states that are labelled, less the mean of the others.

    The strong simple baseline: it needs no dictionary, only two sets of states.
    """
    if labels.dtype != torch.bool:
        raise ValueError(f"labels must be bool, got {labels.dtype}")
    if not bool(labels.any()) or bool(labels.all()):
        raise ValueError("all states have the same label: there is no difference of means")
    wide = states.float()
    return Direction(wide[labels].mean(dim=0) - wide[~labels].mean(dim=0), name)


def shuffled(labels: Bool[Tensor, " n"], *, seed: int) -> Bool[Tensor, " n"]:
    """Give the labels in another order, drawn from a seed: a choice by them has no meaning."""
    noise = torch.Generator().manual_seed(seed)
    return labels[torch.randperm(len(labels), generator=noise).to(labels.device)]


def random_directions(
    like: Float[Tensor, " d_model"], count: int, *, seed: int = 0
) -> list[Direction]:
    """Give directions drawn evenly from all, each as long as the given one."""
    noise = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, like.shape[0], generator=noise)
    drawn = drawn / drawn.norm(dim=1, keepdim=True) * like.detach().cpu().float().norm()
    return [Direction(vector, f"random {i}") for i, vector in enumerate(drawn)]


def random_latents(
    density: Float[Tensor, " d_sae"],
    feature: int,
    count: int,
    *,
    within: float = 2.0,
    seed: int = 0,
) -> list[int]:
    """Give other features, drawn from those that are about as often active.

    Args:
        density: share of the tokens at which each feature is active.
        feature: the one that they are to be like.
        count: how many.
        within: their density is at most so many times higher or lower.
        seed: seed of the draw.

    Raises:
        ValueError: a feature that is never active, or too few that are like it.
    """
    wanted = float(density[feature])
    if not wanted > 0:
        raise ValueError(f"feature {feature} is never active: none is as often active as it")
    found = similar_latents(density, feature, within=within)
    if len(found) < count:
        raise ValueError(
            f"only {len(found)} features are active between {wanted / within:.2g} and "
            f"{wanted * within:.2g} of the time, as feature {feature} is about: ask for so many, "
            "or allow more with within="
        )
    noise = torch.Generator().manual_seed(seed)
    return sorted(found[torch.randperm(len(found), generator=noise)[:count]].tolist())


def similar_latents(
    density: Float[Tensor, " d_sae"], feature: int, *, within: float = 2.0
) -> Int[Tensor, " others"]:
    """Give the other features that are about as often active; none where it never is.

    Args:
        density: share of the tokens at which each feature is active.
        feature: the one that they are to be like.
        within: their density is at most so many times higher or lower.
    """
    wanted = density[feature]
    near = (density >= wanted / within) & (density <= wanted * within) & (density > 0)
    near[feature] = False
    return near.nonzero()[:, 0]


@dataclass(frozen=True)
class Splice:
    """The dictionary put in and nothing changed: reconstruction added and taken away again."""

    sae: Dictionary
    """The dictionary."""
    layer: int | None = None
    """The block; None: the dictionary's."""
    error: bool = True
    """False leaves out what the dictionary does not reconstruct: how much of the model it is."""

    @contextmanager
    def on(self, model) -> Iterator[Engine]:
        """Put it in."""
        engine = engine_of(model)
        layer = getattr(self.sae, "layer", None) if self.layer is None else self.layer
        if layer is None:
            raise ValueError("layer is missing: after which block does the dictionary read?")
        index = resolve_layers([layer], len(find_blocks(engine.model)))[0]

        def change(stream: Tensor) -> Tensor:
            states = stream.to(self.sae.W_dec)
            decoded = self.sae.decode(self.sae.encode(states.flatten(0, 1))).view(states.shape)
            return (decoded + (states - decoded) if self.error else decoded).to(stream)

        about = f"{self.describe()} after layer {index}"
        with edit_residuals(engine.model, index, change, about=about):
            yield engine

    def describe(self) -> str:
        """Say what it is, in words."""
        return f"splice {'with' if self.error else 'without'} the error"


def elsewhere(
    where: Callable[[Places], Tensor], *, seed: int = 0
) -> Callable[[Places], Bool[Tensor, "batch seq"]]:
    """Give a choice of as many other places in each row, where there are so many.

    They are drawn by position from the seed, whatever the batch.
    """

    def others(places: Places) -> Bool[Tensor, "batch seq"]:
        chosen = where(places)
        free = places.real & ~chosen
        flat = places.positions.flatten()
        order = uniform_noise(seed, flat, torch.zeros_like(flat), 1, stream=3).view(free.shape)
        rank = order.masked_fill(~free, math.inf).argsort(dim=1).argsort(dim=1)
        return free & (rank < chosen.sum(dim=1, keepdim=True))

    others.__name__ = f"elsewhere_than_{getattr(where, '__name__', 'chosen')}"
    return others


@torch.no_grad()
def opening_probabilities(
    model, tokenizer, prompts: Sequence[object], *, batch_size: int = 256
) -> Float[Tensor, "prompts vocab"]:
    """Give the distribution of the first generated token, without sampling it.

    Args:
        model: as for `entropy_probe.sample`, steered or not.
        tokenizer: its tokenizer.
        prompts: as for `entropy_probe.sample`.
        batch_size: prompts a pass.
    """
    engine = engine_of(model)
    device, found = engine.model.device, []
    encoded = encode_prompts(tokenizer, prompts)
    with evaluating(engine.model), engine.running():
        for start in range(0, len(encoded), batch_size):
            part = encoded[start : start + batch_size]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in part], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part]).to(device)
            placed = {"position_ids": mask.cumsum(dim=1).sub(1).clamp(min=0)}
            placed = placed if "position_ids" in engine.arguments else {}
            held = cache_inputs(engine.arguments, make_cache(engine.model), ids, mask)
            logits = engine.run(input_ids=ids, use_cache=True, **held, **placed, **engine.last_only)
            found.append(logits[:, -1].float().softmax(dim=-1).cpu())
    return torch.cat(found)


def promoted_tokens(
    before: Float[Tensor, "prompts vocab"], after: Float[Tensor, "prompts vocab"], *, count: int = 1
) -> list[int]:
    """Give the tokens that an edit makes more probable at the opening, the most promoted first.

    What it promotes is measured through all blocks that follow, not read off the unembedding.

    Args:
        before: `opening_probabilities` of the model as it is.
        after: the same under the edit.
        count: how many.
    """
    return (after - before).mean(dim=0).topk(count).indices.tolist()


def permutation_p(value: float, others: Sequence[float]) -> float:
    """Give the chance of a value at least as high among others that mean nothing, itself counted.

    With n others it is 1 / (n + 1) at least: 99 of them can show p = 0.01, not less.
    """
    if not others:
        raise ValueError("there are no others to hold the value against")
    return (1 + sum(other >= value for other in others)) / (1 + len(others))
