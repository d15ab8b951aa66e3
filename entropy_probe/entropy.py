"""What the model was unsure of: exact token statistics from logits or from hidden states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE = 1 << 22
"""Most float32 logits held at once on a CPU (16 MB): no copy of a large input is made."""

_ON_GPU = 8
"""Times as many on a GPU, where each launch costs as much as many logits."""

_ROWS = 512
"""Fewest tokens in a tile of `token_stats`."""

_FLOOR = -1e4
"""Nats under the maximum at which a logit stops: exp gives exactly 0, and 0 * floor is no NaN."""


class TokenStats(NamedTuple):
    """Statistics of the distributions that produced some tokens, float32, in nats."""

    entropy: Float[Tensor, "*tokens"]
    """Entropy over the full vocabulary."""
    logprobs: Float[Tensor, "*tokens"]
    """Log-probability of the token itself."""
    ranks: Int[Tensor, "*tokens"]
    """How many tokens were strictly more probable."""
    alternative_ids: Int[Tensor, "*tokens k"]
    """The most probable tokens, best first."""
    alternative_logprobs: Float[Tensor, "*tokens k"]
    """Their log-probabilities."""


@torch.no_grad()
def token_entropy(
    logits: Float[Tensor, "*tokens vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*tokens"]:
    """Give the exact entropy in nats of softmax(logits / temperature), row by row.

    H = -sum_j p_j log p_j with p = softmax(z / T) (arXiv 2506.01939, Eq. 1). The arithmetic is
    float32 whatever the dtype, in chunks; logits of -inf count as probability zero. No gradient
    flows: the result is a statistic, not a loss.

    Raises:
        ValueError: a temperature that is not positive, or logits without a vocabulary axis.

    >>> import torch
    >>> token_entropy(torch.zeros(1, 4)).item() == torch.tensor(4.0).log().item()
    True
    """
    _check_temperature(temperature)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be [..., vocab], got shape {tuple(logits.shape)}")
    first = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
    return entropy_and_logprobs(logits, first, temperature=temperature)[0]


@torch.no_grad()
def entropy_and_logprobs(
    logits: Float[Tensor, "*tokens vocab"],
    tokens: Int[Tensor, "*tokens"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "*tokens"], Float[Tensor, "*tokens"]]:
    """Give `token_entropy` and, at no further cost, the log-probability of one token a row.

    Args:
        logits: as for `token_entropy`.
        tokens: row t is the token that the distribution t produced.
        temperature: both are of softmax(logits / temperature).
    """
    _check_temperature(temperature)
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)}, so tokens must be {tuple(logits.shape[:-1])}, "
            f"got {tuple(tokens.shape)}"
        )
    entropy = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
    logprobs = torch.empty_like(entropy)
    if logits.dim() > 2 and not logits.is_contiguous():
        # Flattening a slice such as logits[:, :-1] would copy all of it.
        for i, part in enumerate(logits):
            entropy[i], logprobs[i] = entropy_and_logprobs(part, tokens[i], temperature=temperature)
        return entropy, logprobs
    rows, index = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1, 1).long()
    step = max(1, _tile(logits) // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        shifted, weights = shift_and_exp(rows[part].to(torch.float32, copy=True).div_(temperature))
        total = weights.sum(dim=-1)
        entropy.view(-1)[part] = entropy_of_shifted(shifted, weights, total)
        logprobs.view(-1)[part] = shifted.gather(1, index[part])[:, 0] - total.log()
    return entropy, logprobs


def shift_and_exp(
    scores: Float[Tensor, "rows vocab"],
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows vocab"]]:
    """Give (z - max z, exp of it), in place of the scores; -inf becomes a finite floor."""
    shifted = scores.sub_(scores.amax(dim=-1, keepdim=True)).clamp_(min=_FLOOR)
    return shifted, shifted.exp()


def entropy_of_shifted(
    shifted: Float[Tensor, "rows vocab"],
    weights: Float[Tensor, "rows vocab"],
    total: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Give the entropy of weights / total, where weights = exp(shifted) and total their sum."""
    with _unrounded(shifted):
        dot = torch.linalg.vecdot(shifted, weights)
    return total.log() - dot / total  # both terms are >= 0: the largest weight is 1


@torch.no_grad()
def token_stats(
    hidden: Float[Tensor, "*tokens d_model"],
    unembed: Float[Tensor, "vocab d_model"],
    tokens: Int[Tensor, "*tokens"],
    *,
    temperature: float = 1.0,
    alternatives: int = 5,
    bias: Float[Tensor, " vocab"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> TokenStats:
    """Give entropy, log-probability, rank and alternatives straight from hidden states.

    The logits are scale * hidden @ unembed.T + bias, capped to softcap * tanh(z / softcap) where
    given, then divided by the temperature; they exist only as tiles over tokens and vocabulary,
    never as [batch seq vocab]. Products accumulate in float32 whatever the dtype. `hidden` is
    what enters the unembedding (after the final norm), row t being the state that predicted
    ``tokens[t]``.

    Raises:
        ValueError: a temperature that is not positive, more alternatives than the vocabulary
            has, or hidden states and tokens that differ in shape.
    """
    _check_temperature(temperature)
    if hidden.shape[:-1] != tokens.shape:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)}, so tokens must be {tuple(hidden.shape[:-1])}, "
            f"got {tuple(tokens.shape)}"
        )
    _check_alternatives(alternatives, unembed.shape[0])
    flat, ids = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    # Few, tall tiles: each pass over the rows reads the whole unembedding once.
    rows = max(_ROWS, _tile(hidden) // unembed.shape[0])
    head, starts = _Head(scale, temperature, bias, softcap), range(0, max(len(flat), 1), rows)
    with _unrounded(hidden):
        parts = [
            _stats_tiled(
                flat[at : at + rows].float(), unembed, ids[at : at + rows], head, alternatives
            )
            for at in starts
        ]
    joined = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenStats(*(c.reshape(tokens.shape + c.shape[1:]) for c in joined))


@torch.no_grad()
def logit_stats(
    logits: Float[Tensor, "rows vocab"],
    tokens: Int[Tensor, " rows"],
    *,
    temperature: float = 1.0,
    alternatives: int = 5,
) -> TokenStats:
    """Give the same statistics from logits that exist already; row t produced ``tokens[t]``."""
    _check_temperature(temperature)
    _check_alternatives(alternatives, logits.shape[1])
    scores = logits.to(torch.float32, copy=True).div_(temperature)
    shifted, weights = shift_and_exp(scores)
    return stats_of_shifted(shifted, weights, tokens, alternatives)


def stats_of_shifted(
    shifted: Float[Tensor, "rows vocab"],
    weights: Float[Tensor, "rows vocab"],
    tokens: Int[Tensor, " rows"],
    alternatives: int,
) -> TokenStats:
    """Give the statistics from scores shifted by their maximum and their exponentials."""
    total = weights.sum(dim=-1)
    normaliser = total.log()
    own = shifted.gather(1, tokens[:, None].long())
    top = shifted.topk(alternatives, dim=-1)
    return TokenStats(
        entropy_of_shifted(shifted, weights, total),
        own[:, 0] - normaliser,
        (shifted > own).sum(dim=-1, dtype=torch.int32),
        top.indices.to(torch.int32),
        top.values - normaliser[:, None],
    )


def _tile(like: Tensor) -> int:
    """Give the most logits held at once where a tensor is."""
    return TILE * _ON_GPU if like.is_cuda else TILE


class _Head(NamedTuple):
    """What turns hidden @ unembed.T into logits / temperature."""

    scale: float
    temperature: float
    bias: Tensor | None
    softcap: float | None


def _stats_tiled(
    hidden: Float[Tensor, "rows d_model"],
    unembed: Float[Tensor, "vocab d_model"],
    tokens: Int[Tensor, " rows"],
    head: _Head,
    alternatives: int,
) -> tuple[Tensor, ...]:
    """Fold tiles of the vocabulary into the statistics of some rows (online logsumexp)."""
    count, vocab = hidden.shape[0], unembed.shape[0]
    index = tokens[:, None].long()
    peak = hidden.new_full((count,), _FLOOR * 1e4)
    total, dot = hidden.new_zeros(count), hidden.new_zeros(count)
    own = _scores(hidden[:, None], unembed[index], index, head)
    ranks = torch.zeros(count, dtype=torch.int32, device=hidden.device)
    best, best_ids = hidden.new_empty(count, 0), index.new_empty(count, 0)
    exact = hidden.new_zeros(count)
    width = max(1, min(vocab, _tile(hidden) // max(count, 1)))
    for start in range(0, vocab, width):
        span = torch.arange(start, min(start + width, vocab), device=hidden.device)
        scores = _scores(hidden, unembed[start : start + width], span, head)
        inside = (index[:, 0] >= start) & (index[:, 0] < start + width)
        self_score = scores.gather(1, (index - start).clamp(0, scores.shape[1] - 1))
        exact = torch.where(inside, self_score[:, 0], exact)
        # Row and matrix products round apart: a token must not outrank itself, nor its equal.
        bar = torch.where(inside[:, None], self_score, own)
        ranks += (scores > bar).sum(dim=1, dtype=torch.int32)
        top = scores.topk(min(alternatives, scores.shape[1]), dim=1)
        best = torch.cat([best, top.values], dim=1)
        best_ids = torch.cat([best_ids, top.indices + start], dim=1)
        best, order = best.topk(min(alternatives, best.shape[1]), dim=1)
        best_ids = best_ids.gather(1, order)
        higher = torch.maximum(peak, scores.amax(dim=1))
        rise, decay = higher - peak, (peak - higher).exp()
        shifted = scores.sub_(higher[:, None]).clamp_(min=_FLOOR)
        weights = shifted.exp()
        dot = decay * (dot - rise * total) + torch.linalg.vecdot(shifted, weights)
        total = decay * total + weights.sum(dim=1)
        peak = higher
    log_total = total.log()
    return (
        log_total - dot / total,
        exact - peak - log_total,
        ranks,
        best_ids.to(torch.int32),
        best - (peak + log_total)[:, None],
    )


def _scores(hidden: Tensor, unembed: Tensor, span: Tensor, head: _Head) -> Tensor:
    """Give logits / temperature of some hidden states at some tokens, float32."""
    scores = hidden @ unembed.float().mT
    if hidden.dim() == 3:  # one token a row
        scores = scores.squeeze(-2)
    if head.scale != 1.0:
        scores = scores * head.scale
    if head.bias is not None:
        scores = scores + head.bias.float()[span]
    if head.softcap is not None:
        scores = torch.tanh(scores / head.softcap) * head.softcap
    return scores.div_(head.temperature)


@contextmanager
def _unrounded(values: Tensor) -> Iterator[None]:
    """Keep products in float32, whatever autocast or the process's matmul precision would do."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(values.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}; for greedy decoding the entropy "
            "is taken at temperature 1"
        )


def _check_alternatives(alternatives: int, vocab: int) -> None:
    if not 0 <= alternatives <= vocab:
        raise ValueError(f"alternatives must be 0 to {vocab} (the vocabulary), got {alternatives}")
