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

from entropy_probe.entropy import TILE, entropy_and_logprobs
from entropy_probe.models.engine import decoder_of


@dataclass(frozen=True)
class Piece:
    """One pass over a batch of texts, in the caller's own layout."""

    tokens: Int[Tensor, "batch seq"] | None
    """What entered; None where the model was given embeddings."""
    entropy: Float[Tensor, "batch seq"]
    """Of the distribution after each position, nats; NaN where it is not known."""
    logprobs: Float[Tensor, "batch seq"]
    """Of the token after each position; NaN where it is not known."""
    mask: Bool[Tensor, "batch whole"] | None = None
    """True on text, over all that passed so far; None without an attention mask."""
    begins: Bool[Tensor, "batch seq"] | None = None
    """Tokens that begin a text (position 0), where positions were given."""
    part: Bool[Tensor, "batch seq"] | None = None
    """Tokens that take part in the loss, where labels were given."""
    last: Float[Tensor, "batch vocab"] | None = None
    """Logits after the last position, unread, where another piece may bring what they produced."""
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
    plain = isinstance(positions, Tensor) and positions.dim() == 2
    about = {
        "tokens": None if tokens is None else tokens.clone(),
        "mask": mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None,
        "part": None if labels is None else labels != -100,
        "begins": (positions == 0).expand(shape) if plain else None,
        "states": states,
    }
    logits = _logits(output)
    if logits is None:
        return _fused(output, about)
    unknown = logits.new_full(shape, math.nan, dtype=torch.float32)
    keep = arguments.get("logits_to_keep")
    places = keep if isinstance(keep, Tensor) else torch.arange(shape[1])[-logits.shape[1] :]
    last = logits[:, -1].clone() if may_go_on and int(places[-1]) == shape[1] - 1 else None
    if shape[1] == 1 or len(places) == 1 and last is not None:
        return Piece(entropy=unknown, logprobs=unknown.clone(), last=last, **about)
    places = places.to(logits.device)
    ids = torch.zeros(shape, dtype=torch.long) if tokens is None else tokens
    following = ids.to(logits.device).roll(-1, dims=1)[:, places]
    found = entropy_and_logprobs(logits, following, temperature=temperature)
    entropy, logprobs = unknown, unknown.clone()
    entropy[:, places], logprobs[:, places] = found
    logprobs[:, -1] = math.nan  # that token is not here
    return Piece(entropy=entropy, logprobs=logprobs, last=last, **about)


class Passing:
    """A batch of texts that passes, whole or piece by piece."""

    def __init__(self, number: int, training: bool, piece: Piece, *, temperature: float) -> None:
        """Begin with the first piece.

        Args:
            number: which batch, counted over all that passed.
            training: whether the pass built a graph.
            piece: what the first pass gave.
            temperature: of softmax(logits / temperature).
        """
        self.number, self.training, self.temperature = number, training, temperature
        self.pieces = [piece]
        self.rows, self.width = piece.entropy.shape
        self.given: int | None = None  # positions of the prompt, once it goes on by single tokens
        self._unread = 0

    def follow(self, piece: Piece) -> None:
        """Add the next piece: its first token was drawn from the last logits."""
        width = piece.entropy.shape[1]
        if self.given is None and width == 1:
            self.given = self.width
        before, whole = self.pieces[-1].mask, self.width + width
        # Recurrent states are told of padding once, and later of what is about to run, or nothing.
        if before is not None and (piece.mask is None or piece.mask.shape[1] < whole):
            mask = before.new_ones(len(before), whole)
            mask[:, : before.shape[1]] = before
            if piece.mask is not None:
                mask[:, -width:] = piece.mask[:, -width:]
            piece = replace(piece, mask=mask)
        self.pieces[-1] = replace(self.pieces[-1], mask=None)  # the new one covers all
        self.pieces.append(piece)
        self.width += width
        self._unread += 0 if piece.last is None else piece.last.numel()
        if self._unread > TILE:
            self._read()

    def after(self) -> tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
        """Give entropies after each position, and log-probabilities of the tokens after it."""
        self._read()
        names = ("entropy", "logprobs")
        entropy, logprobs = (
            torch.cat([getattr(piece, name).cpu() for piece in self.pieces], dim=1)
            for name in names
        )
        return entropy, logprobs

    def states(self, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """Give the residual stream at every position that passed."""
        return torch.cat([piece.states[layer] for piece in self.pieces], dim=1)

    def texts(self, stops: Collection[int] = ()) -> Texts:
        """Give the texts, aligned, on the CPU.

        Padding is left out by the attention mask. What was generated is valid up to the first of
        ``stops``, and what stands after it is left out.
        """
        self._read()
        piece = self.pieces[0] if len(self.pieces) == 1 else _merged(self.pieces)
        mask = piece.mask
        if mask is None or mask.shape[1] != self.width:
            mask = torch.ones(self.rows, self.width, dtype=torch.bool)
        mask = mask.cpu()
        order = (~mask).int().argsort(dim=1, stable=True)
        lengths, steps = mask.sum(dim=1), torch.arange(self.width)

        def packed(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.cpu().gather(1, order)

        tokens, begins, part = (packed(v) for v in (piece.tokens, piece.begins, piece.part))
        entropy, logprobs = (_produced(packed(v)) for v in (piece.entropy, piece.logprobs))
        prompts = lengths.clamp(max=1)
        if self.given is not None:
            prompts = mask[:, : self.given].sum(dim=1)
            lengths = _ends(tokens, prompts, lengths, stops)
            part = steps >= prompts[:, None]
        inside = steps < lengths[:, None]
        valid = inside & ~entropy.isnan()
        valid = valid if part is None else valid & part
        valid = valid if begins is None else valid & ~begins
        return Texts(
            tokens=None if tokens is None else tokens.where(inside, 0),
            lengths=lengths,
            prompt_lengths=prompts,
            valid=valid,
            entropy=entropy.where(valid, 0.0),
            logprobs=logprobs.where(valid & ~logprobs.isnan(), 0.0),
            places=order,
        )

    def _read(self) -> None:
        """Read the logits of which it is known what they produced; the last are not yet."""
        *before, final = self.pieces
        self._unread = 0
        which = [i for i, piece in enumerate(before) if piece.last is not None]
        if not which or any(self.pieces[i + 1].tokens is None for i in which):
            return
        logits = torch.stack([before[i].last for i in which], dim=1)
        drawn = torch.cat([self.pieces[i + 1].tokens[:, :1] for i in which], dim=1)
        found = entropy_and_logprobs(logits, drawn.to(logits.device), temperature=self.temperature)
        for i, entropy, logprobs in zip(which, *(f.split(1, dim=1) for f in found), strict=True):
            piece = before[i]
            before[i] = replace(
                piece, last=None,
                entropy=torch.cat([piece.entropy[:, :-1], entropy], dim=1),
                logprobs=torch.cat([piece.logprobs[:, :-1], logprobs], dim=1),
            )  # fmt: skip
        self.pieces = [_merged(before), final]


def _merged(pieces: Sequence[Piece]) -> Piece:
    """Put pieces that followed each other into one; only the last one's mask covers them."""

    def joined(name: str) -> Tensor | None:
        values = [getattr(piece, name) for piece in pieces]
        return None if any(v is None for v in values) else torch.cat(values, dim=1)

    names = ("tokens", "entropy", "logprobs", "begins", "part")
    layers = pieces[0].states
    return Piece(
        **{name: joined(name) for name in names},
        mask=pieces[-1].mask,
        states={k: torch.cat([piece.states[k] for piece in pieces], dim=1) for k in layers},
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
