"""Generate, capturing entropy, alternatives and residuals in the same pass."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .compiled_step import check_compilable, unmarked, words_on_compiling
from .decoding_loop import Loop, Traces
from .hooks import evaluating, find_blocks, read_residuals, resolve_layers
from .keeping import POSITIONS, StateKeeper
from .models.engine import Engine, engine_of
from .models.fingerprint import library_versions, model_name, model_revision, weights_fingerprint
from .models.prompts import encode_prompts, stop_ids
from .models.tiled_head import tiled_head
from .models.unembedding import unembedding
from .models.vocabulary import special_ids, token_bytes
from .rollout import Alternatives, Provenance, Rollouts


@dataclass(frozen=True)
class Sampling:
    """How rows are drawn and what is captured, checked."""

    n: int
    """Rows a prompt."""
    max_new_tokens: int
    """Tokens after which a row ends, whether or not the model stopped."""
    temperature: float
    """Sampling temperature, 0 is greedy."""
    top_p: float
    """Nucleus mass kept when drawing."""
    top_k: int
    """Candidates kept when drawing, 0 for all."""
    alternatives: int
    """Most probable tokens recorded at each position."""
    seed: int
    """Seed of the noise."""
    batch_size: int
    """Rows decoded together at most."""
    residual_positions: str
    """"forks", "all" or "none"."""
    fraction: float
    """Share of the tokens that are forks."""
    compile: bool = False
    """Whether decoding steps are compiled."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the argument."""
        _at_least("n", self.n, 1)
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("top_k", self.top_k, 0)
        _at_least("alternatives", self.alternatives, 0)
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile must be True or False, got {self.compile!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"fraction must be above 0 and at most 1 (0.2 keeps 20%), got {self.fraction}"
            )
        if self.residual_positions not in POSITIONS:
            raise ValueError(
                f"residual_positions must be one of {POSITIONS}, got {self.residual_positions!r}"
            )

    @property
    def entropy_temperature(self) -> float:
        """Temperature of the entropy's basis."""
        return self.temperature or 1.0


def sample(
    model,
    tokenizer,
    prompts: Sequence[object],
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    residual_layers: Sequence[int] = (),
    residual_positions: str = "forks",
    alternatives: int = 5,
    seed: int = 0,
    batch_size: int = 64,
    stop: Sequence[str | int] = (),
    fraction: float = 0.2,
    compile: bool = False,
    offset: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Rollouts:
    """Sample n completions a prompt, with what the model was unsure of at each token.

    The statistics are of softmax(raw logits / temperature) over the full vocabulary, before
    top-k and top-p. At temperature 0 decoding is greedy and they are those at temperature 1.
    Tokens depend on (seed, row, position), not on the batch: with another ``batch_size`` they
    are equal, or first differ at a near-tie, which the provenance counts.

    Args:
        model: any Hugging Face decoder, TransformerLens's bridge or nnsight's model around one
            (their hooks and edits act, in every pass), or what `sae_steering.steer` gives; it is
            left as it was.
        tokenizer: its tokenizer.
        prompts: texts, message lists (rendered by the chat template) or lists of token ids.
        n: completions a prompt; rows come prompt by prompt.
        max_new_tokens: length at which a row is cut; a row also ends where the context does.
        temperature: 0 is greedy.
        top_p: nucleus sampling, after top_k.
        top_k: 0 keeps all.
        residual_layers: blocks whose output stream to keep, negatives from the end.
        residual_positions: "forks" keeps the batch's forking tokens and as many random other
            ones, marked in ``controls``; "all" keeps all; "none" keeps none.
        alternatives: most probable tokens to record at each position.
        seed: seed of the sampling noise.
        batch_size: rows decoded together; finished rows leave.
        stop: texts and token ids that end a row besides the model's end-of-text tokens.
        fraction: share of tokens that are forks, for ``residual_positions="forks"``.
        compile: run decoding steps through `torch.compile`, on CUDA as CUDA graphs: worth its
            minute of compiling on a GPU and many tokens. Models with hooks are refused.
        offset: number of the first prompt in a longer run; groups and noise count from it.
        progress: called with the number of rows finished so far.

    Returns:
        The record; row t of everything belongs to the distribution that produced token t.

    Raises:
        ValueError: an argument that makes no sense, a prompt longer than the context, or logits
            that are NaN or infinite.

    >>> from entropy_probe import load, sample
    >>> model, tokenizer = load("organism:amenable")
    >>> rollouts = sample(model, tokenizer, ["3 + 4"], n=2, max_new_tokens=4)
    >>> len(rollouts)
    2
    """
    settings = Sampling(
        n, max_new_tokens, temperature, top_p, top_k, alternatives, seed, batch_size,
        residual_positions, fraction, compile,
    )  # fmt: skip
    engine = engine_of(model)
    model = engine.model
    if compile:
        check_compilable(engine)
    encoded = encode_prompts(tokenizer, prompts)
    limits = _limits(model, encoded, max_new_tokens)
    ends, texts = stop_ids(model, tokenizer, stop)
    layers = resolve_layers(residual_layers, len(find_blocks(model))) if residual_layers else []
    layers = [] if residual_positions == "none" else layers
    at_most_vocabulary(model, alternatives)
    traces = Traces.empty(len(encoded) * n, max(limits), alternatives, model.device)
    keeper = StateKeeper(
        layers, residual_positions, fraction=fraction, most_tokens=sum(limits) * n, seed=seed,
        d_model=model.config.get_text_config().hidden_size,
    )  # fmt: skip
    reading = read_residuals(model, layers, last=True) if layers else nullcontext()
    with torch.no_grad(), evaluating(model), engine.running(), reading as reader:
        loop = Loop(
            engine, settings, traces, keeper, reader,
            ends=ends, stop_texts=texts, pieces=lambda ids: token_bytes(tokenizer, ids),
            noise_offset=offset * n,
        )  # fmt: skip
        running = unmarked(model) if compile else tiled_head(model)
        with running, engine.sampling(len(encoded) * n, max(limits)):
            loop.run(encoded, limits, progress)
    return _record(engine, tokenizer, encoded, settings, traces, keeper, offset)


def _limits(model, encoded: list[list[int]], max_new_tokens: int) -> list[int]:
    """Give how many tokens each prompt may generate before the context is full."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return [max_new_tokens] * len(encoded)
    for i, ids in enumerate(encoded):
        if len(ids) >= context:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens, but the model's context is {context}: "
                "shorten it, or use a model with a longer context"
            )
    return [min(max_new_tokens, context - len(ids)) for ids in encoded]


def _record(
    engine: Engine,
    tokenizer,
    encoded: list[list[int]],
    settings: Sampling,
    traces: Traces,
    keeper: StateKeeper,
    offset: int,
) -> Rollouts:
    """Put prompts and what was generated together, row by row."""
    n = settings.n
    starts = torch.tensor([len(ids) for ids in encoded]).repeat_interleave(n)
    made = traces.valid.cpu()
    rows, steps = made.nonzero(as_tuple=True)
    places = starts[rows] + steps
    width = int((starts + made.sum(dim=1)).max())
    tokens = torch.zeros(len(starts), width, dtype=torch.long)
    for i, ids in enumerate(encoded):
        tokens[i * n : (i + 1) * n, : len(ids)] = torch.tensor(ids)

    def placed(value: Tensor) -> Tensor:
        values = value.cpu()[rows, steps]
        out = values.new_zeros(len(starts), width, *values.shape[1:])
        out[rows, places] = values
        return out

    valid, entropy = placed(traces.valid), placed(traces.entropy)
    tokens = torch.where(valid, placed(traces.tokens), tokens)
    captured, controls, residuals = torch.zeros_like(valid), torch.zeros_like(valid), {}
    if keeper.layers:
        captured, controls, residuals = keeper.finish(entropy, valid)
    alternatives = Alternatives(placed(traces.alternative_ids), placed(traces.alternative_logprobs))
    seen = set(tokens[:, :].unique().tolist()) | set(alternatives.ids.unique().tolist())
    return Rollouts(
        tokens=tokens,
        valid=valid,
        prompt_lengths=starts,
        groups=(torch.arange(len(encoded)) + offset).repeat_interleave(n),
        entropy=entropy,
        logprobs=placed(traces.logprobs),
        ranks=placed(traces.ranks),
        alternatives=alternatives,
        provenance=replace(
            base_provenance(engine, keeper if keeper.layers else None),
            source="sample",
            seed=settings.seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            entropy_basis=_basis(settings.temperature),
            entropy_temperature=settings.entropy_temperature,
            near_ties=traces.near_ties,
            computed_by=words_on_compiling() if settings.compile else None,
        ),
        captured=captured,
        controls=controls,
        residuals=residuals,
        pieces=token_bytes(tokenizer, seen),
        special_ids=frozenset(special_ids(tokenizer) & seen),
    )


def base_provenance(engine: Engine, keeper: StateKeeper | None) -> Provenance:
    """Say what computed a record and which residuals it keeps."""
    model, others = engine.model, [engine.library] if engine.library else []
    capture = "none"
    if keeper is not None and keeper.positions == "all":
        capture = "all valid positions"
    elif keeper is not None:
        capture = (
            f"top {keeper.fraction:.6g} of the batch's valid tokens by entropy (exact), "
            "and as many random others"
        )
    return Provenance(
        model=model_name(model),
        source="",
        revision=model_revision(model),
        weights=weights_fingerprint(model),
        dtype=str(model.dtype).removeprefix("torch."),
        capture=capture,
        edit=engine.edits,
        libraries=library_versions(*others),
    )


def _basis(temperature: float) -> str:
    if temperature == 0:
        return "logits / 1 (decoding was greedy), full vocabulary"
    return "logits / temperature, full vocabulary, before top-k and top-p"


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")


def at_most_vocabulary(model, alternatives: int) -> None:
    """Raise where more alternatives are asked for than there are tokens."""
    vocab = unembedding(model).weight.shape[0]
    if alternatives > vocab:
        raise ValueError(
            f"alternatives must be at most {vocab} (the vocabulary), got {alternatives}"
        )
