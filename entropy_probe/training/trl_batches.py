"""A batch of TRL's GRPOTrainer: which of its tokens take part, and its rows as a record."""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.rollout import Rollouts
from entropy_probe.scoring import score

from .left_padded import join_halves
from .passes import own_forward


def valid_tokens(batch: dict[str, Any]) -> Bool[Tensor, "batch seq"]:
    """Give the tokens of a batch's completions that take part, as TRL masks them."""
    mask = batch["completion_mask"]
    return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).bool()


def rollouts_of(
    trainer: Any, batch: dict[str, Any], most: int
) -> tuple[Rollouts, list[dict[str, Any]]]:
    """Score the first rows of a batch that was just generated; give them with facts of each.

    Args:
        trainer: a GRPOTrainer, in its first process.
        batch: what it generated, its rows in order.
        most: rows at most.
    """
    some, step = slice(most), trainer.state.global_step
    rows = join_halves(
        batch["prompt_ids"][some],
        batch["prompt_mask"][some].bool(),
        batch["completion_ids"][some],
        valid_tokens(batch)[some],
        padding=trainer._tokenizer.pad_token_id,
    )
    rollouts = score(
        own_forward(trainer.model),
        trainer._tokenizer,
        rows.tokens,
        rows.valid,
        prompt_lengths=rows.prompt_lengths,
        groups=batch["fork_groups"][some].cpu(),
        temperature=trainer.temperature,
        batch_size=trainer.args.per_device_train_batch_size,
    )
    about = dataclasses.replace(
        rollouts.provenance,
        top_p=trainer.top_p,
        top_k=trainer.top_k or 0,
        origin=f"step {step} of TRL's GRPOTrainer, generated there and scored at once",
    )
    rewards = _rewards(trainer, len(batch["fork_rows"]))[some]
    facts = [
        {"step": step, "advantage": advantage} for advantage in batch["advantages"][some].tolist()
    ]
    return dataclasses.replace(rollouts, provenance=about).with_rewards(rewards), facts


def _rewards(trainer: Any, count: int) -> Float[Tensor, " batch"]:
    """Give the weighted sum of the rewards of the first process's rows, NaN where there is none."""
    total = trainer.accelerator.num_processes * count
    logged = [list(values)[-total:][:count] for values in trainer._logs["rewards"].values()]
    rewards = torch.tensor(logged) * trainer.reward_weights.cpu()[:, None]
    return rewards.nansum(dim=0).where(~rewards.isnan().all(dim=0), math.nan)
