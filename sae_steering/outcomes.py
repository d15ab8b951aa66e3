"""What a model answers under an intervention: right or wrong, by which strategy, at what length."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
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
class Drawn:
    """Completions, and what deciding step by step took."""

    rollouts: Rollouts
    """The record."""
    edited: Bool[Tensor, "batch seq"] | None = None
    """True at tokens whose distribution was edited, where places are decided by entropy."""
    cost: int = 0
    """Positions that were run twice, where they are."""


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


def draw(
    model,
    tokenizer,
    prompts: Sequence[object],
    intervention: Intervention | None = None,
    drawing: Drawing | None = None,
) -> Drawn:
    """Let a model complete prompts under an intervention, with the noise that all have.

    Args:
        model: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        prompts: as for `entropy_probe.sample`, taken as they are: what an intervention writes
            into them is up to the caller.
        intervention: None for the model as it is.
        drawing: how completions are drawn.
    """
    drawing = Drawing() if drawing is None else drawing
    heat = None if intervention is None else intervention.temperature
    settings = {
        "n": drawing.n, "max_new_tokens": drawing.max_new_tokens, "seed": drawing.seed,
        "batch_size": drawing.batch_size, "residual_positions": "none",
        "temperature": drawing.temperature if heat is None else heat,
    }  # fmt: skip
    if intervention is None:
        return Drawn(sample(model, tokenizer, prompts, **settings))
    with intervention.on(model) as steered:
        rollouts = sample(steered, tokenizer, prompts, **settings)
        steps = getattr(steered, "steps", None)
        if steps is None:
            return Drawn(rollouts)
        return Drawn(rollouts, steps.edited(rollouts), steps.recomputed)


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
    drawn = draw(model, tokenizer, [ids + forced for ids in prompts], intervention, drawing)
    rollouts = drawn.rollouts
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
        drawn.cost,
    )


def divergence(
    model, tokenizer, drawn: Rollouts, *, temperature: float | int = 1.0, batch_size: int = 16
) -> Figure:
    """Give the divergence from the unsteered model, in nats a generated token.

    KL(steered || unsteered) along what the steered model wrote, by the mean of log p_steered -
    log p_unsteered of the tokens that were drawn; an unbiased estimate where nothing was cut off
    from the draw. Its interval is over prompts.

    Args:
        model: the model as it is, outside of any steering.
        tokenizer: its tokenizer.
        drawn: what the steered model wrote.
        temperature: at which the unsteered model is sampled from, in what it is compared with.
        batch_size: rows a pass.

    Raises:
        ValueError: a greedy decoding, whose tokens say nothing about a mean over draws.
    """
    if drawn.provenance.temperature == 0 or temperature == 0:
        raise ValueError("a greedy decoding draws nothing to estimate a divergence from")
    plain = score(
        model, tokenizer, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths,
        alternatives=0, temperature=temperature, batch_size=batch_size,
    )  # fmt: skip
    gap = (drawn.logprobs - plain.logprobs).where(drawn.valid, torch.zeros(()))
    _, prompt = drawn.groups.unique(return_inverse=True)
    sums = torch.zeros(2, int(prompt.max()) + 1, dtype=torch.float64)
    sums[0].index_add_(0, prompt, gap.sum(dim=1).double())
    sums[1].index_add_(0, prompt, drawn.valid.sum(dim=1).double())
    return ratio(sums[0].numpy(), sums[1].numpy())


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
