"""What a model answers under an intervention: right or wrong, by which strategy, at what length."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.figures import Figure, mean, ratio
from entropy_probe.models.prompts import encode_prompts
from entropy_probe.rollout import Rollouts
from entropy_probe.sampling import sample
from entropy_probe.scoring import score
from entropy_probe.tasks.problem import HasStrategies, Problem, Task

from .interventions import Intervention


@dataclass(frozen=True)
class Drawing:
    """How completions are drawn, the same for all that is compared."""

    n: int = 4
    """Completions a problem."""
    max_new_tokens: int = 256
    """Tokens after which a completion is cut."""
    temperature: float = 1.0
    """Sampling temperature; an intervention may have its own."""
    seed: int = 0
    """Seed of the noise: the same for all, so that differences are paired."""
    batch_size: int = 64
    """Rows decoded together."""


@dataclass(frozen=True)
class Outcome:
    """Completions of some problems, judged."""

    name: str
    """The intervention's name."""
    kind: str | None
    """Its kind; None without one."""
    right: Float[np.ndarray, "problems n"]
    """Reward of each completion."""
    texts: list[str]
    """The completions, problem by problem; what was forced is part of them."""
    strategies: np.ndarray | None
    """The way that each took, ``[problems n]``, where the task tells."""
    rollouts: Rollouts = field(repr=False)
    """The record, rewards with it."""
    cost: int = 0
    """Positions that were run twice, where places are decided by entropy."""

    @property
    def accuracy(self) -> Figure:
        """Give the mean reward, its interval over problems."""
        return mean(self.right.mean(axis=1))

    def share(self, strategy: str) -> Figure:
        """Give the share of completions that take a way."""
        return mean((self._ways() == strategy).mean(axis=1))

    def accuracy_of(self, strategy: str) -> Figure | None:
        """Give the mean reward of completions that take a way; None where none does."""
        taken = self._ways() == strategy
        return ratio((self.right * taken).sum(axis=1), taken.sum(axis=1))

    @property
    def length(self) -> float:
        """Give the mean number of generated tokens."""
        return float(self.rollouts.valid.sum(dim=1).float().mean())

    @property
    def entropy(self) -> float:
        """Give the mean entropy of the generated tokens, in nats."""
        return float(self.rollouts.entropy[self.rollouts.valid].mean())

    @property
    def repetition(self) -> float:
        """Give the share of runs of four generated tokens that stand in their completion before."""
        return repetition(self.rollouts)

    def _ways(self) -> np.ndarray:
        """Give the ways, or say that there are none."""
        if self.strategies is None:
            raise ValueError(f"{self.name!r} is of a task that does not tell strategies apart")
        return self.strategies


def measure(
    model,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    intervention: Intervention | None = None,
    drawing: Drawing | None = None,
) -> Outcome:
    """Let a model answer problems under an intervention, and judge its answers.

    Args:
        model: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        task: what verifies the answers.
        problems: the problems.
        intervention: None for the model as it is.
        drawing: how completions are drawn.
    """
    drawing = Drawing() if drawing is None else drawing
    plain = intervention is None
    write = (None if plain else intervention.prompt) or (lambda problem: problem.prompt)
    prefix = "" if plain else intervention.prefix
    prompts = encode_prompts(tokenizer, [write(problem) for problem in problems])
    forced = tokenizer.encode(prefix, add_special_tokens=False) if prefix else []
    heat = drawing.temperature if plain else intervention.temperature
    settings = {
        "n": drawing.n, "max_new_tokens": drawing.max_new_tokens, "seed": drawing.seed,
        "batch_size": drawing.batch_size, "residual_positions": "none",
        "temperature": drawing.temperature if heat is None else heat,
    }  # fmt: skip
    starts, cost = [ids + forced for ids in prompts], 0
    if plain:
        rollouts = sample(model, tokenizer, starts, **settings)
    else:
        with intervention.on(model) as steered:
            rollouts = sample(steered, tokenizer, starts, **settings)
            steps = getattr(steered, "steps", None)
            cost = 0 if steps is None else steps.recomputed
    texts = [prefix + rollouts.completion(row) for row in range(len(rollouts))]
    rewards = [task.verify(problems[i // drawing.n], text) for i, text in enumerate(texts)]
    shape = (len(problems), drawing.n)
    ways = None
    if isinstance(task, HasStrategies):
        ways = np.array([task.strategy(text) for text in texts]).reshape(shape)
    return Outcome(
        "as it is" if plain else intervention.name,
        None if plain else intervention.kind,
        np.array(rewards, dtype=float).reshape(shape),
        texts,
        ways,
        rollouts.with_rewards(rewards),
        cost,
    )


def divergence(model, tokenizer, outcome: Outcome, *, batch_size: int = 16) -> Figure:
    """Give the divergence from the unsteered model, in nats a generated token.

    KL(steered || unsteered) along what the steered model wrote, by the mean of log p_steered -
    log p_unsteered of the tokens that were drawn, each at its own sampling temperature's basis; an
    unbiased estimate where nothing was cut off from the draw.

    Args:
        model: the model as it is, outside of any steering.
        tokenizer: its tokenizer.
        outcome: what was drawn.
        batch_size: rows a pass.
    """
    drawn = outcome.rollouts
    lengths = drawn.prompt_lengths
    plain = score(
        model, tokenizer, drawn.tokens, drawn.valid, prompt_lengths=lengths, alternatives=0,
        batch_size=batch_size,
    )  # fmt: skip
    gap = (drawn.logprobs - plain.logprobs).where(drawn.valid, torch.zeros(()))
    rows = len(outcome.right)
    tokens = drawn.valid.sum(dim=1).reshape(rows, -1).sum(dim=1)
    return ratio(gap.sum(dim=1).reshape(rows, -1).sum(dim=1).numpy(), tokens.numpy())


def repetition(rollouts: Rollouts, *, size: int = 4) -> float:
    """Give the share of runs of ``size`` generated tokens that stand in their row before."""
    runs = again = 0
    for row in range(len(rollouts)):
        ids: Tensor = rollouts.tokens[row][rollouts.valid[row]]
        if len(ids) < size:
            continue
        grams = ids.unfold(0, size, 1)
        runs += len(grams)
        again += len(grams) - len(grams.unique(dim=0))
    return again / runs if runs else 0.0


def without_record(outcome: Outcome, rows: int) -> Outcome:
    """Give an outcome with only its first rows in the record, for a page."""
    return replace(outcome, rollouts=outcome.rollouts[:rows])
