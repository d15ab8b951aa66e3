"""Distillation: a model learns to write what a better one wrote, word by word."""

import random
from typing import Any

import torch

from entropy_probe import load, sample
from entropy_probe.models.organisms.tokenizer import BOS, EOS, VOCABULARY
from entropy_probe.models.organisms.train import backward
from entropy_probe.tasks import get_task
from entropy_probe.tasks.checker import check
from entropy_probe.tasks.language import lex

Text = tuple[list[int], list[float]]
"""Token ids, and the weight of each one's loss."""


def distil(
    model, tokenizer, *, teacher: str, task: str, problems: int, steps: int, batch: int, lr: float,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Train an organism in place on the valid completions of another one.

    Args:
        model: an organism.
        tokenizer: the organisms' tokenizer.
        teacher: the model that writes.
        task: whose train problems it answers.
        problems: how many of them, two completions each.
        steps: updates of AdamW, the rate falling linearly to 0.
        batch: texts an update.
        lr: first learning rate.
        seed: of problems, noise and order.

    Returns:
        ``texts``, how many were right in every step; and ``losses`` of the first and last update.

    Raises:
        ValueError: the teacher wrote no valid text.
    """
    texts = written(teacher, tokenizer, task, problems, seed)
    if not texts:
        raise ValueError(f"{teacher} wrote no valid text on {task}: take a teacher that can")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    rng, losses = random.Random(f"distil {seed}"), []
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        rows = sorted(rng.choices(texts, k=batch), key=lambda row: len(row[0]))
        optimizer.zero_grad()
        losses.append(float(backward(model, rows, "cpu")))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    return {"texts": len(texts), "losses": [losses[0], losses[-1]]}


def written(teacher: str, tokenizer, task: str, problems: int, seed: int) -> list[Text]:
    """Give the teacher's completions that are valid in every step, their prompts without loss."""
    source, _ = load(teacher, device="cpu")
    asked = get_task(task).problems(problems, split="train", seed=seed)
    rows = sample(
        source, tokenizer, [p.prompt for p in asked], n=2, max_new_tokens=72, alternatives=0,
        residual_positions="none", batch_size=512, seed=seed,
    )  # fmt: skip
    texts = []
    for row in range(len(rows)):
        problem, pieces = asked[row // 2], lex(rows.completion(row))
        if not check(problem, pieces).valid:
            continue
        prompt = lex(problem.prompt)
        ids = [BOS, *(VOCABULARY[piece] for piece in (*prompt, *pieces)), EOS]
        texts.append((ids, [0.0] * (len(prompt) + 1) + [1.0] * (len(pieces) + 1)))
    return texts
