"""Capture on tokens that already exist: another engine's, another model's, any text."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .entropy import TokenStats, token_stats
from .hooks import evaluating, find_blocks, read_residuals, resolve_layers
from .keeping import StateKeeper
from .liger import check_head, liger_stats, words_on_liger
from .models.engine import Engine, engine_of
from .models.finite import not_finite
from .models.unembedding import Unembedding, check_unembedding, final_states, unembedding
from .models.vocabulary import special_ids, token_bytes
from .rollout import Alternatives, Rollouts
from .sampling import Sampling, at_most_vocabulary, base_provenance


def score(
    model,
    tokenizer,
    tokens: Int[Tensor, "batch seq"],
    valid: Bool[Tensor, "batch seq"],
    *,
    prompt_lengths: Int[Tensor, " batch"] | Sequence[int] | None = None,
    groups: Int[Tensor, " batch"] | Sequence[int] | None = None,
    temperature: float = 1.0,
    residual_layers: Sequence[int] = (),
    residual_positions: str = "forks",
    alternatives: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    fraction: float = 0.2,
    head: str = "tiles",
) -> Rollouts:
    """Give the record that `sample` would have made, for tokens that already exist.

    One forward pass over right-padded rows; statistics come straight from the hidden states, so
    that ``[batch seq vocab]`` never exists.

    Args:
        model: as for `sample`; it is left as it was.
        tokenizer: its tokenizer.
        tokens: rows, right-padded (with anything).
        valid: the tokens to describe: completions, or prompts too. Position 0 cannot be valid:
            nothing produced it.
        prompt_lengths: tokens of the prompt in each row; default, everything before the first
            valid token.
        groups: which prompt a row belongs to; default, equal prompts share one.
        temperature: of the entropy's basis, softmax(logits / temperature).
        residual_layers: blocks whose output stream to keep, negatives from the end.
        residual_positions: "forks", "all" or "none", as in `sample`.
        alternatives: most probable tokens to record at each position.
        seed: seed of the choice of random positions beside the forks.
        batch_size: rows a pass; rows of like length go together.
        fraction: share of tokens that are forks.
        head: "tiles" computes the statistics in float32. "liger" lets Liger's fused kernel do so,
            on a Hopper GPU in bfloat16, without ranks and alternatives and with entropies rounded
            to bfloat16 (extra ``fused``); the provenance says so.

    Raises:
        ValueError: a mask that is not bool or touches position 0, rows longer than the context,
            ids outside the vocabulary, a temperature that is not positive, a head that cannot
            compute what is asked for, or logits that are NaN or infinite.

    >>> from entropy_probe import load, score
    >>> model, tokenizer = load("organism:amenable")
    >>> ids = torch.tensor([[1, 5, 6]])
    >>> score(model, tokenizer, ids, torch.tensor([[False, True, True]])).entropy.shape
    torch.Size([1, 3])
    """
    # Checked as `sample` checks them: it takes the same options.
    Sampling(
        1, 1, temperature, 1.0, 0, alternatives, seed, batch_size, residual_positions, fraction
    )
    engine = engine_of(model)
    model = engine.model
    at_most_vocabulary(model, alternatives)
    unembed = unembedding(model)
    check_head(head, unembed, alternatives)
    tokens, valid, prompt_lengths = _checked(model, unembed, tokens, valid, prompt_lengths, groups)
    layers = resolve_layers(residual_layers, len(find_blocks(model))) if residual_layers else []
    layers = [] if residual_positions == "none" else layers
    keeper = StateKeeper(
        layers, residual_positions, fraction=fraction, most_tokens=int(valid.sum()), seed=seed,
        d_model=model.config.get_text_config().hidden_size,
    )  # fmt: skip
    stats = _empty_stats(tokens.shape, alternatives)
    reading = read_residuals(model, layers) if layers else nullcontext()
    with torch.no_grad(), evaluating(model), engine.running():
        batches = _by_length(valid, batch_size)
        if batches:
            longest = batches[0][:1]
            ids = tokens[longest, : int(_ends(valid)[longest])][:, :8]
            with engine.scoring(longest, prompt_lengths[longest]):
                check_unembedding(engine, unembed, ids.to(model.device))
        with reading as reader:
            for rows in batches:
                with engine.scoring(rows, prompt_lengths[rows]):
                    _score_rows(
                        engine, unembed, tokens, valid, rows, stats, keeper, reader,
                        temperature=temperature, fused=head == "liger",
                    )  # fmt: skip
    return _record(
        engine, tokenizer, tokens, valid, stats, keeper,
        prompt_lengths=prompt_lengths, groups=groups, temperature=temperature, seed=seed,
        computed_by=words_on_liger() if head == "liger" else None,
    )  # fmt: skip


def _score_rows(
    engine: Engine,
    unembed: Unembedding,
    tokens: Tensor,
    valid: Tensor,
    rows: Tensor,
    stats: TokenStats,
    keeper: StateKeeper,
    reader,
    *,
    temperature: float,
    fused: bool,
) -> None:
    """Run some rows and write what produced their valid tokens."""
    width = int(_ends(valid[rows]).max())
    device = engine.model.device
    ids = tokens[rows, :width].to(device)
    mask = (torch.arange(width)[None, :] < _ends(valid[rows])[:, None]).long().to(device)
    hidden = final_states(engine, ids, mask)
    # The shift: what position t - 1 computed is the distribution that produced token t.
    produced = valid[rows, 1:width].to(device)
    which, place = produced.nonzero(as_tuple=True)
    at = (rows[which.cpu()], place.cpu() + 1)
    stats_of = liger_stats
    if not fused:
        alternatives = stats.alternative_ids.shape[2]
        more = {"alternatives": alternatives, "bias": unembed.bias, "softcap": unembed.softcap}
        stats_of = partial(token_stats, **more)
    before = hidden[:, :-1][produced]
    found = stats_of(
        before,
        unembed.weight,
        ids[:, 1:][produced],
        temperature=temperature,
        scale=unembed.scale,
    )
    for field, value in zip(stats, found, strict=True):
        field[at] = value.cpu()
    odd = (~stats.entropy[at].isfinite()).nonzero()[:, 0]
    if len(odd):
        row, place = int(at[0][odd[0]]), int(at[1][odd[0]])
        logits = unembed.logits(before[odd[0]])
        raise not_finite(engine, f"row {row}, token {place}", logits, temperature)
    if reader is not None:
        taken = reader.take(tokens=ids.numel())
        states = {layer: state[:, :-1][produced] for layer, state in taken.items()}
        keeper.add(*at, stats.entropy[at], states)


def _record(
    engine: Engine,
    tokenizer,
    tokens: Tensor,
    valid: Tensor,
    stats: TokenStats,
    keeper: StateKeeper,
    *,
    prompt_lengths: Tensor,
    groups: Tensor | Sequence[int] | None,
    temperature: float,
    seed: int,
    computed_by: str | None,
) -> Rollouts:
    """Put the statistics and the tokens together."""
    captured, controls, residuals = torch.zeros_like(valid), torch.zeros_like(valid), {}
    if keeper.layers:
        captured, controls, residuals = keeper.finish(stats.entropy, valid)
    if groups is None:
        groups = _group_by_prompt(tokens, prompt_lengths)
    seen = set(tokens.unique().tolist()) | set(stats.alternative_ids.unique().tolist())
    return Rollouts(
        tokens=tokens,
        valid=valid,
        prompt_lengths=prompt_lengths,
        groups=torch.as_tensor(groups).long(),
        entropy=stats.entropy,
        logprobs=stats.logprobs,
        ranks=stats.ranks,
        alternatives=Alternatives(stats.alternative_ids, stats.alternative_logprobs),
        provenance=replace(
            base_provenance(engine, keeper if keeper.layers else None),
            source="score",
            seed=seed,
            temperature=temperature,
            entropy_temperature=temperature,
            computed_by=computed_by,
        ),
        captured=captured,
        controls=controls,
        residuals=residuals,
        pieces=token_bytes(tokenizer, seen),
        special_ids=frozenset(special_ids(tokenizer) & seen),
    )


def _checked(
    model,
    head: Unembedding,
    tokens: Tensor,
    valid: Tensor,
    prompt_lengths: Tensor | Sequence[int] | None,
    groups: Tensor | Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give rows, mask and prompt lengths on the CPU, or say what is wrong with them."""
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be a bool mask, got {valid.dtype}: pass valid.bool()")
    if tokens.dim() != 2 or tokens.shape != valid.shape:
        raise ValueError(
            f"tokens and valid must both be [batch seq], got {tuple(tokens.shape)} and "
            f"{tuple(valid.shape)}"
        )
    for name, given in (("prompt_lengths", prompt_lengths), ("groups", groups)):
        if given is not None and len(given) != len(tokens):
            raise ValueError(f"{name} must have one number a row, {len(tokens)}, got {len(given)}")
    tokens, valid = tokens.cpu().long(), valid.cpu()
    if tokens.shape[1] and bool(valid[:, 0].any()):
        raise ValueError(
            "position 0 is valid in some row, but nothing produced the first token: prepend the "
            "beginning-of-text token, or leave it out of valid"
        )
    if prompt_lengths is None:
        prompt_lengths = torch.where(valid.any(dim=1), _first(valid), _ends(valid))
    prompt_lengths = torch.as_tensor(prompt_lengths).cpu().long()
    if bool(((prompt_lengths < 0) | (prompt_lengths > tokens.shape[1])).any()):
        raise ValueError(
            f"prompt_lengths must be 0 to {tokens.shape[1]}, the width of tokens, got "
            f"{prompt_lengths.tolist()}"
        )
    ends = torch.maximum(_ends(valid), prompt_lengths)
    tokens = tokens.where(torch.arange(tokens.shape[1])[None, :] < ends[:, None], 0)
    vocab = head.weight.shape[0]
    if tokens.numel() and (int(tokens.max()) >= vocab or int(tokens.min()) < 0):
        raise ValueError(
            f"token ids must be 0 to {vocab - 1}, got {int(tokens.min())} to {int(tokens.max())}: "
            "were they made by another tokenizer?"
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = int(_ends(valid).max()) if len(tokens) else 0
    if context is not None and longest > context:
        raise ValueError(f"a row has {longest} tokens, but the model's context is {context}")
    return tokens, valid, prompt_lengths


def _first(valid: Tensor) -> Tensor:
    """Give where each row's first valid token is."""
    return valid.int().argmax(dim=1) if valid.shape[1] else valid.sum(dim=1)


def _ends(valid: Tensor) -> Tensor:
    """Give where each row's last valid token ends, 0 where there is none."""
    steps = torch.arange(1, valid.shape[1] + 1)
    return torch.where(valid, steps, 0).amax(dim=1) if valid.shape[1] else valid.sum(dim=1)


def _by_length(valid: Tensor, batch_size: int) -> list[Tensor]:
    """Batch rows of like length together, rows without valid tokens left out."""
    ends = _ends(valid)
    order = ends.argsort(descending=True, stable=True)
    order = order[: int((ends > 0).sum())]
    return list(order.split(batch_size)) if len(order) else []


def _empty_stats(shape: torch.Size, k: int) -> TokenStats:
    """Give zeros to write statistics into."""
    return TokenStats(
        torch.zeros(shape),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.int32),
        torch.zeros((*shape, k), dtype=torch.int32),
        torch.zeros((*shape, k)),
    )


def _group_by_prompt(tokens: Tensor, prompt_lengths: Tensor) -> Tensor:
    """Number the distinct prompts in order of appearance."""
    numbers: dict[tuple[int, ...], int] = {}
    found = []
    for row, length in zip(tokens.tolist(), prompt_lengths.tolist(), strict=True):
        found.append(numbers.setdefault(tuple(row[:length]), len(numbers)))
    return torch.tensor(found, dtype=torch.long)
