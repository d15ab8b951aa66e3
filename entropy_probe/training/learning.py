"""What is done with a batch: the mask, and optimizer updates at the tokens that it keeps."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..hooks import evaluating
from .batch import UpdateBatch
from .collecting import Batch, Collected
from .config import TrainConfig
from .denominators import token_denominator
from .distributed import Ranks
from .first_tokens import first_token_counters
from .matching import rescale_gradients
from .optimizing import rate_at
from .packing import number_prompts, run_lengths, split_rows
from .selection import Kept, keep_tokens
from .sparse import current_statistics, policy_step


@dataclass
class Learnt:
    """What the updates on a batch did, in this process."""

    valid: Bool[Tensor, "batch seq"]
    """The tokens that took part."""
    kept: Bool[Tensor, "batch seq"]
    """Those that trained, in the last epoch."""
    thresholds: list[float] = field(default_factory=list)
    """Least entropy kept in the pool of each update's rows, nats; NaN where it did not choose."""
    counters: Counter[str] = field(default_factory=Counter)
    """Sums over tokens and updates, see `loss_counters` and `first_token_counters`."""
    losses: list[float] = field(default_factory=list)
    """This process's part of each update's loss."""
    norms: list[float] = field(default_factory=list)
    """Length of each update's gradient, before it was changed."""


@dataclass
class Learner:
    """A policy, and what moves it."""

    model: nn.Module
    """The policy."""
    optimizer: torch.optim.Optimizer
    """Over its parameters that train."""
    config: TrainConfig
    """How."""
    ranks: Ranks
    """The processes, each with its own rows."""
    reference: nn.Module | None = None
    """The policy before training, where there is a KL to it."""
    updates: int = 0
    """Updates that this process has made."""

    @property
    def rate(self) -> float:
        """Give the learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def parameters(self) -> int:
        """Count the numbers that train."""
        return sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])

    def learn(self, collected: Collected, *, step: int) -> Learnt:
        """Update the policy on a step's batch, in parts by prompts, several times over."""
        config, batch = self.config, collected.batch
        rows, statistics = self._rows(batch)
        learnt = Learnt(rows.valid, torch.zeros_like(rows.valid))
        for epoch in range(config.epochs):
            for part, mine in enumerate(self._parts(collected)):
                number = (step * config.epochs + epoch) * config.updates + part
                taken, read = rows.take(mine), statistics[:, mine]
                if config.selection.entropy_source == "current":
                    read = self._statistics(taken, config.selection.temperature)
                chosen = self._choose(batch, mine, taken, read, number)
                learnt.kept[mine] = chosen.mask
                learnt.thresholds += chosen.threshold.tolist()
                self._update(taken, chosen.mask, number, learnt)
        return learnt

    def overlap(self, collected: Collected, learnt: Learnt, *, step: int) -> tuple[int, int]:
        """Count tokens in both, and in either, of two masks: the one that trained, and a new one.

        The new one is chosen in the same way by the policy as it is now.
        """
        config, batch = self.config, collected.batch
        rows, _ = self._rows(batch)
        both = either = 0
        for part, mine in enumerate(self._parts(collected)):
            number = (step * config.epochs + config.epochs - 1) * config.updates + part
            taken = rows.take(mine)
            read = self._statistics(taken, config.selection.temperature)
            new = self._choose(batch, mine, taken, read, number).mask
            both += int((new & learnt.kept[mine]).sum())
            either += int((new | learnt.kept[mine]).sum())
        return both, either

    def _parts(self, collected: Collected) -> list[Int[Tensor, " some"]]:
        """Give the rows of each of a batch's updates: its prompts dealt out like cards."""
        places = torch.searchsorted(torch.tensor(collected.groups), collected.batch.rollouts.groups)
        count = self.config.updates
        return [(places % count == part).nonzero()[:, 0] for part in range(count)]

    def _rows(self, batch: Batch) -> tuple[UpdateBatch, Float[Tensor, "2 batch seq"]]:
        """Give what an update reads, and entropies and log-probabilities to choose by."""
        rollouts, config = batch.rollouts, self.config
        valid = rollouts.valid
        if config.overlong == "drop":
            valid = valid & batch.finished[:, None]
        rows = UpdateBatch(
            rollouts.tokens, valid, rollouts.prompt_lengths, rollouts.groups, rollouts.logprobs,
            batch.advantages,
        )  # fmt: skip
        statistics = torch.stack([rollouts.entropy, rollouts.logprobs])
        if config.selection.entropy_source == "old":
            statistics = self._statistics(rows, config.selection.temperature)
        if config.old_logprobs == "recomputed":
            rows = replace(rows, old_logprobs=self._statistics(rows, config.temperature)[1])
        if self.reference is not None:
            reference = self._statistics(rows, config.temperature, model=self.reference)[1]
            rows = replace(rows, reference_logprobs=reference)
        return rows, statistics

    def _choose(
        self, batch: Batch, mine: Tensor, rows: UpdateBatch, statistics: Tensor, number: int
    ) -> Kept:
        """Choose the tokens of an update's rows."""
        return keep_tokens(
            self.config.selection, statistics[0], rows.valid, logprobs=statistics[1],
            rows=batch.rows[mine], groups=rows.groups, gather=self.ranks.gatherer, step=number,
            micro_batches=self._micro_batches(len(mine)),
        )  # fmt: skip

    def _update(self, rows: UpdateBatch, kept: Tensor, number: int, learnt: Learnt) -> None:
        """Move the policy once."""
        config, ranks = self.config, self.ranks
        counting = {"micro_batches": self._micro_batches(len(rows)), "gather": ranks.gatherer}
        selection = config.selection
        kl = None
        if config.beta:
            kl = token_denominator(selection, kept, rows.valid, kl=True, **counting)
        with _without_dropout(self.model):
            done = policy_step(
                self.model, rows, kept=kept,
                denominator=token_denominator(selection, kept, rows.valid, **counting),
                kl_denominator=kl, temperature=config.temperature, clip_low=config.clip_low,
                clip_high=config.clip_high, ratio=config.ratio, beta=config.beta,
                mask_kl=selection.mask_kl, sparse=config.ratio == "token",
                **self._passes(rows, self._read(rows, kept)),
            )  # fmt: skip
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if not config.shard:  # there, the passes have added them up
            ranks.sum_gradients(parameters)
        lengthen = config.gradient_rule == "match"
        norm = rescale_gradients(parameters, config.gradient_norm, lengthen=lengthen)
        learnt.norms.append(norm)
        learnt.losses.append(done.loss)
        first = first_token_counters(
            done.logprobs, rows.old_logprobs, rows.advantages, rows.valid, rows.prompt_lengths,
            clip_low=config.clip_low, clip_high=config.clip_high,
        )  # fmt: skip
        counters = done.counters | first
        learnt.counters.update({name: float(value) for name, value in counters.items()})
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(config, number)
        self.updates += 1
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _statistics(
        self, rows: UpdateBatch, temperature: float, *, model: nn.Module | None = None
    ) -> Float[Tensor, "2 batch seq"]:
        """Give entropies and log-probabilities of a policy as it is, by default the one at hand."""
        how = self._passes(rows, rows.valid)
        found = current_statistics(model or self.model, rows, temperature=temperature, **how)
        return torch.stack(found)

    def _micro_batches(self, rows: int) -> Int[Tensor, " some"] | None:
        """Give the number of each row's micro-batch, where the selection asks for them."""
        size = self.config.micro_batch_rows
        return None if size is None else torch.arange(rows) // size

    def _read(self, rows: UpdateBatch, kept: Tensor) -> Bool[Tensor, "batch seq"]:
        """Give the tokens whose log-probability an update computes."""
        if self.config.ratio != "token":
            return rows.valid
        if self.config.beta:
            return kept if self.config.selection.mask_kl else rows.valid
        return kept & (rows.token_advantages != 0)

    def _passes(self, rows: UpdateBatch, read: Bool[Tensor, "batch seq"]) -> dict[str, object]:
        """Say how the passes over some rows are made; of a sharded model, everywhere as many."""
        config = self.config
        how: dict[str, object] = {
            "precision": "bfloat16" if config.bf16 else "float32",
            "micro_tokens": config.micro_batch_tokens,
        }
        if not config.shard:
            return how
        parts = split_rows(
            run_lengths(read), number_prompts(rows.tokens, rows.prompt_lengths),
            rows.prompt_lengths, most_tokens=config.micro_batch_tokens, share=False,
        )  # fmt: skip
        return how | {"share": False, "passes": max(self.ranks.objects(len(parts)))}


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch dropout off; layers whose states are computed again stay in the mode that does so."""
    again = [m for m in model.modules() if m.training and getattr(m, "gradient_checkpointing", 0)]
    with evaluating(model):
        for module in again:
            module.training = True
        yield
