"""TRL's GRPOTrainer, restricted to the tokens of a `Selection`; for TRL 1.16.

What of TRL stays as it is: generation, rewards, advantages, the loss of each token and what it
computes on the way. In particular a mask saves none of TRL's arithmetic, see `costs`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_probe.storage.saving import save_run
from entropy_probe.storage.writing import require_writable

from .denominators import token_denominator
from .distributed import Ranks
from .generation import Generation, read_generation
from .options import Selection
from .selection import keep_tokens
from .trl_batches import rollouts_of, valid_tokens
from .trl_limits import (
    check_trainer,
    costs,
    divides_as_trl,
    from_loss,
    require_trl,
    unread_generation,
)

# What TRL's batches hold beside tokens, where there are images.
_IMAGES = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
    "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


def fork_grpo_trainer(
    selection: Selection,
    *,
    base: type | None = None,
    out: str | Path | None = None,
    every: int = 50,
    rows: int = 64,
) -> type:
    """Give a GRPOTrainer class that trains only the tokens of a selection.

    Its arguments are those of TRL's. Beside TRL's own, each step logs ``forks/kept_share``,
    ``forks/threshold`` (nats; the mean, where there are several), ``forks/entropy_kept`` and
    ``forks/entropy_all``, and with old log-probabilities at hand ``forks/ratio_gap_kept`` and
    ``forks/ratio_gap_all``, the means of |ratio - 1|.

    Args:
        selection: what to keep, over an optimizer step's micro-batches and all ranks, before its
            first update. ``entropy_source`` "rollout" reads the entropies from the logits that
            `generate` draws from, "old" takes a pass after generating, "current" one before each
            update, where it cannot use that of the loss. With ``normalizer="valid"`` and
            ``average="step"`` TRL's own denominator is left alone.
        base: the class to restrict, `trl.GRPOTrainer` or one derived from it.
        out: a folder, in which ``step-00050`` and so on become run directories.
        every: optimizer steps between these; the first generation's is always written.
        rows: rows of the first process in each, at most.

    Raises:
        ImportError: TRL is not installed, or is another version.
        ValueError: on constructing a trainer, whose arguments do not go with the selection.

    >>> from entropy_probe.training import Selection
    >>> from entropy_probe.training.trl import fork_grpo_trainer
    >>> Trainer = fork_grpo_trainer(Selection(fraction=0.2), out="runs/grpo")  # doctest: +SKIP
    >>> Trainer(model=model, reward_funcs=reward, train_dataset=data).train()  # doctest: +SKIP
    """
    require_trl()
    if base is None:
        from trl import GRPOTrainer as base
    for name, value in (("every", every), ("rows", rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return type(
        "ForkGRPOTrainer",
        (ForkingTokens, base),
        {
            "selection": selection,
            "rollouts_out": None if out is None else Path(out),
            "rollouts_every": every,
            "rollouts_rows": rows,
        },
    )


class ForkingTokens:
    """What `fork_grpo_trainer` puts in front of a GRPOTrainer."""

    selection: Selection
    rollouts_out: Path | None
    rollouts_every: int
    rollouts_rows: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Construct the trainer that is restricted, with its own arguments, and check them."""
        super().__init__(*arguments, **options)
        check_trainer(self)
        # Below 1 TRL asks `get_high_entropy_mask`, which gives the selection's.
        self.top_entropy_quantile = 0.0
        self._generation: Generation | None = None
        self._statistics: tuple[Tensor, Tensor] | None = None
        self._inputs: dict[str, Any] | None = None
        self._logprobs: Tensor | None = None
        self._save_at = 0
        if self.rollouts_out is not None:
            require_writable(self.rollouts_out)
        accelerator = self.accelerator
        self._ranks = Ranks(
            accelerator.process_index, accelerator.num_processes, accelerator.device
        )

    @property
    def costs(self) -> list[str]:
        """Say what a step computes, whatever share is kept."""
        return costs(self.selection)

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> tuple:
        """Generate, reading the entropies where the selection wants those of the rollout."""
        if self.selection.entropy_source != "rollout" or unread_generation(self):
            return super()._generate_single_turn(*arguments, **options)
        with read_generation(self.model, temperature=self.temperature) as generation:
            made = super()._generate_single_turn(*arguments, **options)
        self._statistics = generation.statistics(made[0])
        return made

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Generate a batch; number its rows and add what the selection reads."""
        batch = super()._generate_and_score_completions(inputs)
        ids = batch["completion_ids"]
        count, training = len(ids), self.model.training
        each = self.num_generations if training else self.num_generations_eval
        batch["fork_rows"] = torch.arange(count, device=ids.device) + self._ranks.index * count
        batch["fork_groups"] = batch["fork_rows"] // each
        if self.selection.entropy_source == "old":
            self._statistics = self._pass_over(batch)
        if self._statistics is not None:
            for name, values in zip(("entropy", "logprobs"), self._statistics, strict=True):
                wide = torch.zeros(ids.shape, device=ids.device)
                wide[:, : values.shape[1]] = values.to(ids.device)
                batch[f"fork_{name}"] = wide
            self._statistics = None
        if training and self.state.global_step >= self._save_at:
            self._save(batch)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Give a micro-batch, with the mask of the optimizer step that it belongs to."""
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and not from_loss(self.selection):
            accumulated = self.args.gradient_accumulation_steps
            place = self._step % self.args.steps_per_generation
            first = place - place % accumulated
            known = "fork_kept" in inputs and self.selection.entropy_source != "current"
            if place == first and not known:
                self._choose(self._buffered_inputs[first : first + accumulated])
        return inputs

    def _choose(self, window: Sequence[dict[str, Any]]) -> None:
        """Choose the tokens of an optimizer step's micro-batches, and what divides their loss."""
        if self.selection.entropy_source == "current":
            for batch in window:
                batch["fork_entropy"], batch["fork_logprobs"] = self._pass_over(batch)
        sizes = [len(batch["fork_rows"]) for batch in window]
        parts = torch.arange(len(window)).repeat_interleave(torch.tensor(sizes))
        joined = {
            name: torch.cat([batch[f"fork_{name}"] for batch in window])
            for name in ("entropy", "logprobs", "rows", "groups")
            if f"fork_{name}" in window[0]
        }
        valid = torch.cat([valid_tokens(batch) for batch in window])
        kept = self._keep(parts=parts.to(valid.device), valid=valid, **joined)
        denominator = token_denominator(
            self.selection, kept, valid, micro_batches=parts.to(valid.device),
            gather=self._ranks.gatherer,
        )  # fmt: skip
        denominators = denominator.expand(len(valid), 1).split(sizes)
        for batch, mask, divisor in zip(window, kept.split(sizes), denominators, strict=True):
            batch["fork_kept"], batch["fork_denominator"] = mask, divisor

    def _keep(
        self, *, rows: Tensor, groups: Tensor, parts: Tensor, valid: Tensor,
        entropy: Tensor | None = None, logprobs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Choose tokens, and log what was chosen."""
        if entropy is None:  # not known, and not read
            entropy = torch.full(valid.shape, math.nan, device=valid.device).where(valid, 0.0)
        kept = keep_tokens(
            self.selection, entropy, valid, logprobs=logprobs, rows=rows, groups=groups,
            micro_batches=parts, gather=self._ranks.gatherer, step=self.state.global_step,
        )  # fmt: skip
        counts = [kept.mask.sum(), valid.sum(), entropy[kept.mask].sum(), entropy[valid].sum()]
        known = kept.threshold[~kept.threshold.isnan()]
        counts += [known.sum(), torch.tensor(float(len(known)))]
        everywhere = self._ranks.objects([float(c) for c in counts])
        n, total, own, whole, level, pools = torch.tensor(everywhere).double().sum(dim=0).tolist()
        self._log_forks(
            {
                "kept_share": n / total if total else math.nan,
                "threshold": level / pools if pools else math.nan,
                "entropy_kept": own / n if n else math.nan,
                "entropy_all": whole / total if total else math.nan,
            }
        )
        return kept.mask

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Let TRL compute the loss, which asks for this micro-batch's mask on the way."""
        self._inputs, self._logprobs = inputs, None
        try:
            loss = super()._compute_loss(model, inputs)
            self._log_ratios(inputs)
        finally:
            self._inputs = None
        return loss

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """Give the selection's mask, which TRL multiplies into the loss of each token.

        It is a weight where the selection divides by something other than TRL does.
        """
        inputs, valid = self._inputs, mask.bool()
        # TRL gives the same inputs again in each of its num_iterations: the mask there is old.
        if from_loss(self.selection) or "fork_kept" not in inputs or not self.model.training:
            inputs["fork_kept"] = self._keep(
                entropy=entropies.detach().float(), logprobs=self._logprobs,
                rows=inputs["fork_rows"], groups=inputs["fork_groups"],
                parts=torch.zeros_like(inputs["fork_rows"]), valid=valid,
            )  # fmt: skip
        kept = inputs["fork_kept"]
        if divides_as_trl(self.selection) or "fork_denominator" not in inputs:
            return kept
        steps = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        count = inputs["num_items_in_batch"].clamp(min=1.0) * steps
        return kept * (count / inputs["fork_denominator"])

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> tuple:
        """Compute as TRL does, and keep what the loss is about to use."""
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        if self._inputs is not None:
            self._logprobs = found[0].detach()
        return found

    def _pass_over(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Give entropies and log-probabilities of a batch's completions, in a pass of their own."""
        from trl.models.utils import disable_gradient_checkpointing

        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        images = {name: batch[name] for name in _IMAGES if batch.get(name) is not None}
        checkpointing = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            logprobs, entropy, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size, compute_entropy=True, **images,
            )  # fmt: skip
        return entropy.float(), logprobs.float()

    def _log_forks(self, values: dict[str, float]) -> None:
        """Add numbers to TRL's log."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[f"forks/{name}"].append(value)

    def _log_ratios(self, inputs: dict[str, Any]) -> None:
        """Log how far the policy has moved, at the kept tokens and at all."""
        if "old_per_token_logps" not in inputs:
            return
        valid = valid_tokens(inputs)
        gap = ((self._logprobs - inputs["old_per_token_logps"]).exp() - 1).abs()
        masks = {"kept": inputs["fork_kept"], "all": valid}
        sums = [(gap * mask).sum() for mask in masks.values()]
        counts = [mask.sum() for mask in masks.values()]
        totals = self.accelerator.reduce(torch.stack(sums + counts).float(), reduction="sum")
        means = (totals[:2] / totals[2:].clamp(min=1.0)).tolist()
        self._log_forks({f"ratio_gap_{name}": m for name, m in zip(masks, means, strict=True)})

    def _save(self, batch: dict[str, Any]) -> None:
        """Write rows of a generated batch as a run directory: first process, all statistics."""
        step = self.state.global_step
        self._save_at = step + self.rollouts_every
        if self.rollouts_out is None or not self._ranks.main:
            return
        rollouts, facts = rollouts_of(self, batch, self.rollouts_rows)
        save_run(rollouts, self.rollouts_out / f"step-{step:05d}", facts=facts, overwrite=True)
