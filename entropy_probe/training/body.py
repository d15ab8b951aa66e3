"""A decoder's blocks over some rows of a batch: packed where the model allows it, else padded."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from entropy_probe.models.engine import body_of

from .attention import PackedAttention, packed_attention, why_not_packed
from .batch import UpdateBatch
from .packing import Packed, number_prompts, pack, split_rows


@dataclass(frozen=True)
class Padded:
    """One micro-batch with padding on the right, which no token before it sees."""

    rows: Int[Tensor, " rows"]
    """Which rows of the batch these are."""
    ids: Int[Tensor, "rows width"]
    """Tokens, 0 behind a row's end."""

    def places(self, row: Int[Tensor, " some"], position: Int[Tensor, " some"]) -> Tensor:
        """Give where tokens of rows, numbered within the micro-batch, lie."""
        return row * self.ids.shape[1] + position

    def to(self, device: torch.device | str) -> "Padded":
        """Give the same on a device."""
        return Padded(**{name: value.to(device) for name, value in vars(self).items()})


Layout = Packed | Padded
"""Where the tokens of a micro-batch lie in the states that its pass gives."""


@dataclass(frozen=True)
class Body:
    """How a decoder is run over micro-batches."""

    decoder: nn.Module
    """Embedding, blocks and final norm."""
    packed: bool
    """Whether rows are packed."""
    share: bool
    """Whether a prompt is computed once for its rows; only packed."""
    eager: bool
    """Whether the model attends by its own plain function."""

    def layouts(
        self,
        batch: UpdateBatch,
        lengths: Int[Tensor, " batch"],
        *,
        most_rows: int | None,
        most_tokens: int | None,
        numbers: Int[Tensor, " batch"] | None = None,
        least: int = 1,
    ) -> list[Layout]:
        """Split a batch into micro-batches; see `entropy_probe.training.packing.split_rows`.

        ``numbers`` gives each row's micro-batch instead; rows that run nothing are left out.
        Idle passes fill up to ``least``.
        """
        prompts = number_prompts(batch.tokens, batch.prompt_lengths)
        if numbers is None:
            parts = split_rows(
                lengths, prompts, batch.prompt_lengths,
                most_rows=most_rows, most_tokens=most_tokens, share=self.share,
            )  # fmt: skip
        else:
            runs = (lengths > 0).nonzero()[:, 0]
            parts = [runs[numbers[runs] == n] for n in numbers[runs].unique()]
        found = [self.layout(batch, rows, lengths, prompts) for rows in parts]
        return found + [self.idle() for _ in range(least - len(found))]

    def layout(self, batch: UpdateBatch, rows: Tensor, lengths: Tensor, prompts: Tensor) -> Layout:
        """Lay out some rows."""
        if self.packed:
            heads = batch.prompt_lengths
            return pack(batch.tokens, rows, lengths, prompts, heads, share=self.share)
        steps = torch.arange(int(lengths[rows].max()))
        runs = steps < lengths[rows][:, None]
        return Padded(rows, batch.tokens[rows][:, : len(steps)].where(runs, 0))

    def idle(self) -> Layout:
        """Lay out a pass that belongs to no row, for a process that has none left."""
        none, one = torch.tensor([], dtype=torch.long), torch.ones(1, dtype=torch.long)
        zero = torch.zeros(1, 1, dtype=torch.long)
        if not self.packed:
            return Padded(none, zero)
        packed = pack(zero, zero[0], one, zero[0], zero[0])
        return replace(packed, rows=none, starts=packed.starts[:, :0], prefixes=none)

    def states(self, layout: Layout) -> Float[Tensor, "places d_model"]:
        """Run a micro-batch: the states after the final norm, one behind the other."""
        inputs = {"input_ids": layout.ids, "use_cache": False}
        if isinstance(layout, Packed):
            packing = PackedAttention(layout, eager=self.eager)
            inputs |= {"position_ids": layout.positions, "packing": packing}
        states = self.decoder(**inputs).last_hidden_state
        if isinstance(layout, Packed):
            packing.check(self.decoder)
        return states.flatten(0, 1)


@contextmanager
def running_body(model: nn.Module, *, packed: bool | None, share: bool) -> Iterator[Body]:
    """Prepare a Hugging Face decoder for micro-batches, backward passes included.

    Args:
        model: the decoder with its unembedding; left as it was.
        packed: whether to pack rows without padding; None where the model allows it.
        share: whether a prompt is computed once for its rows.

    Raises:
        ValueError: packing asked for where the model does not allow it.
    """
    reason = why_not_packed(model)
    if packed and reason:
        raise ValueError(f"rows of this model cannot be packed: {reason}; pass packed=False")
    packed = reason is None if packed is None else packed
    with packed_attention(model) if packed else nullcontext(False) as eager:
        yield Body(body_of(model), packed, packed and share, eager)
