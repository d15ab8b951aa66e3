"""How good a dictionary is: reconstruction, sparsity, and the loss when it is spliced in.

Forks and all other states are told apart: a dictionary may reconstruct the many certain tokens
and lose the few that decide.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.models.engine import decoder_of
from entropy_probe.rollout import Rollouts
from entropy_probe.storage.run import Run, open_run

from .intervals import Prompts, bootstrap, cluster_sums, renumbered
from .sae import SparseDictionary
from .splice import spliced_losses
from .store import Source, captured_forks

PLACES = ("all", "forks", "elsewhere")


@dataclass(frozen=True)
class Figure:
    """A measured number with its 95% interval, prompts drawn again."""

    value: float
    """The estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


@dataclass(frozen=True)
class Fit:
    """What a dictionary does to some states."""

    states: int
    """How many."""
    explained_variance: Figure
    """1 - squared error / squared distance from the mean of all states measured."""
    l0: Figure
    """Active features a state."""


@dataclass(frozen=True)
class Loss:
    """What a splice does to the model's loss at some tokens, in nats a token."""

    tokens: int
    """How many."""
    clean: Figure
    """The model as it is."""
    spliced: Figure
    """States that predict these tokens replaced by their reconstruction."""
    ablated: Figure
    """The same states replaced by their mean."""
    recovered: Figure | None
    """(ablated - spliced) / (ablated - clean); None where ablation does not clearly hurt."""


@dataclass(frozen=True)
class Evaluation:
    """A dictionary measured on states, and in its model."""

    fits: Mapping[str, Fit]
    """Place ("all", "forks", "elsewhere") -> reconstruction there."""
    losses: Mapping[str, Loss]
    """Place -> loss there; empty where no model was given."""
    dead: int
    """Features that were active at no state measured."""
    d_sae: int
    """Features in all."""
    density: Float[Tensor, " d_sae"]
    """Share of the states at which each feature is active."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON values, without the densities."""
        places = {"fits": self.fits, "losses": self.losses}
        plain = {k: {p: asdict(v) for p, v in found.items()} for k, found in places.items()}
        return plain | {"dead": self.dead, "d_sae": self.d_sae}


def evaluate(
    sae: SparseDictionary,
    sources: Source | Iterable[Source],
    *,
    model=None,
    fraction: float = 0.2,
    states: int = 200_000,
    rows: int = 256,
    batch_size: int = 16,
) -> Evaluation:
    """Measure a dictionary on captured states, and spliced into its model, forks told apart.

    Args:
        sae: the dictionary.
        sources: records and run directories, better not those that it was trained on.
        model: the model that the states are of; without it there are no losses.
        fraction: share of each chunk's tokens that are forks.
        states: how many states to measure at most, in whole chunks.
        rows: how many rows to run through the model at most.
        batch_size: rows a pass.

    Raises:
        ValueError: no states of the dictionary's layer, or a model of another width.
    """
    sums: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    fires, seen, kept = torch.zeros(sae.d_sae, dtype=torch.long), 0, []
    prompts, owners = Prompts(), []
    for record in records(sources):
        if seen >= states:
            break
        forks = captured_forks(
            record.entropy, record.valid, record.captured, record.controls, fraction=fraction
        )
        found, fired = _measure(sae, _states_of(record, sae.layer))
        number = prompts.numbers(record)[record.captured.nonzero()[:, 0]]
        numbers, owner = number.unique(return_inverse=True)
        owners.append(numbers)
        for place, mask in (("all", forks | True), ("forks", forks), ("elsewhere", ~forks)):
            sums[place].append(cluster_sums(found * mask[:, None], owner))
        fires += fired
        seen += len(forks)
        if model is not None and sum(map(len, kept)) < rows:
            kept.append(record[: rows - sum(map(len, kept))])
    if not seen:
        raise ValueError("there are no states to measure: the runs are empty")
    totals = _joined(sums, owners)
    mean = totals["all"][:, 4:].sum(dim=0) / seen
    losses = {}
    if model is not None:
        losses = _losses(sae, model, kept, mean.float(), fraction, batch_size)
    return Evaluation(
        {place: _fit(found, mean) for place, found in totals.items() if found[:, 0].sum() > 0},
        losses,
        int((fires == 0).sum()),
        sae.d_sae,
        fires.float() / seen,
    )


def records(sources: Source | Iterable[Source], *, residuals: bool = True) -> Iterator[Rollouts]:
    """Go through records and runs, a chunk at a time."""
    for source in [sources] if isinstance(sources, Rollouts | Run | str | Path) else sources:
        if isinstance(source, Rollouts):
            yield source
        else:
            run = source if isinstance(source, Run) else open_run(source)
            yield from run.records(residuals=residuals)


def _states_of(record: Rollouts, layer: int | None) -> Tensor:
    """Give a record's states of the dictionary's layer."""
    if layer not in record.residuals:
        raise ValueError(
            f"the dictionary reads layer {layer}, but states were captured of layers "
            f"{sorted(record.residuals)}"
        )
    return record.residuals[layer]


def _measure(sae: SparseDictionary, states: Tensor) -> tuple[Tensor, Tensor]:
    """Give per state 1, squared error, squared length, active features, itself; and the firings.

    States are taken a few thousand at a time: activations are many times wider.
    """
    found, fires = [], torch.zeros(sae.d_sae, dtype=torch.long)
    for part in states.split(4096):
        part = part.float()
        active = sae.encode(part) != 0
        error = (sae.reconstruct(part) - part).double().square().sum(dim=1)
        length = part.double().square().sum(dim=1)
        counted = torch.stack([torch.ones_like(error), error, length, active.sum(dim=1)], dim=1)
        found.append(torch.cat([counted, part.double()], dim=1))
        fires += active.sum(dim=0)
    return torch.cat(found), fires


def _fit(sums: Tensor, mean: Tensor) -> Fit:
    """Put the figures of a place together from its sums over clusters."""

    def statistic(totals: Tensor) -> Tensor:
        count, error, length, active = totals[..., :4].unbind(dim=-1)
        around = length - 2 * totals[..., 4:] @ mean + count * mean.square().sum()
        return torch.stack([1 - error / around, active / count], dim=-1)

    figures = _figures(sums, statistic)
    return Fit(int(sums[:, 0].sum()), *figures)


def _losses(
    sae: SparseDictionary,
    model,
    kept: list[Rollouts],
    mean: Float[Tensor, " d_model"],
    fraction: float,
    batch_size: int,
) -> dict[str, Loss]:
    """Run the model clean, spliced and ablated over some rows."""
    there = sae.to(decoder_of(model).device)
    changes = (None, there.reconstruct, lambda states: mean.to(states).expand_as(states))
    sums: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    prompts, owners = Prompts(), []
    for record in kept:
        places = record.captured
        forks = torch.zeros_like(places)
        forks[places] = captured_forks(
            record.entropy, record.valid, places, record.controls, fraction=fraction
        )
        loss = [
            spliced_losses(
                model, record.tokens, places, layer=sae.layer, change=change,
                prompt_lengths=record.prompt_lengths, batch_size=batch_size,
            )
            for change in changes
        ]  # fmt: skip
        number = prompts.numbers(record)[places.nonzero()[:, 0]]
        numbers, owner = number.unique(return_inverse=True)
        owners.append(numbers)
        each = torch.stack([torch.ones_like(loss[0]), *loss], dim=-1)[places]
        for place, mask in (("all", places), ("forks", forks), ("elsewhere", places & ~forks)):
            sums[place].append(cluster_sums(each * mask[places][:, None], owner))
    return {place: _loss(found) for place, found in _joined(sums, owners).items()}


def _joined(sums: Mapping[str, list[Tensor]], owners: list[Tensor]) -> dict[str, Tensor]:
    """Join the sums of chunks, those of one prompt added up."""
    owner = renumbered(torch.cat(owners))
    return {place: cluster_sums(torch.cat(found), owner) for place, found in sums.items()}


def _loss(sums: Tensor) -> Loss:
    """Put the losses of a place together from their sums over clusters."""

    def statistic(totals: Tensor) -> Tensor:
        count, clean, spliced, ablated = totals.unbind(dim=-1)
        recovered = (ablated - spliced) / (ablated - clean)
        harm = (ablated - clean) / count
        return torch.stack([clean / count, spliced / count, ablated / count, recovered, harm], -1)

    *figures, harm = _figures(sums, statistic)
    if not harm.low > 0:
        figures[3] = None
    return Loss(int(sums[:, 0].sum()), *figures)


def _figures(sums: Tensor, statistic) -> list[Figure]:
    """Give each result of a statistic with its interval."""
    columns = zip(*(part.tolist() for part in bootstrap(sums, statistic)), strict=True)
    return [Figure(*column) for column in columns]
