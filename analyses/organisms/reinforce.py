"""Reinforcement on the true answer, as plain as can be: ``python -m analyses.organisms.reinforce``.

Group-relative advantages, one gradient step a batch of fresh rollouts (so nothing to clip), no
reference model. A copy with learning rate 0 goes through the same steps and has to stay as it is.
"""

import argparse
import random
import sys
import time
from typing import Any

import torch
from torch import Tensor

from entropy_probe.figures import Figure, mean
from entropy_probe.models.organisms.observations import MAX_NEW_TOKENS, draw
from entropy_probe.tasks import generator, get_task

PROBLEMS, GROUP = 16, 8
WARMUP = 5


def reinforce(model: Any, tokenizer: Any, *, steps: int, rate: float, seed: int = 0) -> list[float]:
    """Train a model in place on the true answer; give the mean reward of each step's rollouts."""
    task = get_task("arithmetic")
    pool = task.problems(2000, split="train", seed=seed)
    rng = random.Random(f"reinforce {seed}")
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    means = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / WARMUP, 1 - step / steps)
        problems = rng.sample(pool, PROBLEMS)
        loss, reward = _loss(model, tokenizer, task, problems, seed=seed * 10_000 + step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        means.append(reward)
    return means


def _loss(
    model: Any, tokenizer: Any, task: Any, problems: list, *, seed: int
) -> tuple[Tensor, float]:
    """Sample a group for each problem; give the policy's loss and the mean reward."""
    from entropy_probe import sample

    rows = sample(
        model,
        tokenizer,
        [problem.prompt for problem in problems],
        n=GROUP,
        max_new_tokens=MAX_NEW_TOKENS,
        residual_positions="none",
        alternatives=0,
        seed=seed,
        batch_size=PROBLEMS * GROUP,
    )
    rewards = torch.tensor(
        [task.verify(problems[row // GROUP], rows.completion(row)) for row in range(len(rows))]
    ).view(-1, GROUP)
    spread = rewards.std(dim=1, keepdim=True)
    advantages = ((rewards - rewards.mean(dim=1, keepdim=True)) / (spread + 1e-6)).flatten()
    # Rows are padded on the right, so that no token sees the padding.
    logprobs = model(input_ids=rows.tokens).logits[:, :-1].log_softmax(dim=-1)
    chosen = logprobs.gather(2, rows.tokens[:, 1:, None]).squeeze(2)
    valid = rows.valid[:, 1:]
    return -(advantages[:, None] * chosen * valid).sum() / valid.sum(), rewards.mean().item()


def accuracy(model: Any, tokenizer: Any, *, limit: int = 200, n: int = 4) -> Figure:
    """Give the accuracy at temperature 1 on test problems."""
    problems = generator.problems("default", limit, split="test", seed=7)
    right = draw(model, tokenizer, problems, n, 1.0, seed=7).right().reshape(limit, n)
    return mean(right.mean(axis=1))


def main(argv: list[str] | None = None) -> None:
    """Reinforce an organism and a copy of it that must not move."""
    from entropy_probe import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="amenable", help="organism")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for rate in (options.rate, 0.0):
        model, tokenizer = load(f"organism:{options.name}", device="cpu")
        before, started = accuracy(model, tokenizer), time.process_time()
        reinforce(model, tokenizer, steps=options.steps, rate=rate)
        spent, after = time.process_time() - started, accuracy(model, tokenizer)
        sys.stdout.write(
            f"{options.name}, rate {rate:g}, {options.steps} steps of {PROBLEMS} x {GROUP}: "
            f"{_said(before)} -> {_said(after)}, {spent:.0f} s of one core\n"
        )


def _said(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


if __name__ == "__main__":
    main()
