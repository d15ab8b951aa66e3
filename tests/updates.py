"""Batches to update a tiny model on, and the plain dense step that others are held against."""

import dataclasses

import torch
from odd_heads import model_of
from tiny import VOCAB

from entropy_probe.loss import masked_policy_loss
from entropy_probe.training.batch import UpdateBatch

FAMILIES = ("llama", "gpt2", "qwen3", "gemma2")


def trainable(family: str, *, tied: bool | None = None, dtype: torch.dtype = torch.float32):
    """Give a random model; tied or not, where that is asked for; its head's bias random."""
    model = model_of(family)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if tied is not None:
        head.weight = embedding.weight if tied else torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = tied
    return model.to(dtype)


def make_batch(
    model,
    *,
    prompts: tuple[int, ...] = (5, 2, 9),
    n: int = 3,
    longest: int = 14,
    seed: int = 0,
    reference: bool = False,
) -> UpdateBatch:
    """Give n random completions of random lengths for prompts of these lengths.

    Old log-probabilities lie around the model's own, so that some ratios are clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(prompts) * n, max(prompts) + longest
    heads = torch.tensor(prompts).repeat_interleave(n)
    made = torch.randint(2, longest + 1, (rows,), generator=generator)
    tokens = torch.randint(3, VOCAB, (rows, width), generator=generator)
    for i in range(0, rows, n):
        tokens[i : i + n, : heads[i]] = tokens[i, : heads[i]].clone()
    steps = torch.arange(width)
    valid = (steps >= heads[:, None]) & (steps < (heads + made)[:, None])
    with torch.no_grad():
        own = logprobs_of(model, tokens)

    def noisy() -> torch.Tensor:
        return own + 0.3 * torch.randn(own.shape, generator=generator, dtype=own.dtype)

    return UpdateBatch(
        tokens=tokens,
        valid=valid,
        prompt_lengths=heads,
        groups=torch.arange(len(prompts)).repeat_interleave(n),
        old_logprobs=noisy(),
        advantages=torch.randn(rows, generator=generator, dtype=own.dtype),
        reference_logprobs=noisy() if reference else None,
    )


def random_mask(valid, share: float = 0.3, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return valid & (torch.rand(valid.shape, generator=generator) < share)


def logprobs_of(model, tokens, temperature: float = 1.0):
    """Give each token's log-probability from whole logits; what stands behind it has no part."""
    logits = model(tokens).logits
    logprobs = (logits[:, :-1] / temperature).log_softmax(-1)
    own = logprobs.gather(2, tokens[:, 1:, None])[..., 0]
    return torch.cat([torch.zeros_like(own[:, :1]), own], dim=1)


def plain_step(model, batch, kept, denominator, *, temperature: float = 1.0, **options):
    """Give the loss and all gradients of the step as anyone would write it."""
    model.zero_grad()
    logprobs = logprobs_of(model, batch.tokens, temperature)
    loss = masked_policy_loss(
        logprobs, batch.old_logprobs, batch.advantages, batch.valid, kept, normalizer="valid",
        denominator=denominator, reference_logprobs=batch.reference_logprobs, **options,
    ).loss  # fmt: skip
    loss.backward()
    return loss.item(), take_gradients(model)


def take_gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def furthest(ours, theirs) -> float:
    """Give the largest relative distance between the gradients of a parameter."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-30))
        for name in theirs
        if theirs[name].any() or ours[name].any()
    )


def replaced(batch: UpdateBatch, **values) -> UpdateBatch:
    return dataclasses.replace(batch, **values)
