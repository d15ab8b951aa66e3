"""Activations of a dictionary on states of runs, and what each state is: what scores are of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.rollout import Rollouts
from entropy_probe.storage.errors import RunConflict

from .evaluate import records
from .intervals import Prompts
from .sae import SparseDictionary
from .store import Source, captured_forks

CELLS = 2**26
"""Activations held at most: 256 MB. A score takes a few times as much."""


@dataclass(frozen=True)
class Activities:
    """Activations at some states; a line of everything is a state."""

    acts: Float[Tensor, "n d_sae"]
    """Activation of each feature."""
    read: Int[Tensor, " n"]
    """The token at the state's own position, the last one that it has seen."""
    written: Int[Tensor, " n"]
    """The token that was drawn from what it predicted."""
    places: Int[Tensor, " n"]
    """How many tokens of the completion it has seen; 0 is the last token of the prompt."""
    rows: Int[Tensor, " n"]
    """Number of the sample, over all sources."""
    prompts: Int[Tensor, " n"]
    """Number of the sample's prompt: equal prompts have one number, whatever source they are in."""
    entropy: Float[Tensor, " n"]
    """Entropy in nats of what it predicted."""
    forks: Bool[Tensor, " n"]
    """Whether that is among the forks."""
    rewards: Float[Tensor, " n"] | None
    """Reward of the sample, NaN where unknown; None where there are none."""
    marks: Int[Tensor, " n"]
    """What was asked for about the token read; -1 where nothing was."""
    captured: int
    """How many states there were; those here are a random part of them."""

    def __len__(self) -> int:
        """Count the states."""
        return len(self.read)

    def __getitem__(self, mask: Bool[Tensor, " n"]) -> "Activities":
        """Give the states where a mask is True."""
        names = (
            "acts",
            "read",
            "written",
            "places",
            "rows",
            "prompts",
            "entropy",
            "forks",
            "marks",
        )
        picked = {name: getattr(self, name)[mask] for name in names}
        rewards = None if self.rewards is None else self.rewards[mask]
        return Activities(**picked, rewards=rewards, captured=self.captured)


def activities(
    sae: SparseDictionary,
    sources: Source | Iterable[Source],
    *,
    states: int | None = None,
    fraction: float = 0.2,
    seed: int = 0,
    choose: Callable[[Rollouts], Bool[Tensor, "batch seq"]] | None = None,
    mark: Callable[[Rollouts], Int[Tensor, "batch seq"]] | None = None,
    whole: bool = False,
) -> Activities:
    """Encode captured states, a chunk at a time; keep a random part where there are too many.

    Args:
        sae: the dictionary; its layer must have been captured.
        sources: records and run directories.
        states: how many states to keep at most; default, as many as fit in 256 MB.
        fraction: share of each chunk's tokens that are forks.
        seed: of the choice of states.
        choose: takes a chunk's record and gives the tokens whose states may take part.
        mark: takes a chunk's record and gives a number a token, such as `word_tokens`; each state
            gets that of the token it has just read.
        whole: keep or leave out samples as a whole, for what looks at a state's neighbours.

    Raises:
        ValueError: no states of the dictionary's layer, or whole samples where not all was kept.
    """
    most = CELLS // sae.d_sae if states is None else states
    sources = list(sources) if not isinstance(sources, Source) else sources
    counts = [_counted(r, choose, whole) for r in records(sources, residuals=False)]
    total = sum(int(count.sum()) for count in counts)
    if not total:
        raise ValueError("there are no captured states to score: capture with --layers")
    noise = torch.Generator().manual_seed(seed)
    if whole:
        wanted = _whole(torch.cat(counts), most, noise)
    else:
        wanted = torch.randperm(total, generator=noise)[:most].sort().values
    parts: list[dict[str, Tensor]] = []
    seen, rows, prompts = 0, 0, Prompts()
    for record in records(sources):
        mask = _chosen(record, choose)
        count, owner = int(mask.sum()), prompts.numbers(record)
        first, last = torch.searchsorted(wanted, torch.tensor([seen, seen + count])).tolist()
        if last > first:
            which = wanted[first:last] - seen
            part = _encoded(sae, record, mask, which, fraction, mark)
            part["prompts"] = owner[part["rows"]]
            part["rows"] += rows
            parts.append(part)
        seen += count
        rows += len(record)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if bool(joined["rewards"].isnan().all()):
        joined["rewards"] = None
    return Activities(**joined, captured=total)


def _chosen(record: Rollouts, choose: Callable | None) -> Tensor:
    """Give the captured tokens that may take part."""
    return record.captured if choose is None else record.captured & choose(record)


def _counted(record: Rollouts, choose: Callable | None, whole: bool) -> Int[Tensor, " batch"]:
    """Count the states of each sample; refuse parts of samples where whole ones are wanted."""
    chosen = _chosen(record, choose)
    missing = int((record.valid & ~chosen).sum())
    if whole and bool(chosen.any()) and missing:
        raise RunConflict(
            "whole samples are needed, and states of some tokens are not there",
            f"{missing} of {int(record.valid.sum())} tokens have none (captured: "
            f"{record.provenance.capture}), and a state's neighbours count",
            "capture with --activations all (residual_positions='all'), and choose none of them",
        )
    return chosen.sum(dim=1)


def _whole(
    counts: Int[Tensor, " samples"], most: int, noise: torch.Generator
) -> Int[Tensor, " kept"]:
    """Draw samples as long as all of their states fit, and give the numbers of those states."""
    order = torch.randperm(len(counts), generator=noise)
    fits = torch.zeros(len(counts), dtype=torch.bool)
    fits[order] = counts[order].cumsum(dim=0) <= most
    if not bool((fits & (counts > 0)).any()):
        raise RunConflict(
            f"no whole sample fits into {most} states",
            f"samples have up to {int(counts.max())}",
            "allow more with --states (states=)",
        )
    return fits.repeat_interleave(counts).nonzero()[:, 0]


def _encoded(
    sae: SparseDictionary, record: Rollouts, mask: Tensor, which: Tensor, fraction: float,
    mark: Callable | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Encode some of a record's chosen states."""
    if sae.layer not in record.residuals:
        raise ValueError(
            f"the dictionary reads layer {sae.layer}, but states were captured of layers "
            f"{sorted(record.residuals)}"
        )
    forks = torch.zeros_like(mask)
    forks[record.captured] = captured_forks(
        record.entropy, record.valid, record.captured, record.controls, fraction=fraction
    )
    packed = torch.where(mask[record.captured])[0][which]
    states = record.residuals[sae.layer][packed]
    row, place = (index[which] for index in mask.nonzero(as_tuple=True))
    rewards = torch.full((len(record),), torch.nan)
    marks = torch.full_like(record.tokens, -1) if mark is None else mark(record)
    return {
        "acts": torch.cat([sae.encode(part.float()).float() for part in states.split(4096)]),
        "read": record.tokens[row, place - 1],
        "written": record.tokens[row, place],
        "places": place - record.prompt_lengths[row],
        "rows": row.clone(),
        "entropy": record.entropy[row, place],
        "forks": forks[row, place],
        "rewards": (rewards if record.rewards is None else record.rewards.float())[row],
        "marks": marks[row, place - 1],
    }
