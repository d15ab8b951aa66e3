"""The reference loop: roll out, reward, choose the tokens, update, and again."""

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from entropy_probe.computing import computing_with, hardware_of
from entropy_probe.models.engine import Engine, engine_of
from entropy_probe.models.fingerprint import (
    library_versions,
    model_name,
    model_revision,
    weights_fingerprint,
)
from entropy_probe.tasks import Task

from . import checkpoints
from .checkpoints import Checkpoint, Progress
from .collecting import NothingToLearn, Source, collect, seed_of
from .config import TrainConfig
from .distributed import Ranks, in_lockstep, join, shard_model, with_bf16
from .evaluation import evaluate
from .folder import FREE, About, opened
from .journal import Journal, Log, default_log, logged_choices
from .learning import Learner
from .measures import measure
from .optimizing import make_optimizer
from .preparing import check_training, make_source, name_of
from .rewards import Reward, RewardError
from .saving import save_rollouts


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` did."""

    steps: int
    """Steps that are done, those of earlier calls included."""
    done: bool
    """Whether these are all; False where ``should_stop`` asked for an end."""
    log: list[dict[str, Any]]
    """The lines that this call logged."""
    checkpoint: Path | None
    """The last checkpoint, a folder that `load` takes; None without a folder to write to."""


def train(
    model,
    tokenizer,
    task: Task,
    *,
    config: TrainConfig | None = None,
    reward: str | Reward = "correct",
    out: str | Path | None = None,
    resume: bool = False,
    log: Log | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a model in place on a task, with gradients at the tokens that the selection keeps.

    Each step samples a group of completions for some problems, gives each its reward's advantage
    within its group, chooses the tokens (by default the top 20% by entropy of the update's whole
    batch, over all processes), and makes its updates of the clipped policy loss. Dropout is off
    throughout. Started by ``accelerate launch`` or torchrun, the processes share the prompts,
    and update as one process would have; with ``shard=True`` they share the weights, too.

    Args:
        model: a Hugging Face decoder, what trains of it in float32; it is changed.
        tokenizer: its tokenizer. Rows are padded on the right and masked: it needs no pad token.
        task: problems, and their verifier.
        config: everything that the result depends on.
        reward: what is learnt: a name of `entropy_probe.training.rewards`, or a callable.
        out: folder of the log, the checkpoints and the saved rollouts; None keeps nothing.
        resume: go on with the run in that folder, from its last checkpoint: bit for bit on the
            same machine. The model must be as it was before training, or as it was then, and the
            configuration what it was; ``resample`` may be another from here on.
        log: called with each line of the log, in the first process; default: trackio's local
            board, where it is installed and there is a folder.
        should_stop: asked before each step whether to end early, with a checkpoint.

    Raises:
        ValueError: what cannot be trained, with the reason; nothing has changed then.
        RewardError: the reward raised, or gave no finite number; what was trained is saved.
        NothingToLearn: no group's rewards differ, as often as prompts were drawn; so too, and
            the run can be gone on with under a larger ``resample``.
        RunConflict: the folder is taken, or what is there is another run.

    >>> from entropy_probe import load
    >>> from entropy_probe.tasks import get_task
    >>> from entropy_probe.training import train
    >>> model, tokenizer = load("organism:amenable")
    >>> train(model, tokenizer, get_task("arithmetic"), out="runs/mine")  # doctest: +SKIP
    """
    config = config or TrainConfig()
    ranks = join(getattr(model, "device", None), bf16=config.bf16)
    check_training(model, tokenizer, task, config, reward)
    _check_ranks(config, ranks)
    if resume and out is None:
        raise ValueError("resume goes on with the run in a folder: pass out")
    about = _about(model, task, config, reward, ranks)
    with ExitStack() as held:
        checkpoint = None
        if out is not None:
            out, folder = Path(out), opened(Path(out), about, resume=resume)
            about, checkpoint = ranks.first(lambda: held.enter_context(folder))
        held.enter_context(computing_with(about.hardware["threads"]))
        source = make_source(model, tokenizer, task, reward, config, ranks, out)
        learner, engine = _set_up(model, config, ranks, checkpoint)
        progress = checkpoint.progress if checkpoint else Progress()
        log = (log or default_log(out, config.to_dict())) if ranks.main else None
        journal = Journal(
            out if ranks.main else None, [log] if log else [], start=progress.log_bytes
        )
        held.callback(journal.close)
        if not checkpoint or (ranks.main and _said_otherwise(out, about)):
            journal.write("header", vars(about) | {"parameters": learner.parameters})
        run = Training(source, learner, engine, journal, out, progress)
        done = run.to_the_end(should_stop or (lambda: False))
        return TrainResult(run.progress.step, done, journal.lines, run.checkpoint)


class Training:
    """A run under way."""

    def __init__(
        self,
        source: Source,
        learner: Learner,
        engine: Engine,
        journal: Journal,
        out: Path | None,
        progress: Progress,
    ) -> None:
        """Begin, or go on, where ``progress`` says."""
        self.source, self.learner, self.engine = source, learner, engine
        self.journal, self.out, self.progress = journal, out, progress
        self.config, self.ranks = source.config, source.ranks
        self.checkpoint: Path | None = None
        self._random = checkpoints.randomness()

    def to_the_end(self, should_stop: Callable[[], bool]) -> bool:
        """Do the steps that are left; give whether none is. What is left at an end is saved."""
        if self.progress.step == 0:
            self._evaluate()
        while self.progress.step < self.config.steps and not self.ranks.any(should_stop()):
            before, self._random = self.learner.updates, checkpoints.randomness()
            try:
                self._step()
            except (ValueError, RuntimeError, OSError) as error:
                # Of these errors, every process knows.
                known = self.ranks.count == 1 or isinstance(error, RewardError | NothingToLearn)
                if known and self.learner.updates == before:
                    self._save()  # nothing of the step that failed has changed the model
                raise
        self._random = checkpoints.randomness()
        self._save()
        return self.progress.step == self.config.steps

    def _step(self) -> None:
        """Sample, update, and log."""
        config, number, started = self.config, self.progress.step, time.perf_counter()
        every = config.rollouts_every
        showing = bool(every) and (number == 0 or (number + 1) % every == 0)
        collected = collect(
            self.engine, self.source, step=number, before=self.progress.drawn,
            alternatives=5 if showing and self.out else 0,
        )  # fmt: skip
        sampled = time.perf_counter()
        learnt = self.learner.learn(collected, step=number)
        seconds = (sampled - started, time.perf_counter() - sampled)
        values = measure(collected, learnt, self.ranks, self.source.task, seconds=seconds)
        if config.overlap_every and (number + 1) % config.overlap_every == 0:
            counts = self.ranks.objects(self.learner.overlap(collected, learnt, step=number))
            both, either = (sum(each) for each in zip(*counts, strict=True))
            values["overlap"] = both / either if either else 1.0
        self.journal.write("step", {"step": number + 1, "rate": self.learner.rate} | values)
        if showing and self.out and self.ranks.main:
            save_rollouts(
                self.out, collected.drawn, step=number + 1, prompts=config.rollouts_prompts
            )
        self.progress = Progress(number + 1, self.progress.drawn + collected.prompts)
        if config.evaluate_every and (
            (number + 1) % config.evaluate_every == 0 or number + 1 == config.steps
        ):
            self._evaluate()
        if (number + 1) % config.checkpoint_every == 0:
            self._random = checkpoints.randomness()
            self._save()

    def _evaluate(self) -> None:
        """Log how often the model is right on held-out problems."""
        config, source = self.config, self.source
        if not config.evaluate_every:
            return
        problems = source.task.problems(config.evaluate_problems, split="test", seed=config.seed)
        for temperature in config.evaluate_temperatures:
            found = evaluate(
                self.engine, source.tokenizer, source.task, problems, n=config.evaluate_n,
                temperature=temperature, pass_ks=config.pass_at, stop=config.stop,
                max_new_tokens=config.max_new_tokens, batch_size=config.batch_size,
                seed=seed_of("evaluation", config.seed), ranks=self.ranks,
            )  # fmt: skip
            self.journal.write("evaluation", {"step": self.progress.step} | found)

    def _save(self) -> None:
        """Write a checkpoint of what is done, unless it is there or nothing is."""
        if self.out is None or self.progress.step == 0:
            return
        ranks, model, optimizer = self.ranks, self.learner.model, self.learner.optimizer
        weights = checkpoints.whole_weights(model, keep=ranks.main)
        state = {
            "optimizer": checkpoints.optimizer_state(model, optimizer),
            "randomness": ranks.objects(self._random),
        }
        fingerprint = weights_fingerprint(model)
        progress = replace(self.progress, log_bytes=self.journal.safe())
        self.checkpoint = ranks.first(
            lambda: checkpoints.write_checkpoint(
                self.out,
                model,
                self.source.tokenizer,
                weights,
                state,
                progress,
                fingerprint=fingerprint,
                keep=self.config.keep_checkpoints,
            )  # fmt: skip
        )


def _set_up(
    model, config: TrainConfig, ranks: Ranks, checkpoint: Checkpoint | None
) -> tuple[Learner, Engine]:
    """Put the model where it computes, as a checkpoint left it; give what moves it and runs it."""
    if ranks.device is not None:
        model.to(ranks.device)
    reference = copy.deepcopy(model).requires_grad_(False) if config.beta else None
    if checkpoint is not None:
        checkpoints.load_weights(checkpoint, model)
    engine = engine_of(model)
    if config.shard:
        shard_model(model)
        engine = in_lockstep(engine, ranks)
    engine = with_bf16(engine) if config.bf16 else engine
    optimizer = make_optimizer(model, config)
    if checkpoint is not None:
        state = checkpoints.load_state(checkpoint, ranks.index)
        checkpoints.restore_optimizer(model, optimizer, state["optimizer"])
        checkpoints.restore_randomness(state["randomness"])
    return Learner(model, optimizer, config, ranks, reference), engine


def _about(model, task: Task, config: TrainConfig, reward: str | Reward, ranks: Ranks) -> About:
    """Say what a run does, and where."""
    hardware = hardware_of(model) | {"processes": ranks.count, "threads": torch.get_num_threads()}
    return About(
        model=model_name(model),
        weights=weights_fingerprint(model),
        task=task.name,
        reward=name_of(reward),
        config=config.to_dict(),
        revision=model_revision(model),
        dtype=str(model.dtype).removeprefix("torch."),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        libraries=library_versions("accelerate"),
        hardware=hardware,
    )


def _said_otherwise(out: Path, about: About) -> bool:
    """Say whether the last header of a run's log has other choices than the run goes on with."""
    said = logged_choices(out)
    return any(said.get(name) != about.config[name] for name in FREE)


def _check_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """Raise where processes would have nothing to do, or nobody to share with."""
    if config.prompts < ranks.count:
        raise ValueError(
            f"{ranks.count} processes need at least as many prompts a batch, got {config.prompts}"
        )
    if config.shard and ranks.count == 1:
        raise ValueError(
            "shard=True shards a model over processes, and there is one: start several with "
            "torchrun or accelerate launch, or leave it out"
        )
