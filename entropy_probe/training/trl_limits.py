"""What TRL 1.16 computes whatever is selected, and which of its options a selection excludes."""

import importlib.metadata
from typing import Any

from .options import Selection

SUPPORTED = "1.16"

_PART = ("sequence", "micro_batch", "global_micro_batch")
"""Scopes that a micro-batch decides alone."""

_DIVIDED = ("dapo", "cispo", "vespo")
"""Losses that TRL divides by a count of the whole batch."""


def require_trl() -> None:
    """Raise unless the supported version of TRL is installed.

    Raises:
        ImportError: it is not.
    """
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None or version.split(".")[:2] != SUPPORTED.split("."):
        found = "is not installed" if version is None else f"{version} is installed"
        raise ImportError(
            f"TRL {found}, and this works with {SUPPORTED}: pip install 'trl=={SUPPORTED}.0'"
        )


def from_loss(selection: Selection) -> bool:
    """Tell whether the entropies of the loss's own pass are enough to choose by."""
    return (
        selection.entropy_source == "current"
        and selection.scope in _PART
        and divides_as_trl(selection)
    )


def reads_statistics(selection: Selection) -> bool:
    """Tell whether the choice depends on entropies or log-probabilities at all."""
    return selection.select not in ("all", "random")


def unread_generation(trainer: Any) -> str | None:
    """Name the option by which completions come from elsewhere than one call of `generate`."""
    elsewhere = {
        "use_vllm": trainer.use_vllm,
        "use_transformers_continuous_batching": trainer.use_transformers_continuous_batching,
        "tools": bool(trainer.tools),
        "rollout_func": trainer.rollout_func is not None,
    }
    return next((name for name, used in elsewhere.items() if used), None)


def divides_as_trl(selection: Selection) -> bool:
    """Tell whether the denominator is TRL's own: all tokens of the step."""
    return selection.normalizer == "valid" and selection.average == "step"


def costs(selection: Selection) -> list[str]:
    """Say what TRL 1.16 and the selection compute in a step, whatever share is kept."""
    source = {
        "rollout": "entropies come from generation's own logits: the arithmetic of a softmax, no "
        "pass",
        "old": "entropies of the old policy: a pass without gradient over each generated batch",
        "current": "entropies of the current policy: a pass without gradient over the batch of "
        "each update",
    }[selection.entropy_source]
    if from_loss(selection):
        source = "entropies come from the pass of the loss itself"
    return [
        "the unembedding runs forward and backward at every token: on CUDA and XPU of the "
        "completions, elsewhere at prompts and padding too; a mask saves none of it",
        "the body runs at every token, in rows of zero advantage and in padding too",
        "TRL computes the entropy of every token in the pass of the loss, for its own log",
        "a KL, with beta, is computed and counted at every token",
        source,
    ]


def check_trainer(trainer: Any) -> None:
    """Refuse options of a trainer that do not go with its selection.

    Raises:
        ValueError: what was given, and what to give.
    """
    selection, args = trainer.selection, trainer.args
    if trainer.top_entropy_quantile < 1.0:
        raise ValueError(
            f"top_entropy_quantile={trainer.top_entropy_quantile} and a selection are two masks: "
            "leave the former out (preset('trl') is the selection that it makes)"
        )
    if reads_statistics(selection) and selection.temperature != trainer.temperature:
        raise ValueError(
            f"the selection's entropies are at temperature {selection.temperature}, TRL's at that "
            f"of its config, {trainer.temperature}: give both the same"
        )
    if trainer.beta != 0.0 and selection.mask_kl:
        raise ValueError(
            f"TRL counts its KL at every token: with beta={trainer.beta} pass "
            "Selection(mask_kl=False)"
        )
    if trainer.importance_sampling_level == "sequence" and selection.select != "all":
        raise ValueError(
            "importance_sampling_level='sequence' makes a row's ratio of all its tokens, so those "
            "off the mask would be trained through it: use 'token', or Selection(select='all')"
        )
    if not divides_as_trl(selection) and trainer.loss_type not in _DIVIDED:
        raise ValueError(
            f"loss_type={trainer.loss_type!r} has a denominator of its own: pass loss_type='dapo', "
            "or Selection(normalizer='valid'), which leaves it alone"
        )
    if args.steps_per_generation % args.gradient_accumulation_steps:
        raise ValueError(
            f"an optimizer step of {args.gradient_accumulation_steps} micro-batches takes from two "
            f"generations of {args.steps_per_generation}, so its tokens are not known before it: "
            "make steps_per_generation a multiple of gradient_accumulation_steps"
        )
    elsewhere = unread_generation(trainer)
    if selection.entropy_source == "rollout" and reads_statistics(selection) and elsewhere:
        raise ValueError(
            f"with {elsewhere} completions are not one call of the model's generate, whose logits "
            "could be read: pass Selection(entropy_source='old'), a pass after generating"
        )
    _check_saving(trainer)


def _check_saving(trainer: Any) -> None:
    """Refuse rollouts to save where the model cannot be run by one process alone."""
    if trainer.rollouts_out is None:
        return
    why = {
        "the model is sharded over processes": (
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        ),
        "the model reads images": trainer._is_vlm,
    }
    for words, true in why.items():
        if true:
            raise ValueError(
                f"{words}, and rollouts are scored by the first process alone: leave out `out`, "
                "and score the completions that log_completions writes: probe import, probe score"
            )
