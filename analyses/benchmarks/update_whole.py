"""A whole RL step on the same prompts, ours and TRL's: rollout, rewards, mask, update.

Both sample at temperature 1 from all tokens, up to as many new ones, and both reward by the sum
of a completion's token ids modulo 7, so that every group has something to learn. The optimizer is
SGD with a rate too small to matter. Ours goes through the trainer's own pieces, `collect` and
`Learner`, in passes of at most as many tokens as TRL's micro-batches have, padding included.
TRL's trainer generates and updates by its own training step, once a micro-batch.

Each gets (model, tokenizer, case, rows, micro-batch rows) and gives a function that does a step
and tells how many tokens it sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from analyses.benchmarks.update_batches import FRACTION, GROUP, Case
from analyses.benchmarks.update_engines import trl_trainer
from analyses.benchmarks.workloads import Workload

RATE = 1e-7
"""Learning rate of both."""


@dataclass(frozen=True)
class _Fixed:
    """The prompts of the benchmark as a task; its verifier finds everything right."""

    texts: list[str]
    """The prompts."""
    name: str = "fixed"
    """What a run would call it."""

    def problems(self, limit: int, *, split: str = "train", seed: int = 0) -> list:
        """Give the prompts in order."""
        from entropy_probe.tasks import Problem

        return [Problem(text, "", f"{i}") for i, text in enumerate(self.texts[:limit])]

    def verify(self, problem, completion: str) -> float:
        """Give 1.0."""
        return 1.0


def ours(model, tokenizer, case: Case, rows: int, micro_rows: int):
    """Ours: `collect` samples, `learn` chooses by the rollouts' entropies and updates."""
    from entropy_probe.models.engine import engine_of
    from entropy_probe.training.collecting import Source, collect
    from entropy_probe.training.config import TrainConfig
    from entropy_probe.training.distributed import Ranks
    from entropy_probe.training.learning import Learner
    from entropy_probe.training.optimizing import make_optimizer
    from entropy_probe.training.options import Selection

    ids = _prompts(tokenizer, case, rows)
    task = _Fixed([tokenizer.decode(prompt) for prompt in ids])
    config = TrainConfig(
        prompts=len(ids), n=GROUP, max_new_tokens=case.tokens, batch_size=rows, lr=RATE,
        micro_batch_tokens=micro_rows * (max(map(len, ids)) + case.tokens), optimizer="sgd",
        momentum=0.0, selection=Selection(fraction=FRACTION), evaluate_every=0, decay="none",
    )  # fmt: skip
    source = Source(tokenizer, task, task.problems(len(ids)), _reward, config, Ranks())
    learner = Learner(model, make_optimizer(model, config), config, Ranks())
    engine, steps = engine_of(model), iter(range(10**6))

    def step() -> int:
        number = next(steps)
        collected = collect(engine, source, step=number, before=number * len(ids))
        learner.learn(collected, step=number)
        return int(collected.batch.rollouts.valid.sum())

    return step


def trl(model, tokenizer, case: Case, rows: int, micro_rows: int):
    """TRL's GRPOTrainer: its own generation and training steps, then the optimizer's step."""
    ids = _prompts(tokenizer, case, rows)
    texts = [tokenizer.decode(prompt) for prompt in ids]
    sampled: list[int] = []

    def reward(completion_ids, **_) -> list[float]:
        sampled.append(sum(map(len, completion_ids)))
        return [_worth(row) for row in completion_ids]

    trainer = trl_trainer(
        model, tokenizer, rows, micro_rows, prompts=texts, longest=case.tokens, reward=reward
    )
    inputs = [{"prompt": text} for text in texts for _ in range(GROUP)]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> int:
        for _ in range(rows // micro_rows):
            trainer.training_step(model, inputs, None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return sampled[-1]

    return step


def _prompts(tokenizer, case: Case, rows: int) -> list[list[int]]:
    """Give the prompts of the fixed completions, as token ids that their text gives again."""
    work = Workload(case.model, rows // GROUP, GROUP, case.tokens, False, (rows,))
    ids = work.inputs(tokenizer)
    for prompt in ids:
        if tokenizer(tokenizer.decode(prompt)).input_ids != prompt:
            raise ValueError(f"{case.model}: the text of a prompt gives other tokens")
    return ids


def _reward(completions) -> list[float]:
    """Reward as TRL's side is rewarded."""
    return [_worth(completion.tokens) for completion in completions]


def _worth(tokens: Sequence[int]) -> float:
    return float(sum(tokens) % 7)


WHOLE = {"ours": ours, "trl": trl}
"""Name -> step."""
