"""The update's forward and backward passes: the unembedding at the kept rows alone.

The gradients are those of `entropy_probe.loss.masked_policy_loss` on all tokens. What differs is
what is computed: logits of the tokens that the loss reads, a tile at a time; blocks over tokens
without padding, each prompt once, rows cut after the last token that is read; and nothing at all
for rows without an advantage.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..entropy import token_stats
from ..hooks import evaluating
from ..loss import loss_counters
from .batch import UpdateBatch
from .body import Layout
from .fused_head import fused_loss, token_logprobs
from .objective import Objective
from .packing import run_lengths
from .running import Runner, running

__all__ = ["StepOutput", "UpdateBatch", "current_statistics", "policy_step"]

Choice = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes rows, and their entropies and log-probabilities [rows seq]; gives the tokens kept."""


@dataclass(frozen=True)
class StepOutput:
    """What an update's passes computed, besides the gradients."""

    loss: float
    """Sum over the batch's tokens of term / denominator."""
    logprobs: Float[Tensor, "batch seq"]
    """Of the policy before the update, nats; NaN at tokens whose logits were not computed."""
    kept: Bool[Tensor, "batch seq"]
    """The tokens that trained."""
    counters: dict[str, Tensor]
    """Sums to log, see `entropy_probe.loss.loss_counters`; over kept tokens that were computed."""
    passes: int
    """Micro-batches."""
    tokens_run: int
    """Tokens that went through the blocks, padding included."""
    logits_rows: int
    """Tokens whose logits were computed."""
    rows_skipped: int
    """Rows that had nothing to give."""


def policy_step(
    model: nn.Module,
    batch: UpdateBatch,
    *,
    kept: Bool[Tensor, "batch seq"] | Choice,
    denominator: float | Tensor,
    kl_denominator: float | Tensor | None = None,
    temperature: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    ratio: str = "token",
    beta: float = 0.0,
    mask_kl: bool = True,
    sparse: bool = True,
    packed: bool | None = None,
    share: bool = True,
    micro_rows: int | None = None,
    micro_tokens: int | None = 16384,
    micro_batches: Int[Tensor, " batch"] | None = None,
    passes: int = 1,
    precision: str = "float32",
) -> StepOutput:
    """Add the gradients of the masked policy loss of some rows to ``.grad``.

    The model is otherwise left as it was. It may be wrapped: every pass goes through the
    wrapper's own forward, and gradients are reduced as the wrapper does it, once a call under
    DistributedDataParallel. A wrapper that averages over ranks needs a denominator that is
    divided by their number.

    Args:
        model: a Hugging Face decoder, or one in DistributedDataParallel or under `fully_shard`.
        batch: the rows; every row of the optimizer step that this process has.
        kept: the tokens that train; or, for a mask that depends on a micro-batch's current
            entropies, a function of its rows, entropies and log-probabilities.
        denominator: what the terms are divided by: the step's count over all ranks.
        kl_denominator: the same for the KL; needed where ``mask_kl`` is False.
        temperature: log-probabilities are those of softmax(logits / temperature).
        clip_low: how far below 1 the ratio counts.
        clip_high: how far above 1 the ratio counts.
        ratio: "token", or "sequence", which keeps all tokens and needs ``sparse=False``.
        beta: weight of the KL to the batch's reference.
        mask_kl: whether the KL, too, is taken at kept tokens only; if not, the logits of all
            valid tokens are computed.
        sparse: False computes the logits of every valid token and skips no row: the same
            gradients, and the log-probability of every token.
        packed: whether rows are packed without padding; None where the model allows it.
        share: whether a packed prompt is computed once for its rows.
        micro_rows: rows a pass at most.
        micro_tokens: tokens a pass at most, as packed (padded, if not packed).
        micro_batches: each row's micro-batch, instead of the two above.
        passes: passes at least; under `fully_shard` all ranks must make equally many.
        precision: "float32" leaves the model's own dtypes; "bfloat16" runs the blocks under
            autocast, whose gradients differ.

    Raises:
        ValueError: masks, options or numbers that the loss refuses, a model without a linear
            output layer, or rows longer than its context.
    """
    objective = Objective(
        batch, denominator, kl_denominator, clip_low, clip_high, ratio, beta, mask_kl
    )
    known = kept if isinstance(kept, Tensor) else torch.zeros_like(batch.valid)
    objective.check(known, torch.arange(len(batch)))
    if sparse and ratio == "sequence":
        raise ValueError(
            "ratio='sequence' needs the current log-probability of every token of a row before "
            "any gradient: pass sparse=False"
        )
    whole = not sparse or not isinstance(kept, Tensor)
    read = batch.valid if whole else objective.read(kept, torch.arange(len(batch)))
    lengths = run_lengths(read)
    record = _Record(batch)
    with running(model, precision=precision, packed=packed, share=share) as run:
        _check_context(run.inner, lengths)
        layouts = run.body.layouts(
            batch, lengths, most_rows=micro_rows, most_tokens=micro_tokens, least=max(passes, 1),
            numbers=micro_batches,
        )  # fmt: skip
        for i, layout in enumerate(layouts):
            part = _Part(run, objective, layout, read[layout.rows], temperature)
            with run.last(i == len(layouts) - 1):
                loss = part.loss(kept, sparse)
                loss.backward()
            record.add(part, loss)
    mask = kept if isinstance(kept, Tensor) else record.kept
    return record.output(len(layouts), int((lengths > 0).sum()), mask, objective)


@torch.no_grad()
def current_statistics(
    model: nn.Module,
    batch: UpdateBatch,
    *,
    temperature: float = 1.0,
    packed: bool | None = None,
    share: bool = True,
    micro_rows: int | None = None,
    micro_tokens: int | None = 16384,
    passes: int = 1,
    precision: str = "float32",
) -> tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Give (entropies, log-probabilities) of the policy as it is, at the valid tokens.

    One pass without gradients over micro-batches as `policy_step` makes them, dropout off; zeros
    where a token is not valid. The options are those of `policy_step`.
    """
    entropy, logprobs = torch.zeros(2, *batch.tokens.shape)
    lengths, objective = run_lengths(batch.valid), Objective(batch, 1.0)
    with running(model, precision=precision, packed=packed, share=share) as run:
        _check_context(run.inner, lengths)
        layouts = run.body.layouts(
            batch, lengths, most_rows=micro_rows, most_tokens=micro_tokens, least=max(passes, 1)
        )
        with evaluating(run.inner):
            for layout in layouts:
                part = _Part(run, objective, layout, batch.valid[layout.rows], temperature)
                entropy[part.where], logprobs[part.where] = part.statistics().float().cpu()
    return entropy, logprobs


class _Part:
    """One micro-batch: the tokens that are read, and what is computed for them."""

    def __init__(
        self, run: Runner, objective: Objective, layout: Layout, read: Tensor, temperature: float
    ) -> None:
        """Find where the states lie that predicted the tokens read."""
        self.run, self.objective, self.layout, self.rows = run, objective, layout, layout.rows
        self.at = read.nonzero(as_tuple=True)
        self.where = (self.rows[self.at[0]], self.at[1])
        # The shift: what position t - 1 computed is the distribution that produced token t.
        self.places = layout.places(self.at[0], self.at[1] - 1)
        self.readout = run.readout(objective.batch.tokens[self.where], temperature)
        self.kept = torch.zeros_like(read)
        self.logprobs = torch.zeros(0)

    def loss(self, kept: Tensor | Choice, sparse: bool) -> Tensor:
        """Give the micro-batch's loss, with its graph."""
        if isinstance(kept, Tensor):
            self.kept = kept[self.rows]
            return self.run(self.layout, self.places, self._sparse if sparse else self._dense)
        return self.run(self.layout, self.places, lambda *head: self._choose(kept, sparse, *head))

    def statistics(self) -> Tensor:
        """Give entropies and log-probabilities of the tokens read, [2 some]."""
        return self.run(self.layout, self.places, self._statistics)

    def _sparse(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        terms = self.objective.terms(self.kept, self.rows, self.at, states.device)
        loss, self.logprobs = fused_loss(
            states, weight, bias, self.readout, terms, sums=self.run.sums
        )
        return loss

    def _dense(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logprobs = token_logprobs(states, weight, bias, self.readout)
        self.logprobs = logprobs.detach()
        at = tuple(x.to(states.device) for x in self.at)
        matrix = logprobs.new_full(self.kept.shape, torch.nan).index_put(at, logprobs)
        return self.objective.over(matrix, self.rows, self.kept)

    def _statistics(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = token_stats(
            states, weight, self.readout.tokens, temperature=self.readout.temperature,
            alternatives=0, bias=bias, softcap=self.readout.softcap, scale=self.readout.scale,
        )  # fmt: skip
        return torch.stack([found.entropy, found.logprobs])

    def _choose(
        self, choose: Choice, sparse: bool, states: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Let a function keep tokens by their current entropy, then go on with those."""
        found = torch.zeros(2, *self.kept.shape)
        found[:, *self.at] = self._statistics(states.detach(), weight, bias).float().cpu()
        self.kept = choose(self.rows, *found)
        self.objective.check(self.kept, self.rows)
        if not sparse:
            return self._dense(states, weight, bias)
        read = self.objective.read(self.kept, self.rows)[self.at]
        self.at = tuple(x[read] for x in self.at)
        self.where = tuple(x[read] for x in self.where)
        read = read.to(states.device)
        self.readout = replace(self.readout, tokens=self.readout.tokens[read])
        return self._sparse(states[read], weight, bias)


class _Record:
    """What the passes of a step found, row by row."""

    def __init__(self, batch: UpdateBatch) -> None:
        """Start with nothing."""
        self.logprobs = torch.full(batch.tokens.shape, torch.nan)
        self.kept = torch.zeros_like(batch.valid)
        self.loss, self.tokens, self.logits = 0.0, 0, 0

    def add(self, part: _Part, loss: Tensor) -> None:
        """Take what a pass found."""
        self.loss += loss.item()
        self.tokens += part.layout.ids.numel()
        self.logits += len(part.places)
        self.logprobs[part.where] = part.logprobs.float().cpu()
        self.kept[part.rows] = part.kept

    def output(self, passes: int, rows: int, kept: Tensor, objective: Objective) -> StepOutput:
        """Put it together."""
        batch = objective.batch
        counters = loss_counters(
            self.logprobs, batch.old_logprobs, batch.advantages, batch.valid,
            kept & ~self.logprobs.isnan(), clip_low=objective.clip_low,
            clip_high=objective.clip_high, reference_logprobs=batch.reference_logprobs,
        )  # fmt: skip
        return StepOutput(
            self.loss, self.logprobs, kept, counters, passes, self.tokens, self.logits,
            len(batch) - rows,
        )  # fmt: skip


def _check_context(model: nn.Module, lengths: Tensor) -> None:
    """Refuse rows longer than the model's context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = int(lengths.max()) if len(lengths) else 0
    if context is not None and longest > context:
        raise ValueError(f"a row has {longest} tokens, but the model's context is {context}")
