"""The one record that everything speaks: tokens and what the model was unsure of, in nats.

Alignment, written once: row ``t`` of every per-token field describes the distribution that
*produced* token ``t``. Position 0 of a row has no such distribution and is never valid. The
residual of row ``t`` is the stream, after block ``layer``, of the position that predicted token
``t`` (the position before it).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .provenance import Provenance

__all__ = ["Alternatives", "Provenance", "Rollouts"]


@dataclass(frozen=True)
class Alternatives:
    """The most probable next tokens at each position, best first."""

    ids: Int[Tensor, "batch seq k"]
    """Token ids, most probable first; 0 outside ``valid``, -1 where fewer are known."""
    logprobs: Float[Tensor, "batch seq k"]
    """Their log-probabilities in nats, on the entropy's basis; 0 outside ``valid``, -inf where
    fewer are known."""


@dataclass(frozen=True)
class Rollouts:
    """Sampled or scored rows, prompt then completion, right-padded; zero outside ``valid``."""

    tokens: Int[Tensor, "batch seq"]
    """Token ids, prompt first."""
    valid: Bool[Tensor, "batch seq"]
    """True on generated (or scored) tokens, the stop token included, nothing after it."""
    prompt_lengths: Int[Tensor, " batch"]
    """Tokens of the prompt in each row."""
    groups: Int[Tensor, " batch"]
    """Which prompt a row belongs to."""
    entropy: Float[Tensor, "batch seq"]
    """Entropy in nats of the distribution that produced each token."""
    logprobs: Float[Tensor, "batch seq"]
    """Log-probability in nats of the token itself."""
    ranks: Int[Tensor, "batch seq"]
    """Tokens that were more probable than this one: 0 for the most probable, -1 if unknown."""
    alternatives: Alternatives
    """The most probable tokens at each position."""
    provenance: Provenance
    """Where all of this comes from."""
    captured: Bool[Tensor, "batch seq"]
    """Positions whose residual is kept."""
    controls: Bool[Tensor, "batch seq"]
    """The captured positions that are random non-forks, kept for comparison."""
    residuals: Mapping[int, Float[Tensor, "captured d_model"]] = field(default_factory=dict)
    """Layer -> states, packed in row-major order of ``captured``: an absent state is no zero."""
    rewards: Float[Tensor, " batch"] | None = None
    """Reward of each row, where there is one."""
    pieces: Mapping[int, bytes] = field(default_factory=dict)
    """Bytes of every token id that occurs here, alternatives included."""
    special_ids: frozenset[int] = frozenset()
    """Ids among them that are control tokens, not text."""

    def __post_init__(self) -> None:
        """Refuse what would silently misalign: shapes that differ, masks that are not bool."""
        _check_shapes(self)
        for name in ("valid", "captured", "controls"):
            if getattr(self, name).dtype != torch.bool:
                raise ValueError(f"{name} must be bool, got {getattr(self, name).dtype}")
        if self.valid.shape[1] and bool(self.valid[:, 0].any()):
            raise ValueError("position 0 is valid in some row, but nothing produced it")
        for name, whole in (("captured", "valid"), ("controls", "captured")):
            if bool((getattr(self, name) & ~getattr(self, whole)).any()):
                raise ValueError(f"{name} holds positions that are not {whole}")

    def __len__(self) -> int:
        """Count the rows."""
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens in each row, prompt included, padding not."""
        steps = torch.arange(1, self.tokens.shape[1] + 1, device=self.tokens.device)
        ends = torch.where(self.valid, steps, 0)
        last = ends.amax(dim=1) if ends.shape[1] else ends.sum(dim=1)
        return torch.maximum(last, self.prompt_lengths)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> "Rollouts":
        """Select rows, residuals with them: an int, a slice, indices or a bool mask."""
        every = torch.arange(len(self))
        index = every[rows].reshape(-1)  # an int gives a record of one row
        packed_row = self.captured.nonzero()[:, 0]
        starts = torch.searchsorted(packed_row, every)
        ends = torch.searchsorted(packed_row, every, right=True)
        spans = [torch.arange(int(starts[i]), int(ends[i])) for i in index.tolist()]
        keep = torch.cat(spans) if spans else torch.empty(0, dtype=torch.long)
        picked = {name: getattr(self, name)[index] for name in _PER_ROW}
        return dataclasses.replace(
            self,
            **picked,
            alternatives=Alternatives(
                self.alternatives.ids[index], self.alternatives.logprobs[index]
            ),
            residuals={layer: states[keep] for layer, states in self.residuals.items()},
            rewards=None if self.rewards is None else self.rewards[index],
        )

    def __iter__(self) -> Iterable["Rollouts"]:
        """Go through the rows one by one, each as a record of its own."""
        return (self[i] for i in range(len(self)))

    def text(self, row: int, *, prompt: bool = True) -> str:
        """Give a row's text; bytes that are no UTF-8 become U+FFFD."""
        start = 0 if prompt else int(self.prompt_lengths[row])
        ids = self.tokens[row, start : int(self.lengths[row])].tolist()
        return b"".join(self.pieces.get(i, b"") for i in ids).decode("utf-8", "replace")

    def completion(self, row: int, *, special: bool = False) -> str:
        """Give what the model wrote in a row, control tokens left out unless asked for."""
        span = slice(int(self.prompt_lengths[row]), int(self.lengths[row]))
        ids = [i for i in self.tokens[row, span].tolist() if special or i not in self.special_ids]
        return b"".join(self.pieces.get(i, b"") for i in ids).decode("utf-8", "replace")

    def with_rewards(self, rewards: Sequence[float] | Tensor) -> "Rollouts":
        """Give the same record with one reward a row."""
        values = torch.as_tensor(rewards, dtype=torch.float32)
        if tuple(values.shape) != (len(self),):
            raise ValueError(f"expected {len(self)} rewards, one a row, got {tuple(values.shape)}")
        return dataclasses.replace(self, rewards=values)

    def to_pandas(self):  # noqa: ANN201 - pandas is optional
        """Give one line a token (prompt tokens too) as a pandas DataFrame.

        Columns: row, group, position, token_id, text, valid, entropy, logprob, rank, captured,
        control, reward. Text is the token's bytes with invalid UTF-8 as U+FFFD.
        """
        import pandas as pd

        steps = torch.arange(self.tokens.shape[1])
        row, position = (steps[None, :] < self.lengths[:, None]).nonzero(as_tuple=True)
        ids = self.tokens[row, position].tolist()
        columns = {
            "row": row,
            "group": self.groups[row],
            "position": position,
            "token_id": ids,
            "text": [self.pieces.get(i, b"").decode("utf-8", "replace") for i in ids],
            "valid": self.valid[row, position],
            "entropy": self.entropy[row, position],
            "logprob": self.logprobs[row, position],
            "rank": self.ranks[row, position],
            "captured": self.captured[row, position],
            "control": self.controls[row, position],
        }
        if self.rewards is not None:
            columns["reward"] = self.rewards[row]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        """Say what is inside in one line."""
        layers = ", ".join(map(str, self.residuals)) or "none"
        return (
            f"Rollouts({len(self)} rows of {len(set(self.groups.tolist()))} prompts, "
            f"{int(self.valid.sum())} tokens, layers: {layers}, model: {self.provenance.model})"
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """Draw the heatmap in a notebook, and the terminal's view where HTML is not shown."""
        from entropy_probe.viewing.notebook import mimebundle

        return mimebundle(self)

    @classmethod
    def concatenate(cls, records: Sequence["Rollouts"]) -> "Rollouts":
        """Join records row after row; groups stay as they are, padding grows as needed.

        Raises:
            ValueError: no records, or records with other layers or entropy bases (their numbers
                would not mean the same), with other vocabularies, or rewards in some only.
        """
        if not records:
            raise ValueError("nothing to concatenate: got an empty list of records")
        first = records[0]
        for other in records[1:]:
            _require_same(first, other)
        width = max(r.tokens.shape[1] for r in records)
        provenance = dataclasses.replace(
            first.provenance, near_ties=sum(r.provenance.near_ties for r in records)
        )
        return cls(
            **{n: torch.cat([_widen(getattr(r, n), width) for r in records]) for n in _PER_ROW},
            alternatives=Alternatives(
                *(
                    torch.cat([_widen(getattr(r.alternatives, n), width) for r in records])
                    for n in ("ids", "logprobs")
                )
            ),
            provenance=provenance,
            residuals={
                layer: torch.cat([r.residuals[layer] for r in records]) for layer in first.residuals
            },
            rewards=torch.cat([r.rewards for r in records]) if first.rewards is not None else None,
            pieces=_joined([r.pieces for r in records]),
            special_ids=frozenset().union(*(r.special_ids for r in records)),
        )


def _joined(vocabularies: Sequence[Mapping[int, bytes]]) -> dict[int, bytes]:
    """Put the texts of token ids together, and raise where two records read an id differently."""
    found: dict[int, bytes] = {}
    for pieces in vocabularies:
        for i, piece in pieces.items():
            if found.setdefault(i, piece) != piece:
                raise ValueError(
                    f"token {i} is {found[i]!r} in one record and {piece!r} in another: their "
                    "vocabularies differ, so their rows cannot be in one record; keep them apart"
                )
    return found


_PER_ROW = (
    "tokens",
    "valid",
    "prompt_lengths",
    "groups",
    "entropy",
    "logprobs",
    "ranks",
    "captured",
    "controls",
)


def _check_shapes(record: Rollouts) -> None:
    """Raise unless every field speaks of the same rows, positions and captured states."""
    shape = tuple(record.tokens.shape)
    count = int(record.captured.sum())
    ids = tuple(record.alternatives.ids.shape)
    expected = {name: (getattr(record, name), shape) for name in _PER_ROW}
    expected |= {name: (getattr(record, name), shape[:1]) for name in ("prompt_lengths", "groups")}
    expected["alternatives.ids"] = record.alternatives.ids, (*shape, *ids[2:3])
    expected["alternatives.logprobs"] = record.alternatives.logprobs, (*shape, *ids[2:3])
    if record.rewards is not None:
        expected["rewards"] = record.rewards, shape[:1]
    for name, (value, wanted) in expected.items():
        if tuple(value.shape) != wanted:
            raise ValueError(
                f"{name} is {tuple(value.shape)}, but tokens is {shape}: expected {wanted}"
            )
    for layer, states in record.residuals.items():
        if states.shape[0] != count:
            raise ValueError(
                f"layer {layer} holds {states.shape[0]} states for {count} captured positions"
            )


def _widen(value: Tensor, width: int) -> Tensor:
    """Right-pad axis 1, where there is one, with zeros."""
    if value.dim() == 1 or value.shape[1] == width:
        return value
    out = value.new_zeros(value.shape[0], width, *value.shape[2:])
    out[:, : value.shape[1]] = value
    return out


def _require_same(first: Rollouts, other: Rollouts) -> None:
    """Raise unless two records' numbers mean the same."""
    if set(first.residuals) != set(other.residuals):
        raise ValueError(
            f"records hold other layers: {sorted(first.residuals)} and {sorted(other.residuals)}"
        )
    if first.alternatives.ids.shape[2] != other.alternatives.ids.shape[2]:
        raise ValueError(
            f"records hold {first.alternatives.ids.shape[2]} and "
            f"{other.alternatives.ids.shape[2]} alternatives a token: capture both with the same"
        )
    if (first.rewards is None) != (other.rewards is None):
        raise ValueError("some records have rewards and others have none: give them to all")
    mine, theirs = first.provenance, other.provenance
    for name in ("entropy_basis", "entropy_temperature"):
        if getattr(mine, name) != getattr(theirs, name):
            raise ValueError(
                f"records differ in {name}: {getattr(mine, name)!r} and {getattr(theirs, name)!r}; "
                "score them again on one basis before joining them"
            )
