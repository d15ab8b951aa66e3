"""The options of `probe train`: those of a configuration, and of its selection."""

from collections.abc import Callable, Mapping
from typing import Any

import click

_WORDS = {
    "select": ("forks", "all", "bottom", "random", "surprise"),
    "scope": ("sequence", "group", "micro_batch", "global_micro_batch", "batch", "global"),
    "rule": ("exact", "threshold"),
    "quantile": ("linear", "kth"),
    "entropy_source": ("rollout", "old", "current"),
    "normalizer": ("selected", "valid"),
    "average": ("step", "micro_batch", "sequence"),
}
PRESETS = ("paper", "paper_v1", "trl", "swift", "lightrft", "prime_rl")
FLOAT, INT, FLAG = float, int, bool

SELECTION: dict[str, tuple[Any, str]] = {
    "select": (_WORDS["select"], "Tokens that train.  [default: forks]"),
    "fraction": (FLOAT, "Share of the tokens that is kept.  [default: 0.2]"),
    "scope": (_WORDS["scope"], "What the share is a share of.  [default: global]"),
    "rule": (_WORDS["rule"], "An exact count, or all above a threshold.  [default: exact]"),
    "threshold": (FLOAT, "Nats, under the threshold rule."),
    "quantile": (_WORDS["quantile"], "The threshold as a quantile of its pool."),
    "entropy_source": (_WORDS["entropy_source"], "Policy that chooses.  [default: rollout]"),
    "normalizer": (_WORDS["normalizer"], "Tokens that means count.  [default: selected]"),
    "average": (_WORDS["average"], "What means are taken of.  [default: step]"),
    "mask_kl": (FLAG, "Whether a KL counts at kept tokens only.  [default: yes]"),
}
"""Options of a `Selection`."""

CONFIG: dict[str, tuple[Any, str]] = {
    "steps": (INT, "Batches of rollouts.  [default: 100]"),
    "prompts": (INT, "Prompts a batch, over all processes.  [default: 16]"),
    "n": (INT, "Completions a prompt.  [default: 8]"),
    "max_new_tokens": (INT, "Tokens after which a completion is cut.  [default: 256]"),
    "temperature": (FLOAT, "Sampling temperature.  [default: 1.0]"),
    "stop": ([str], "Text that ends a completion; repeatable."),
    "updates": (INT, "Optimizer updates that a batch is split into.  [default: 1]"),
    "epochs": (INT, "How often a batch is gone through.  [default: 1]"),
    "clip_low": (FLOAT, "The ratio counts down to 1 - this.  [default: 0.2]"),
    "clip_high": (FLOAT, "The ratio counts up to 1 + this.  [default: 0.28]"),
    "old_logprobs": (("rollout", "recomputed"), "What ratios are against.  [default: rollout]"),
    "ratio": (("token", "sequence"), "What a ratio is of.  [default: token]"),
    "beta": (FLOAT, "Weight of the KL from the model before training.  [default: 0.0]"),
    "baseline": (("mean", "leave_one_out"), "What rewards are against.  [default: mean]"),
    "scale": (("std", "none"), "What advantages are divided by.  [default: std]"),
    "optimizer": (("sgd", "adamw"), "[default: adamw]"),
    "lr": (FLOAT, "Learning rate after warm-up.  [default: 1e-06]"),
    "momentum": (FLOAT, "Momentum of SGD, beta1 of AdamW.  [default: 0.9]"),
    "weight_decay": (FLOAT, "[default: 0.0]"),
    "warmup": (INT, "Updates over which the learning rate rises.  [default: 0]"),
    "decay": (("linear", "none"), "Fall of the learning rate to 0 at the end.  [default: none]"),
    "gradient_rule": (("clip", "match"), "Shorten long gradients, or all alike.  [default: clip]"),
    "gradient_norm": (FLOAT, "Length of the gradient, at most.  [default: 1.0]"),
    "micro_batch_tokens": (INT, "Tokens of a pass at most.  [default: 16384]"),
    "micro_batch_rows": (INT, "Rows of a micro-batch, for selections by micro-batches."),
    "batch_size": (INT, "Rows decoded together.  [default: 256]"),
    "resample": (INT, "Draws in place of groups with equal rewards.  [default: 0]"),
    "overlong": (("keep", "drop", "punish"), "What becomes of cut completions.  [default: keep]"),
    "overlong_cache": (INT, "Tokens before the cut that are punished.  [default: 0]"),
    "problems": (INT, "Problems of the task to train on.  [default: 2000]"),
    "label_samples": (INT, "Samples a problem for labels of the majority.  [default: 64]"),
    "seed": (INT, "Seed of problems, their order and the noise.  [default: 0]"),
    "bf16": (FLAG, "Whether blocks multiply in bfloat16.  [default: no]"),
    "shard": (FLAG, "Whether weights are sharded over processes.  [default: no]"),
    "evaluate_every": (INT, "Steps between evaluations, 0 for none.  [default: 0]"),
    "evaluate_problems": (INT, "Held-out problems.  [default: 100]"),
    "evaluate_n": (INT, "Completions of each.  [default: 4]"),
    "evaluate_temperatures": ([FLOAT], "Their temperature; repeatable.  [default: 1.0]"),
    "pass_at": ([INT], "The k of pass@k; repeatable.  [default: 1]"),
    "checkpoint_every": (INT, "Steps between checkpoints.  [default: 10]"),
    "keep_checkpoints": (INT, "Checkpoints kept.  [default: 2]"),
    "rollouts_every": (INT, "Steps between saved rollouts, 0 for none.  [default: 10]"),
    "rollouts_prompts": (INT, "Prompts whose rollouts are saved.  [default: 4]"),
    "overlap_every": (INT, "Steps between comparisons of masks, 0 for none.  [default: 0]"),
}
"""Options of a `TrainConfig`, its selection aside."""


def training_options(command: Callable) -> Callable:
    """Add every option of a configuration; those that are not given are None."""
    for name, (kind, text) in reversed((SELECTION | CONFIG).items()):
        flag = f"--{name.replace('_', '-')}"
        if kind is FLAG:
            option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
        elif isinstance(kind, list):
            option = click.option(flag, name, type=kind[0], multiple=True, help=text)
        else:
            type_ = click.Choice(kind) if isinstance(kind, tuple) else kind
            option = click.option(flag, name, type=type_, default=None, help=text)
        command = option(command)
    return command


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options that were given."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name in SELECTION | CONFIG and value is not None and value != ()
    }
