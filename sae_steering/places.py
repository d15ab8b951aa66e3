"""What stands at each position of a pass through a model: prompt or generated, text or padding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from entropy_probe.kvcache import columns_held


@dataclass(frozen=True)
class Places:
    """The positions of one pass: a prefill, a step of decoding, or whole rows at once.

    The state at a position belongs to the token that stands there, and produces the next one: the
    last position of a prompt is where the first generated token is decided.
    """

    tokens: Int[Tensor, "batch seq"] | None
    """Token ids; None where the model was given embeddings."""
    positions: Int[Tensor, "batch seq"]
    """Number of each token in its row, 0 for the first; not meaningful on padding."""
    real: Bool[Tensor, "batch seq"]
    """False on padding, where the model was told of it."""
    cached: int | None
    """Columns that had run before this pass; None where nothing is kept, or states do not say."""
    rows: Int[Tensor, " batch"] | None = None
    """Rows of the record, where whole rows of a record are run."""
    prompt_lengths: Int[Tensor, " batch"] | None = None
    """Tokens of the prompt in each row, where whole rows of a record are run."""

    @property
    def prompt(self) -> Bool[Tensor, "batch seq"]:
        """True where a token of the prompt stands.

        The first pass on an empty cache runs the prompt, passes of one token on a filled cache
        run what was generated, and whole rows come with the lengths of their prompts.

        Raises:
            ValueError: none of these: what is prompt cannot be known.
        """
        if self.prompt_lengths is not None:
            return self.real & (self.positions < self.prompt_lengths[:, None])
        if self.cached is None:
            raise ValueError(
                "a pass without a cache, or on one of recurrent states, does not say which of its "
                "tokens are the prompt: to score whole rows, pass what steer gives (`with "
                "steer(...) as steered: score(steered, ...)`); to generate, leave use_cache on"
            )
        if self.cached and self.positions.shape[1] > 1:
            raise ValueError(
                f"a pass of {self.positions.shape[1]} tokens on a cache of {self.cached}: the "
                "prompt in chunks, or guesses of an assistant? which tokens are the prompt is not "
                "known; use where='all', or generate without prefill chunks and assistants"
            )
        return self.real & (not self.cached)

    @property
    def generated(self) -> Bool[Tensor, "batch seq"]:
        """True where a generated token stands."""
        return self.real & ~self.prompt


def at_opening(places: Places) -> Bool[Tensor, "batch seq"]:
    """Give True at the last position of each prompt, which decides the first generated token."""
    prompt = places.prompt
    if places.prompt_lengths is not None:
        return prompt & (places.positions == places.prompt_lengths[:, None] - 1)
    return prompt & (places.positions == torch.where(prompt, places.positions, -1).amax(1)[:, None])


def all_places(places: Places) -> Bool[Tensor, "batch seq"]:
    """Give True everywhere but on padding."""
    return places.real


def prompt_places(places: Places) -> Bool[Tensor, "batch seq"]:
    """Give True where a token of the prompt stands."""
    return places.prompt


def generated_places(places: Places) -> Bool[Tensor, "batch seq"]:
    """Give True where a generated token stands."""
    return places.generated


def replaying(
    edited: Bool[Tensor, "rows seq"],
) -> Callable[[Places], Bool[Tensor, "batch seq"]]:
    """Give the choice of places that edits what an earlier sampling edited, to score it again.

    Args:
        edited: aligned as the record: True at tokens whose distribution was edited, so that the
            state before them is.
    """
    if edited.dtype != torch.bool:
        raise ValueError(f"edited must be a bool mask, got {edited.dtype}")

    def chosen(places: Places) -> Bool[Tensor, "batch seq"]:
        if places.rows is None:
            raise ValueError(
                "a replay edits given rows of a record: pass what steer gives to score, "
                "`with steer(...) as steered: score(steered, ...)`"
            )
        width = places.positions.shape[1]
        wanted = torch.zeros(len(edited), width + 1, dtype=torch.bool)
        wanted[:, : edited.shape[1]] = edited[:, : width + 1]
        return wanted[places.rows.cpu(), 1:].to(places.real.device) & places.real

    return chosen


def columns_before(inputs: Mapping[str, object]) -> int | None:
    """Give how many columns a pass finds in its cache, from the arguments of a decoder's body.

    None without a cache, and where it holds recurrent states, which do not say how many they saw.
    It has to be asked before the pass, whose first block fills the cache.
    """
    held = columns_held(inputs)
    if held is None:
        return 0 if inputs.get("use_cache") is True else None
    return None if held < 0 else held


def places_of(inputs: Mapping[str, object], stream: Tensor, cached: int | None) -> Places:
    """Read the places of a pass from the arguments of a decoder's body.

    Args:
        inputs: the arguments, by name.
        stream: the residual stream ``[batch seq d_model]`` of the pass.
        cached: what `columns_before` gave.
    """
    batch, seq = stream.shape[:2]
    tokens, mask, placed = (
        inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids")
    )
    positions = (torch.arange(seq, device=stream.device) + (cached or 0)).expand(batch, seq)
    real = torch.ones(batch, seq, dtype=torch.bool, device=stream.device)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= seq:
        mask = mask.to(stream.device).expand(batch, mask.shape[1]).long()
        positions, real = mask.cumsum(dim=1)[:, -seq:] - 1, mask[:, -seq:] > 0
    elif isinstance(placed, Tensor) and placed.dim() == 2 and placed.shape[1] == seq:
        positions = placed.to(stream.device).expand(batch, seq)
    return Places(tokens if isinstance(tokens, Tensor) else None, positions, real, cached)
