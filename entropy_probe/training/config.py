"""What a training run does: every choice that its result depends on, saved and resumed with it."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .options import Selection

OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("linear", "none")
OVERLONG = ("keep", "drop", "punish")
GRADIENT_RULES = ("clip", "match")


@dataclass(frozen=True)
class TrainConfig:
    """The arguments of `train` that its result depends on; unknown names are errors."""

    steps: int = 100
    """Batches of rollouts."""
    prompts: int = 16
    """Prompts a batch, over all processes."""
    n: int = 8
    """Completions a prompt: the group that a reward is compared within."""
    max_new_tokens: int = 256
    """Tokens after which a completion is cut."""
    temperature: float = 1.0
    """Sampling temperature; entropies and ratios are of logits / temperature too."""
    stop: tuple[str | int, ...] = ()
    """Texts and token ids that end a completion besides the model's end-of-text tokens."""
    selection: Selection = field(default_factory=Selection)
    """Which tokens get a gradient."""
    updates: int = 1
    """Optimizer updates that a batch is split into, by prompts."""
    epochs: int = 1
    """How often a batch is gone through."""
    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio counts up to 1 + clip_high."""
    old_logprobs: str = "rollout"
    """What the ratio is taken against: log-probabilities of the "rollout", or "recomputed" by the
    policy before the batch's first update."""
    ratio: str = "token"
    """"token", or "sequence", which needs every token's gradient."""
    beta: float = 0.0
    """Weight of the KL divergence from the model as it was at the beginning."""
    baseline: str = "mean"
    """What a reward is compared with: "mean" of its group, or "leave_one_out"."""
    scale: str = "std"
    """What advantages are divided by: "std" of the group, or "none"."""
    optimizer: str = "adamw"
    """"adamw", or "sgd" with momentum."""
    lr: float = 1e-6
    """Learning rate after warm-up."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of either optimizer."""
    warmup: int = 0
    """Updates over which the learning rate rises linearly."""
    decay: str = "none"
    """"linear", to zero after the last update, or "none"."""
    gradient_rule: str = "clip"
    """"clip" shortens gradients longer than gradient_norm; "match" gives all that length."""
    gradient_norm: float = 1.0
    """Length of the gradient: the most, or under "match" every update's."""
    micro_batch_tokens: int = 16384
    """Tokens of a forward and backward pass at most; it changes memory and time alone."""
    micro_batch_rows: int | None = None
    """Rows of what a selection by micro-batches calls one, in each process."""
    batch_size: int = 256
    """Rows decoded together in each process; it changes memory and time alone."""
    resample: int = 0
    """Draws of further prompts, at most, in place of groups whose rewards are all equal."""
    overlong: str = "keep"
    """What becomes of cut completions: "keep", "drop" from loss and threshold, or "punish"."""
    overlong_cache: int = 0
    """Under "punish", the length before the cut over which the reward falls by 1."""
    problems: int = 2000
    """Problems of the task's train split, gone through in a new order each time."""
    label_samples: int = 64
    """Samples a problem of the untrained model, for rewards that compare with its majority."""
    seed: int = 0
    """Seed of the problems, their order and the sampling noise."""
    bf16: bool = False
    """Whether matrix products are in bfloat16; weights and statistics stay in float32."""
    shard: bool = False
    """Whether weights, gradients and optimizer state are sharded over the processes."""
    evaluate_every: int = 0
    """Steps between evaluations, besides one before and one after; 0 for none at all."""
    evaluate_problems: int = 100
    """Problems of the task's test split."""
    evaluate_n: int = 4
    """Completions of each."""
    evaluate_temperatures: tuple[float, ...] = (1.0,)
    """Sampling temperatures; 0 is greedy, with one completion a problem."""
    pass_at: tuple[int, ...] = (1,)
    """The k of pass@k, at most evaluate_n."""
    checkpoint_every: int = 10
    """Steps between checkpoints, besides the last one."""
    keep_checkpoints: int = 2
    """The last checkpoints that are kept."""
    rollouts_every: int = 10
    """Steps between saved rollouts, besides the first step's; 0 for none."""
    rollouts_prompts: int = 4
    """Prompts whose rollouts are saved then."""
    overlap_every: int = 0
    """Steps between comparisons of the mask with that of the model just updated; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming them."""
        if not isinstance(self.selection, Selection):
            raise ValueError(f"selection must be a Selection, got {self.selection!r}")
        _check_counts(self)
        _check_numbers(self)
        _check_words(self)

    @property
    def total_updates(self) -> int:
        """Count the optimizer updates of the whole run."""
        return self.steps * self.updates * self.epochs

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return values | {"selection": self.selection.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Rebuild from `to_dict`, or from some of its keys.

        Raises:
            ValueError: a key that is not known, or a value that makes no sense.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"no option {name!r} of training: {hint}")
        selection = values.get("selection", {})
        if isinstance(selection, Mapping):
            selection = Selection.from_dict(selection)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields | {"selection": selection})

    def differences(self, other: "TrainConfig") -> list[str]:
        """Say in words what another configuration has otherwise, an entry a difference."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name} was {mine[name]!r}, now {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]


_COUNTS = {
    "steps": 1, "prompts": 1, "n": 2, "max_new_tokens": 1, "updates": 1, "epochs": 1, "warmup": 0,
    "micro_batch_tokens": 1, "batch_size": 1, "resample": 0, "overlong_cache": 0, "problems": 1,
    "label_samples": 1,
    "evaluate_every": 0, "evaluate_problems": 1, "evaluate_n": 1, "checkpoint_every": 1,
    "keep_checkpoints": 1, "rollouts_every": 0, "rollouts_prompts": 1, "overlap_every": 0,
}  # fmt: skip
_WORDS = {
    "optimizer": OPTIMIZERS, "decay": DECAYS, "overlong": OVERLONG,
    "gradient_rule": GRADIENT_RULES, "old_logprobs": ("rollout", "recomputed"),
    "ratio": ("token", "sequence"),
    "baseline": ("mean", "leave_one_out"), "scale": ("std", "none"),
}  # fmt: skip
# Name -> whether 0 is allowed.
_NUMBERS = {
    "temperature": False, "clip_low": True, "clip_high": True, "beta": True, "lr": True,
    "momentum": True, "weight_decay": True, "gradient_norm": False,
}  # fmt: skip


def _check_counts(config: TrainConfig) -> None:
    """Raise unless the whole numbers are, and are large enough."""
    for name, least in _COUNTS.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int):
        raise ValueError(f"seed must be a whole number, got {config.seed!r}")
    if config.updates > config.prompts:
        raise ValueError(
            f"updates splits a batch by its prompts: expected at most {config.prompts}, "
            f"got {config.updates}"
        )
    if config.prompts > config.problems:
        raise ValueError(
            f"a batch of {config.prompts} prompts needs as many problems, got {config.problems}"
        )
    if max(config.pass_at, default=1) > config.evaluate_n or min(config.pass_at, default=1) < 1:
        raise ValueError(
            f"pass_at must be 1 to evaluate_n, which is {config.evaluate_n}, got {config.pass_at}"
        )


def _check_numbers(config: TrainConfig) -> None:
    """Raise unless numbers are finite and in their range."""
    for name, zero in _NUMBERS.items():
        value = getattr(config, name)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not (right and math.isfinite(value) and (value > 0 or (zero and value == 0))):
            least = "0 or more" if zero else "above 0"
            raise ValueError(f"{name} must be a number, {least}, got {value!r}")
    if not all(0 <= t < math.inf for t in config.evaluate_temperatures):
        raise ValueError(
            f"evaluate_temperatures must be 0 or more, got {config.evaluate_temperatures}"
        )
    rows = config.micro_batch_rows
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"micro_batch_rows must be a whole number of 1 or more, got {rows!r}")
    if config.momentum >= 1:
        raise ValueError(f"momentum must be below 1, got {config.momentum}")


def _check_words(config: TrainConfig) -> None:
    """Raise unless words are known, and go together."""
    for name, known in _WORDS.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(config, name)!r}")
    punished = config.overlong == "punish"
    if punished != (config.overlong_cache > 0):
        raise ValueError(
            "overlong_cache belongs to overlong='punish', and there only: got "
            f"overlong={config.overlong!r}, overlong_cache={config.overlong_cache}"
        )
    if config.overlong_cache > config.max_new_tokens:
        raise ValueError(
            f"overlong_cache must be at most max_new_tokens, which is {config.max_new_tokens}, "
            f"got {config.overlong_cache}"
        )
    for name in ("bf16", "shard"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(config, name)!r}")
    _check_selection(config)


def _check_selection(config: TrainConfig) -> None:
    """Raise unless the selection can read what it asks for."""
    selection, rows = config.selection, config.micro_batch_rows
    by_rows = "micro_batch" in f"{selection.scope} {selection.average}"
    if by_rows and rows is None:
        raise ValueError(
            f"scope={selection.scope!r}, average={selection.average!r} go by micro-batches: pass "
            "micro_batch_rows, the rows that such a one has in each process"
        )
    if rows is not None and not by_rows:
        raise ValueError(
            f"micro_batch_rows={rows} would not be read with scope={selection.scope!r}, "
            f"average={selection.average!r}: leave it out; memory is up to micro_batch_tokens"
        )
    reads = selection.select not in ("all", "random") and selection.entropy_source == "rollout"
    if reads and selection.temperature != config.temperature:
        raise ValueError(
            "a selection by the rollouts' entropies has their temperature, "
            f"{config.temperature:g}: got {selection.temperature:g}; give both the same, or the "
            "selection entropy_source='old'"
        )
    if config.ratio == "sequence" and config.selection.select != "all":
        raise ValueError(
            "ratio='sequence' needs the current log-probability of every token, which a mask "
            "leaves out: pass select='all', or ratio='token'"
        )
