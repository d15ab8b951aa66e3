"""Texts that passed through a model and were kept, and the record that they make together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.models.vocabulary import special_ids, token_bytes
from entropy_probe.rollout import Alternatives, Provenance, Rollouts

from .passes import Texts


@dataclass(frozen=True)
class Recorded:
    """One text that passed; row t belongs to the distribution that produced token t."""

    batch: int
    """Which batch of texts it was in, counted over all that passed."""
    training: bool
    """Whether the pass built a graph; False for generation and scoring."""
    tokens: Int[Tensor, " seq"] | None
    """Token ids; None where the model was given embeddings."""
    prompt_length: int
    """Tokens that were given, where the rest was generated; 1 where it was all given."""
    valid: Bool[Tensor, " seq"]
    """Tokens with a known distribution that take part: in the loss by the labels, where there
    were any; generated ones, where it was generated; else all but the first."""
    entropy: Float[Tensor, " seq"]
    """Nats; 0 outside ``valid``."""
    logprobs: Float[Tensor, " seq"]
    """Of the token itself, nats; 0 outside ``valid``."""
    captured: Bool[Tensor, " seq"]
    """Tokens whose residual is kept."""
    controls: Bool[Tensor, " seq"]
    """The captured ones that are random others, kept for comparison."""
    residuals: Mapping[int, Float[Tensor, "captured d_model"]] = field(default_factory=dict)
    """Layer -> the states that predicted the captured tokens, in their order."""


def pick_row(
    texts: Texts,
    row: int,
    states: Mapping[int, Float[Tensor, "batch seq d_model"]],
    captured: Bool[Tensor, "batch seq"],
    controls: Bool[Tensor, "batch seq"],
    *,
    batch: int,
    training: bool,
) -> Recorded:
    """Give one text of a batch, copied, so that the batch itself can go."""
    span = slice(int(texts.lengths[row]))
    # What predicted a token stood where the token before it stood.
    where = texts.places[row, captured[row].nonzero()[:, 0] - 1]
    return Recorded(
        batch=batch,
        training=training,
        tokens=None if texts.tokens is None else texts.tokens[row, span].clone(),
        prompt_length=int(texts.prompt_lengths[row]),
        valid=texts.valid[row, span].clone(),
        entropy=texts.entropy[row, span].clone(),
        logprobs=texts.logprobs[row, span].clone(),
        captured=captured[row, span].clone(),
        controls=controls[row, span].clone(),
        residuals={k: state[row, where.to(state.device)].cpu() for k, state in states.items()},
    )


def join_rows(rows: Sequence[Recorded], provenance: Provenance, tokenizer) -> Rollouts:
    """Put texts together; those generated from one prompt form a group.

    Args:
        rows: texts whose tokens are known.
        provenance: where they come from.
        tokenizer: gives the tokens' bytes; None leaves them unknown.
    """
    shape = len(rows), max(len(row.valid) for row in rows)

    def padded(name: str, dtype: torch.dtype) -> Tensor:
        out = torch.zeros(shape, dtype=dtype)
        for i, row in enumerate(rows):
            values = getattr(row, name)
            out[i, : len(values)] = values
        return out

    tokens = padded("tokens", torch.long)
    seen = set(tokens.unique().tolist())
    known = tokenizer is not None
    return Rollouts(
        tokens=tokens,
        valid=padded("valid", torch.bool),
        prompt_lengths=torch.tensor([row.prompt_length for row in rows]),
        groups=_groups(rows),
        entropy=padded("entropy", torch.float32),
        logprobs=padded("logprobs", torch.float32),
        ranks=torch.full(shape, -1, dtype=torch.int32).where(padded("valid", torch.bool), 0),
        alternatives=Alternatives(
            torch.zeros(*shape, 0, dtype=torch.int32), torch.zeros(*shape, 0)
        ),
        provenance=provenance,
        captured=padded("captured", torch.bool),
        controls=padded("controls", torch.bool),
        residuals={
            layer: torch.cat([row.residuals[layer] for row in rows]) for layer in rows[0].residuals
        },
        pieces=token_bytes(tokenizer, seen) if known else {},
        special_ids=frozenset(special_ids(tokenizer) & seen) if known else frozenset(),
    )


def _groups(rows: Sequence[Recorded]) -> Int[Tensor, " batch"]:
    """Number the prompts; a text that was all given is a group of its own."""
    numbers: dict[object, int] = {}
    found = []
    for i, row in enumerate(rows):
        prompt = row.tokens[: row.prompt_length].tolist()
        key = tuple(prompt) if row.prompt_length > 1 else i
        found.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(found)
