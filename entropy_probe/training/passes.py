"""What passed through a model, put in order: each text's tokens, entropies and states.

A forward pass gives, at every position, the distribution of the *next* token. Here these become
rows as everywhere: row t describes the distribution that produced token t. Texts may pass whole,
or in pieces, as generation with a key-value cache runs them.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from entropy_probe.entropy import entropy_and_logprobs
from entropy_probe.models.engine import decoder_of


@dataclass(frozen=True)
class Piece:
    """One pass over a batch of texts, in the caller's own layout."""

    tokens: Int[Tensor, "batch seq"] | None
    """What entered; None where the model was given embeddings."""
    entropy: Float[Tensor, "batch seq"]
    """Of the distribution after each position, nats; NaN where it was not computed."""
    logprobs: Float[Tensor, "batch seq"]
    """Of the token after each position; NaN where it is not known."""
    mask: Tensor | None = None
    """Attention mask of all tokens so far, ``[batch whole]``, True on text; None without one."""
    begins: Bool[Tensor, "batch seq"] | None = None
    """Tokens that begin a text (position 0), where positions were given."""
    part: Bool[Tensor, "batch seq"] | None = None
    """Tokens that take part in the loss, where labels were given."""
    after: Float[Tensor, "batch vocab"] | None = None
    """Log-probabilities of what comes after the last position, where another piece may follow."""
    states: Mapping[int, Float[Tensor, "batch seq d_model"]] = field(default_factory=dict)
    """Residual stream after each layer, at each position."""


@dataclass(frozen=True)
class Texts:
    """A batch of whole texts, right-padded; what stands before each is gone."""

    tokens: Int[Tensor, "batch seq"] | None
    """Token ids."""
    lengths: Int[Tensor, " batch"]
    """Tokens of each."""
    prompt_lengths: Int[Tensor, " batch"]
    """Tokens that were given, where the rest was generated; 1 where it was all given."""
    valid: Bool[Tensor, "batch seq"]
    """Tokens with a known distribution, that take part."""
    entropy: Float[Tensor, "batch seq"]
    """Of the distribution that produced each token, nats; 0 outside ``valid``."""
    logprobs: Float[Tensor, "batch seq"]
    """Of the token itself; 0 outside ``valid`` and where tokens are not known."""
    places: Int[Tensor, "batch seq"]
    """Where each token stood in what passed."""


def own_forward(model) -> nn.Module:
    """Give the decoder whose forward every caller ends up in, inside wrappers of any kind."""
    model = decoder_of(model)
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        elif hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif isinstance(inner := getattr(model, "module", None), nn.Module):  # DDP
            model = inner
        else:
            return model


def entered(arguments: Mapping[str, object]) -> Tensor:
    """Give what entered a pass: token ids, or embeddings."""
    ids = arguments.get("input_ids")
    return arguments["inputs_embeds"] if ids is None else ids[..., None]


def already_passed(arguments: Mapping[str, object]) -> int:
    """Count the tokens of these texts that passed before, by the key-value cache."""
    cache = arguments.get("past_key_values")
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


def read_piece(
    arguments: Mapping[str, object],
    output: object,
    *,
    temperature: float,
    may_go_on: bool,
    states: Mapping[int, Tensor],
) -> Piece:
    """Read a pass of a Hugging Face decoder, or of one with TRL's fused head.

    Args:
        arguments: the pass's arguments, by name.
        output: what it gave: with ``logits``, or with a fused head's ``entropy``, ``log_probs``
            and ``label_mask``, which are at that head's own temperature.
        temperature: of softmax(logits / temperature).
        may_go_on: whether a later pass may bring the next token.
        states: the residual streams of the pass.

    Raises:
        ValueError: an output with neither.
    """
    tokens = arguments.get("input_ids")
    shape = (tokens if tokens is not None else arguments["inputs_embeds"]).shape[:2]
    labels, positions = arguments.get("labels"), arguments.get("position_ids")
    mask = arguments.get("attention_mask")
    about = {
        "tokens": None if tokens is None else tokens.clone(),
        "mask": mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None,
        "part": None if labels is None else labels != -100,
        "begins": (positions == 0).expand(shape) if _is_plain(positions) else None,
        "states": states,
    }
    logits = _logits(output)
    if logits is None:
        return _fused(output, about)
    keep = arguments.get("logits_to_keep")
    places = keep if isinstance(keep, Tensor) else torch.arange(shape[1])[-logits.shape[1] :]
    ends = int(places[-1]) == shape[1] - 1
    places = places.to(logits.device)
    ids = torch.zeros(shape, dtype=torch.long) if tokens is None else tokens
    following = ids.to(logits.device).roll(-1, dims=1)[:, places]
    found = entropy_and_logprobs(logits, following, temperature=temperature)
    entropy, logprobs = (logits.new_full(shape, math.nan, dtype=torch.float32) for _ in found)
    entropy[:, places], logprobs[:, places] = found
    logprobs[:, -1] = math.nan  # that token is not here
    after = None
    if may_go_on and ends:
        after = (logits[:, -1].float() / temperature).log_softmax(dim=-1)
    return Piece(entropy=entropy, logprobs=logprobs, after=after, **about)


def follow(pieces: list[Piece], piece: Piece) -> None:
    """Add the pass that went on with the texts; its first token was drawn from the last one's."""
    last, logprobs = pieces[-1], pieces[-1].logprobs
    if last.after is not None and piece.tokens is not None:
        drawn = last.after.gather(1, piece.tokens[:, :1].to(last.after.device))
        logprobs = torch.cat([logprobs[:, :-1], drawn], dim=1)
    # The new mask covers all that passed.
    pieces[-1] = replace(last, logprobs=logprobs, after=None, mask=None)
    pieces.append(piece)


def in_order(pieces: Sequence[Piece], stops: Collection[int] = ()) -> Texts:
    """Give the texts of one or several passes, aligned, on the CPU.

    Padding is left out by the attention mask. Where there are several pieces, everything from
    the first one of a single token on was generated: that is valid, up to the first of ``stops``.
    """
    mask = _joined_mask(pieces)
    order = (~mask).int().argsort(dim=1, stable=True)
    lengths = mask.sum(dim=1)

    def packed(values: Tensor) -> Tensor:
        return values.cpu().gather(1, order)

    def joined(name: str) -> Tensor | None:
        values = [getattr(piece, name) for piece in pieces]
        if any(value is None for value in values):
            return None
        return packed(torch.cat([value.cpu() for value in values], dim=1))

    tokens, begins, part = joined("tokens"), joined("begins"), joined("part")
    steps = torch.arange(mask.shape[1])
    inside = steps < lengths[:, None]
    entropy, logprobs = (_produced(joined(name)) for name in ("entropy", "logprobs"))
    valid = inside & ~entropy.isnan()
    prompts = lengths.clamp(max=1)
    if len(pieces) > 1:
        given = _given(pieces)
        prompts = mask[:, :given].sum(dim=1)
        lengths = _ends(tokens, prompts, lengths, stops)
        valid &= (steps >= prompts[:, None]) & (steps < lengths[:, None])
    elif part is not None:
        valid &= part
    if begins is not None:
        valid &= ~begins
    return Texts(
        tokens=None if tokens is None else tokens.where(steps < lengths[:, None], 0),
        lengths=lengths,
        prompt_lengths=prompts,
        valid=valid,
        entropy=entropy.where(valid, 0.0),
        logprobs=logprobs.where(valid & ~logprobs.isnan(), 0.0),
        places=order,
    )


def _produced(after: Tensor) -> Tensor:
    """Move what stands after each position to the token that it produced; the first has none."""
    return torch.cat([after.new_full((len(after), 1), math.nan), after[:, :-1]], dim=1)


def _logits(output: object) -> Tensor | None:
    """Give a pass's logits, from a named output or a tuple."""
    if isinstance(output, tuple):
        return next((v for v in output if isinstance(v, Tensor) and v.dim() == 3), None)
    return getattr(output, "logits", None)


def _fused(output: object, about: dict) -> Piece:
    """Read what a fused head gave in place of logits: one number for each label."""
    scored, kept = getattr(output, "entropy", None), getattr(output, "label_mask", None)
    if scored is None or kept is None:
        raise ValueError(
            f"the model gave {type(output).__name__}, in which there are neither logits nor the "
            "entropies of a fused head: record a loop whose model gives its logits"
        )
    unknown = scored.new_full((len(scored), 1), math.nan, dtype=torch.float32)

    def known(values: Tensor) -> Tensor:
        values = values.detach().float().masked_fill(~kept, math.nan)
        return torch.cat([values, unknown], dim=1)

    about["part"] = torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1)
    return Piece(entropy=known(scored), logprobs=known(output.log_probs), **about)


def _is_plain(positions: object) -> bool:
    """Tell whether these are position ids of one axis a row, as text has them."""
    return isinstance(positions, Tensor) and positions.dim() == 2


def _joined_mask(pieces: Sequence[Piece]) -> Bool[Tensor, "batch whole"]:
    """Give which positions hold text: by the last mask, which covers all that passed."""
    batch, width = pieces[0].entropy.shape[0], sum(p.entropy.shape[1] for p in pieces)
    mask = pieces[-1].mask
    if mask is None or mask.shape[1] != width:
        return torch.ones(batch, width, dtype=torch.bool)
    return mask.cpu()


def _given(pieces: Sequence[Piece]) -> int:
    """Count the positions before the first that was generated."""
    widths = [piece.entropy.shape[1] for piece in pieces]
    ones = (i for i, width in enumerate(widths) if i and width == 1)
    return sum(widths[: next(ones, len(widths))])


def _ends(
    tokens: Tensor | None, prompts: Tensor, lengths: Tensor, stops: Collection[int]
) -> Tensor:
    """Give where each text ends: after its first stop token, at its last token without one."""
    if tokens is None or not stops:
        return lengths
    steps = torch.arange(tokens.shape[1])
    stopped = torch.isin(tokens, torch.tensor(sorted(stops))) & (steps >= prompts[:, None])
    first = torch.where(stopped, steps + 1, tokens.shape[1]).amin(dim=1)
    return torch.minimum(lengths, first)
