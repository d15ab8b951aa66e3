"""The same run in TRL 1.16: the arguments of its `GRPOConfig`, and what it has no argument for."""

import math
from typing import Any

from .config import TrainConfig

_OPTIMIZERS = {"sgd": "sgd", "adamw": "adamw_torch"}
_LOSSES = {"step": "dapo", "sequence": "grpo", "micro_batch": "bnpo"}


def trl_arguments(config: TrainConfig, *, processes: int = 1) -> dict[str, Any]:
    """Give the arguments of TRL 1.16's `GRPOConfig` that come nearest to a configuration.

    A training step of TRL's is an optimizer update, and its batch sizes count completions.

    Args:
        config: the run.
        processes: how many share the prompts.
    """
    rows, micro = _batch_sizes(config, processes)
    found = {
        "max_steps": config.total_updates,
        "num_generations": config.n,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "steps_per_generation": config.updates * (rows // micro),
        "num_iterations": config.epochs,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_entropy_quantile": _quantile(config),
        "loss_type": _LOSSES[config.selection.average],
        "importance_sampling_level": config.ratio,
        "epsilon": config.clip_low,
        "epsilon_high": config.clip_high,
        "beta": config.beta,
        "scale_rewards": {"std": "group", "none": "none"}[config.scale],
        "mask_truncated_completions": config.overlong == "drop",
        "optim": _OPTIMIZERS[config.optimizer],
        "learning_rate": config.lr,
        "weight_decay": config.weight_decay,
        "warmup_steps": config.warmup,
        "lr_scheduler_type": "linear" if config.decay == "linear" else "constant_with_warmup",
        "max_grad_norm": config.gradient_norm,
        "bf16": config.bf16,
        "seed": config.seed,
    }
    if config.optimizer == "sgd":
        found["optim_args"] = f"momentum={config.momentum},weight_decay={config.weight_decay}"
    else:
        found["adam_beta1"] = config.momentum
    return found


def not_in_trl(config: TrainConfig, *, processes: int = 1) -> list[str]:
    """Say what of a configuration TRL 1.16 has no argument for, and what it does instead.

    Args:
        config: the run.
        processes: how many share the prompts.
    """
    selection = config.selection
    rows, micro = _batch_sizes(config, processes)
    parts, wanted = processes * config.updates, config.micro_batch_rows
    there = _of_the_mask(config) if selection.select != "all" else {}
    there |= {
        f"prompts={config.prompts}: batches are of equal size, {rows * parts} completions in "
        f"{parts} parts": rows * parts != config.prompts * config.n,
        f"micro_batch_rows={wanted}: micro-batches are of equal size, {micro} of {rows} rows": (
            wanted is not None and wanted != micro
        ),
        "resample: groups whose rewards are equal stay in the batch": config.resample > 0,
        "overlong='punish': add get_soft_overlong_punishment to the rewards": (
            config.overlong == "punish"
        ),
        f"baseline={config.baseline!r}: the mean of the group": config.baseline != "mean",
        "gradient_rule='match': gradients are clipped, not lengthened": (
            config.gradient_rule == "match"
        ),
        "decay='linear' from the first update: it begins after the warm-up": (
            config.decay == "linear"
        ),
        f"average={selection.average!r}: rows that are cut off and dropped count in the mean": (
            selection.average != "step" and config.overlong == "drop"
        ),
        "stop: pass it in generation_kwargs": bool(config.stop),
        "evaluate_*: evaluate its checkpoints with `probe capture --task`": (
            config.evaluate_every > 0
        ),
    }
    return [words for words, differs in there.items() if differs]


def _batch_sizes(config: TrainConfig, processes: int) -> tuple[int, int]:
    """Give rows of an update and of a micro-batch in each process that TRL can split evenly.

    Its batch of generations must be whole groups, and each update's rows whole micro-batches.
    """
    parts = processes * config.updates
    least = config.n // math.gcd(config.n, parts)
    rows = max(config.prompts * config.n // parts // least, 1) * least
    most = min(config.micro_batch_rows or rows, rows)
    return rows, next(size for size in range(most, 0, -1) if rows % size == 0)


def _quantile(config: TrainConfig) -> float:
    """Give the share that TRL keeps; 1 where it has no mask like this one."""
    selection = config.selection
    masked = selection.select == "forks" and selection.fraction is not None
    return selection.fraction if masked else 1.0


def _of_the_mask(config: TrainConfig) -> dict[str, bool]:
    """Say what of a mask TRL has otherwise, and whether this one has it so."""
    selection = config.selection
    fixed = selection.threshold is not None
    return {
        f"threshold={selection.threshold}: a share, and no threshold in nats: all tokens train": (
            fixed
        ),
        f"select={selection.select!r}: only the most uncertain tokens, or all": (
            selection.select != "forks"
        ),
        "normalizer='selected': the kept terms are divided by all tokens": (
            selection.normalizer == "selected"
        ),
        f"entropy_source={selection.entropy_source!r}: entropies of the policy being updated": (
            selection.entropy_source != "current"
        ),
        f"scope={selection.scope!r}: each micro-batch has a threshold, over all ranks": (
            selection.scope != "global_micro_batch" and not fixed
        ),
        f"rule={selection.rule!r}: a linear quantile, at which equal entropies are all kept": (
            (selection.rule, selection.quantile) != ("threshold", "linear") and not fixed
        ),
        "mask_kl=True: the KL counts at all tokens": config.beta > 0 and selection.mask_kl,
    }
