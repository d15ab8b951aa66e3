"""The rollouts of a step: drawn prompts, sampled, scored, and drawn again where nothing differs."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.advantages import group_advantages
from entropy_probe.models.engine import Engine
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.rollout import Rollouts
from entropy_probe.sampling import sample
from entropy_probe.tasks import Problem, Task

from .config import TrainConfig
from .distributed import Ranks
from .rewards import Reward, RewardError, checked, completions_of, correct
from .truncation import finished


class NothingToLearn(ValueError):
    """Every group's rewards were equal, as often as prompts were drawn."""


@dataclass(frozen=True)
class Source:
    """What rollouts are made of, the same in every step."""

    tokenizer: object
    """The model's tokenizer."""
    task: Task
    """Its verifier says which completions are right, whatever the reward."""
    problems: Sequence[Problem]
    """The problems of training."""
    reward: Reward
    """What is learnt."""
    config: TrainConfig
    """How."""
    ranks: Ranks
    """The processes, each of which takes its share of the prompts."""


@dataclass(frozen=True)
class Batch:
    """What one process sampled in a step. Groups and rows count over all processes."""

    rollouts: Rollouts
    """The rows, with their rewards."""
    problems: list[Problem]
    """The problem of each row."""
    rows: Int[Tensor, " batch"]
    """The number of each row in the step."""
    finished: Bool[Tensor, " batch"]
    """Whether the model ended each row; False where a limit cut it."""
    right: Float[Tensor, " batch"]
    """What the task's verifier says of each row."""
    advantages: Float[Tensor, " batch"]
    """What each row's reward is worth within its group."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rollouts)

    def pick(self, rows: Bool[Tensor, " batch"]) -> "Batch":
        """Give some of the rows."""
        problems = [p for p, wanted in zip(self.problems, rows.tolist(), strict=True) if wanted]
        return Batch(
            self.rollouts[rows], problems, self.rows[rows], self.finished[rows], self.right[rows],
            self.advantages[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """A step's batch, and what was drawn for it."""

    drawn: Batch
    """All rows that this process sampled."""
    batch: Batch
    """Those that train."""
    groups: list[int]
    """The groups that train, over all processes, in order."""
    prompts: int
    """Prompts drawn, over all processes."""
    equal: int
    """Groups among them whose rewards were all equal."""


def seed_of(purpose: str, seed: int, step: int = 0) -> int:
    """Give the seed of one purpose's noise in a step, unrelated to all others."""
    digest = hashlib.blake2b(f"{purpose} {seed} {step}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def problem_at(problems: Sequence[Problem], number: int, seed: int) -> Problem:
    """Give the problem that is drawn as the ``number``-th: all in a random order, then again."""
    round_, place = divmod(number, len(problems))
    return problems[_order(len(problems), seed, round_)[place]]


def collect(
    engine: Engine, source: Source, *, step: int, before: int, alternatives: int = 0
) -> Collected:
    """Sample and score a step's batch.

    Where ``resample`` allows it, groups whose rewards are all equal leave, and as many further
    prompts are drawn, until the batch is full or the draws are used up.

    Args:
        engine: what samples.
        source: prompts and reward.
        step: number of the step.
        before: prompts drawn in the steps before.
        alternatives: most probable tokens to record.

    Raises:
        RewardError: the reward failed, here or in another process.
        NothingToLearn: no group differs, and the draws are used up.
    """
    config, ranks = source.config, source.ranks
    pieces, differing, drawn = [], [], 0
    for _ in range(config.resample + 1):
        numbers = range(drawn, drawn + config.prompts - len(differing))
        pieces += _draw(engine, source, step, before, numbers, alternatives)
        told = ranks.objects([g for piece in pieces for g in _differing(piece) if g >= drawn])
        differing += [group for part in told for group in part]
        drawn = numbers.stop
        if len(differing) == config.prompts:
            break
    whole, groups = _joined(pieces), list(range(drawn))
    batch = whole
    if config.resample:
        if not differing:
            raise NothingToLearn(_nothing(config, drawn, ranks, whole))
        groups = differing
        batch = whole.pick(torch.isin(whole.rollouts.groups, torch.tensor(groups)))
    return Collected(whole, batch, groups, drawn, drawn - len(differing))


def _draw(
    engine: Engine, source: Source, step: int, before: int, numbers: range, alternatives: int
) -> list[Batch]:
    """Sample and score this process's share of some prompts of a step."""
    config, ranks = source.config, source.ranks
    mine = [numbers[i] for i in ranks.share(len(numbers))]
    problems = [problem_at(source.problems, before + i, config.seed) for i in mine]
    rows = sample_or_idle(
        engine, source.tokenizer, problems, n=config.n, max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, stop=config.stop, alternatives=alternatives,
        seed=seed_of("rollouts", config.seed, step), batch_size=config.batch_size,
        offset=mine[0] if mine else 0,
    )  # fmt: skip
    scored, failed = None, None
    try:
        scored = None if rows is None else _scored(engine, source, step, mine[0], rows, problems)
    except RewardError as error:
        failed = error
    if ranks.any(failed is not None):
        raise failed or RewardError("the reward failed in another process, which says how")
    return [] if scored is None else [scored]


def sample_or_idle(
    engine: Engine,
    tokenizer: object,
    problems: Sequence[Problem],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    stop: Sequence[str | int],
    alternatives: int,
    seed: int,
    batch_size: int,
    offset: int,
) -> Rollouts | None:
    """Sample as `sample` does; without problems, take part in the others' lockstep alone."""
    if problems:
        return sample(
            engine, tokenizer, [p.prompt for p in problems], n=n, max_new_tokens=max_new_tokens,
            temperature=temperature, stop=stop, alternatives=alternatives, seed=seed,
            batch_size=batch_size, offset=offset, residual_positions="none",
        )  # fmt: skip
    with torch.no_grad(), engine.running():
        pass
    weights_fingerprint(engine.model)  # of a sharded model, all have to take it
    return None


def _scored(
    engine: Engine, source: Source, step: int, first: int, rows: Rollouts, problems: list[Problem]
) -> Batch:
    """Put rewards, verdicts and advantages to rows that begin with the step's group ``first``."""
    config = source.config
    each = [problem for problem in problems for _ in range(config.n)]
    ended = finished(engine, source.tokenizer, rows, config.max_new_tokens, config.stop)
    completions = completions_of(
        rows, each, step=step, seed=config.seed, first_row=first * config.n, finished=ended
    )
    rewards = torch.tensor(checked(source.reward, completions))
    return Batch(
        rollouts=rows.with_rewards(rewards),
        problems=each,
        rows=torch.arange(len(rows)) + first * config.n,
        finished=torch.tensor(ended),
        right=torch.tensor(checked(correct(source.task), completions)),
        advantages=group_advantages(
            rewards, rows.groups, baseline=config.baseline, scale=config.scale
        ),
    )


def _differing(batch: Batch) -> list[int]:
    """Give the groups in which some reward is another, in order."""
    groups, rewards = batch.rollouts.groups, batch.rollouts.rewards
    found = []
    for group in groups.unique().tolist():
        own = rewards[groups == group]
        if bool((own != own[0]).any()):
            found.append(group)
    return found


def _joined(pieces: Sequence[Batch]) -> Batch:
    """Join what one process drew."""
    if len(pieces) == 1:
        return pieces[0]
    columns = ("rows", "finished", "right", "advantages")
    return Batch(
        rollouts=Rollouts.concatenate([piece.rollouts for piece in pieces]),
        problems=[problem for piece in pieces for problem in piece.problems],
        **{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in columns},
    )


def _nothing(config: TrainConfig, drawn: int, ranks: Ranks, whole: Batch) -> str:
    """Say what was drawn in vain."""
    rewards = [r for part in ranks.objects(whole.rollouts.rewards.tolist()) for r in part]
    return (
        f"the rewards are equal within each of {drawn} groups of {config.n}, drawn "
        f"{config.resample + 1} times, {min(rewards):g} to {max(rewards):g} in all: there is "
        "nothing to learn; go on with a larger resample, or begin anew with problems that the "
        "model gets right sometimes, a larger n, or another reward"
    )


@lru_cache(maxsize=2)
def _order(count: int, seed: int, round_: int) -> list[int]:
    """Give the order in which problems are gone through."""
    return random.Random(f"order {seed} {round_}").sample(range(count), count)
