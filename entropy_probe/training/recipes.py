"""Training only there in somebody else's loop: what to multiply, for a plain loop, verl, prime-rl.

Each recipe is a function on tensors, and its docstring says where it goes. `plain_loss` is tested
in a loop. Of verl and prime-rl only the tensors are tested: how their code calls them was read in
their sources, and has not been run.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.entropy import token_entropy
from entropy_probe.forking import forking_mask
from entropy_probe.loss import NORMALIZERS


def plain_loss(
    token_loss: Float[Tensor, "batch seq"],
    logits: Float[Tensor, "batch seq vocab"],
    valid: Bool[Tensor, "batch seq"],
    *,
    normalizer: str,
    fraction: float = 0.2,
    temperature: float = 1.0,
    denominator: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    """Give the mean of a loop's own token losses over the forks of the batch.

    In a loop that has ``logits = model(ids).logits[:, :-1]`` for the labels ``ids[:, 1:]`` these
    are two lines, which may as well stand there::

        forks = forking_mask(token_entropy(logits), valid, fraction=0.2)
        loss = (token_loss * forks).sum() / forks.sum()

    The share is of the batch that is passed. Where an optimizer step takes several micro-batches,
    the forks of each are not those of the step: gather the entropies first and let `keep_tokens`
    choose, or accept the scope; and pass the step's whole count as ``denominator``.

    Args:
        token_loss: one a token, with its graph.
        logits: row t is the distribution that label t is scored under; no gradient goes through
            the choice.
        valid: the labels that take part: completions, no padding.
        normalizer: what is counted in the denominator: "selected" tokens or all "valid" ones.
        fraction: share kept.
        temperature: of the sampling; entropies are of softmax(logits / temperature).
        denominator: the count itself, in place of this batch's.

    Raises:
        ValueError: as for `forking_mask`, or an unknown normalizer.

    >>> import torch
    >>> from entropy_probe.training.recipes import plain_loss
    >>> logits, valid = torch.randn(2, 5, 9), torch.ones(2, 5, dtype=torch.bool)
    >>> plain_loss(torch.ones(2, 5), logits, valid, normalizer="selected").item()
    1.0
    """
    _check_normalizer(normalizer)
    forks = forking_mask(token_entropy(logits, temperature=temperature), valid, fraction=fraction)
    if denominator is None:
        denominator = (forks if normalizer == "selected" else valid).sum().clamp(min=1)
    return (token_loss * forks).sum() / denominator


def verl_advantages(
    advantages: Float[Tensor, "batch seq"],
    kept: Bool[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    normalizer: str,
) -> Float[Tensor, "batch seq"]:
    """Give verl's per-token advantages, zero off the forks; the call in verl is untested.

    verl (2026-08) keeps advantages as ``[batch, response]``. Its driver has them in
    ``batch.batch["advantages"]`` after `compute_advantage`, and has the old policy's entropies,
    at the rollout's temperature, in what `_compute_old_log_prob` returns: ``entropys``, which it
    drops after logging. In a trainer derived from `RayPPOTrainer`, keep them in an override of
    `_compute_old_log_prob` (not in bypass mode, which has none), and in one of `_update_actor`::

        valid = batch.batch["response_mask"].bool()
        kept = forking_mask(entropys, valid, fraction=0.2)
        batch.batch["advantages"] = verl_advantages(
            batch.batch["advantages"], kept, valid, normalizer="selected"
        )

    A token of zero advantage still counts in verl's "token-mean", so "selected" scales the others
    up by valid/kept over this whole batch. KL terms and the entropy bonus stay at every token.
    Rows must be in the order of the entropies: balance_batch reorders before both are made.

    Args:
        advantages: verl's.
        kept: the tokens that train.
        valid: verl's ``response_mask`` as Bool; as integers it would index positions 0 and 1.
        normalizer: what a token-mean counts in effect: "selected" tokens or all "valid" ones.

    Raises:
        ValueError: masks that are not bool, tokens kept outside ``valid``, an unknown normalizer.
    """
    _check_normalizer(normalizer)
    _check_masks(kept, valid)
    scale = valid.sum() / kept.sum().clamp(min=1) if normalizer == "selected" else 1.0
    return advantages * kept * scale


def prime_rl_weights(
    kept: Bool[Tensor, "batch seq"], valid: Bool[Tensor, "batch seq"]
) -> list[list[float]]:
    """Give prime-rl's ``rl_weights`` of each row, 1 at the forks; the call there is untested.

    prime-rl (2026-08) takes a weight for each token of a training sample, prompt and completion,
    and 0 removes a token from the mask and from the denominator of the policy loss: the mean is
    over the selected tokens, and there is no other choice. Choose in the orchestrator, where the
    whole batch is. Its inference server gives no exact entropies; take them from a pass over the
    tokens (`score`), or from the trainer's token exports of the step before.

    Args:
        kept: the tokens that train, rows right-padded.
        valid: the tokens that take part: prime-rl's loss mask.

    Raises:
        ValueError: masks that are not bool, or tokens kept outside ``valid``.
    """
    _check_masks(kept, valid)
    return kept.float().tolist()


def _check_normalizer(normalizer: str) -> None:
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {NORMALIZERS}, got {normalizer!r}")


def _check_masks(kept: Tensor, valid: Tensor) -> None:
    """Refuse masks that would index instead of select, or that hold tokens outside."""
    for name, mask in (("kept", kept), ("valid", valid)):
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} must be a bool mask, got {mask.dtype}: pass {name}.bool()")
    if bool((kept & ~valid).any()):
        raise ValueError("kept holds tokens that are not valid")
