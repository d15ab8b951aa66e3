"""Rows of a record as Arrow tables and back, bit for bit: one line a token, one a state."""

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from entropy_probe.rollout import Alternatives, Provenance, Rollouts

from .samples import about_of

_UNKNOWN = -1  # what a record holds where a file says null: a rank that nobody told

TOKENS_SCHEMA = pa.schema(
    [
        ("sample", pa.int64()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("token_bytes", pa.binary()),
        ("text", pa.string()),
        ("valid", pa.bool_()),
        ("is_special", pa.bool_()),
        ("is_prompt", pa.bool_()),
        ("entropy", pa.float32()),
        ("logprob", pa.float32()),
        ("rank", pa.int32()),
        ("captured", pa.bool_()),
        ("control", pa.bool_()),
        ("top_ids", pa.list_(pa.int32())),
        ("top_logprobs", pa.list_(pa.float32())),
        ("top_bytes", pa.list_(pa.binary())),
    ]
)


INDEX_SCHEMA = pa.schema(
    [
        ("sample", pa.int64()),
        ("position", pa.int32()),
        ("control", pa.bool_()),
        ("state", pa.int64()),
        ("file", pa.string()),
    ]
)


def tokens_table(rollouts: Rollouts, *, first: int) -> pa.Table:
    """Give one line a token, prompts included; statistics are null where they do not exist."""
    steps = torch.arange(rollouts.tokens.shape[1])
    row, place = (steps[None, :] < rollouts.lengths[:, None]).nonzero(as_tuple=True)
    at = (row, place)
    valid = rollouts.valid[at]
    ids = rollouts.tokens[at].numpy()
    missing = (~valid).numpy()
    pieces = _bytes_of(rollouts.pieces, ids)
    special = np.array(sorted(rollouts.special_ids), dtype=np.int64)
    top_ids = rollouts.alternatives.ids[at]
    # A position may lack alternatives: its list is shorter.
    there = valid[:, None] & (top_ids >= 0)
    listed = top_ids[there].numpy()
    columns = {
        "sample": (row + first).numpy(),
        "position": place.numpy(),
        "token_id": ids,
        "token_bytes": pieces,
        "text": _decoded(pieces),
        "valid": valid.numpy(),
        "is_special": np.isin(ids, special),
        "is_prompt": (place < rollouts.prompt_lengths[row]).numpy(),
        "entropy": pa.array(rollouts.entropy[at].numpy(), mask=missing),
        "logprob": pa.array(rollouts.logprobs[at].numpy(), mask=missing),
        "rank": pa.array(
            rollouts.ranks[at].numpy(), mask=missing | (rollouts.ranks[at] < 0).numpy()
        ),
        "captured": rollouts.captured[at].numpy(),
        "control": rollouts.controls[at].numpy(),
        "top_ids": _lists(pa.array(listed), there, valid),
        "top_logprobs": _lists(
            pa.array(rollouts.alternatives.logprobs[at][there].numpy()), there, valid
        ),
        "top_bytes": _lists(_bytes_of(rollouts.pieces, listed), there, valid),
    }
    arrays = {n: v if isinstance(v, pa.Array) else pa.array(v) for n, v in columns.items()}
    return pa.table(arrays).cast(TOKENS_SCHEMA)


def index_table(rollouts: Rollouts, *, first: int, file: str) -> pa.Table:
    """Give one line a captured state: whose it is, and its row in the file's tensors."""
    row, place = rollouts.captured.nonzero(as_tuple=True)
    columns = {
        "sample": (row + first).numpy(),
        "position": place.numpy(),
        "control": rollouts.controls[row, place].numpy(),
        "state": np.arange(len(row)),
        "file": pa.array([file] * len(row), pa.string()),
    }
    return pa.table(columns).cast(INDEX_SCHEMA)


def rollouts_from_tables(
    samples: pa.Table, tokens: pa.Table, residuals: Mapping[int, Tensor]
) -> Rollouts:
    """Rebuild the record of some samples from their lines, in the order of ``samples``."""
    about = about_of(samples.schema)
    names = samples["sample"].to_numpy()
    lengths = samples["length"].to_numpy()
    order = np.argsort(names, kind="stable")
    row = torch.from_numpy(order[np.searchsorted(names, tokens["sample"].to_numpy(), sorter=order)])
    place = torch.from_numpy(tokens["position"].to_numpy().astype(np.int64))
    if not np.array_equal(np.bincount(row.numpy(), minlength=len(names)), lengths):
        raise ValueError("samples have more or fewer tokens here than among the samples' lines")
    shape = (len(names), int(lengths.max(initial=0)))
    valid = torch.from_numpy(tokens["valid"].to_numpy().copy())
    known = (row[valid], place[valid])
    described = tokens.filter(tokens["valid"])

    def placed(name: str, dtype: torch.dtype, at: tuple[Tensor, Tensor]) -> Tensor:
        out = torch.zeros(shape, dtype=dtype)
        column = (described if at is known else tokens)[name]
        column = column.fill_null(_UNKNOWN) if name == "rank" else column
        out[at] = torch.from_numpy(column.to_numpy().copy()).to(dtype)
        return out

    def listed(name: str, dtype: torch.dtype, absent: float | int) -> Tensor:
        counts = torch.from_numpy(pc.list_value_length(described[name]).to_numpy().copy()).long()
        which = torch.arange(len(counts)).repeat_interleave(counts)
        slot = torch.arange(len(which)) - (counts.cumsum(0) - counts)[which]
        out = torch.zeros(*shape, about["alternatives"], dtype=dtype)
        out[known] = absent
        values = torch.from_numpy(_flat(described[name]).to_numpy(zero_copy_only=False).copy())
        out[known[0][which], known[1][which], slot] = values.to(dtype)
        return out

    rewards = samples["reward"].to_numpy().copy() if about["rewarded"] else None
    return Rollouts(
        tokens=placed("token_id", torch.int64, (row, place)),
        valid=placed("valid", torch.bool, (row, place)),
        prompt_lengths=torch.from_numpy(samples["prompt_length"].to_numpy().astype(np.int64)),
        groups=torch.from_numpy(samples["group"].to_numpy().copy()),
        entropy=placed("entropy", torch.float32, known),
        logprobs=placed("logprob", torch.float32, known),
        ranks=placed("rank", torch.int32, known),
        alternatives=Alternatives(
            listed("top_ids", torch.int32, -1), listed("top_logprobs", torch.float32, -math.inf)
        ),
        provenance=Provenance.from_dict(about["provenance"]),
        captured=placed("captured", torch.bool, (row, place)),
        controls=placed("control", torch.bool, (row, place)),
        residuals=residuals,
        rewards=None if rewards is None else torch.from_numpy(rewards),
        pieces=_pieces(tokens),
        special_ids=frozenset(about["special_ids"]),
    )


def _bytes_of(pieces: Mapping[int, bytes], ids: np.ndarray) -> pa.Array:
    """Give the bytes of each token id, null where they are not known."""
    distinct, where = np.unique(ids, return_inverse=True)
    known = pa.array([pieces.get(i) for i in distinct.tolist()], pa.binary())
    return known.take(pa.array(where))


def _decoded(pieces: pa.Array) -> pa.Array:
    """Give text for bytes, U+FFFD for what is no UTF-8."""
    encoded = pieces.dictionary_encode()
    texts = [piece.decode("utf-8", "replace") for piece in encoded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(encoded.indices)


def _lists(values: pa.Array, there: Tensor, valid: Tensor) -> pa.Array:
    """Give a list of the values that are there where valid, null elsewhere."""
    ends = torch.cat([torch.zeros(1, dtype=torch.long), there.sum(dim=1).cumsum(0)])
    return pa.ListArray.from_arrays(
        pa.array(ends.int().numpy()), values, mask=pa.array((~valid).numpy())
    )


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Join the lists of a column, nulls left out."""
    return (
        pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
        if column.chunks
        else (pa.array([], column.type.value_type))
    )


def _pieces(tokens: pa.Table) -> dict[int, bytes]:
    """Give the bytes of every id that occurs, alternatives included."""
    found: dict[int, bytes] = {}
    for ids, pieces in (
        (tokens["token_id"], tokens["token_bytes"].combine_chunks()),
        (_flat(tokens["top_ids"]), _flat(tokens["top_bytes"])),
    ):
        distinct, first = np.unique(ids.to_numpy(), return_index=True)
        known = zip(distinct.tolist(), pieces.take(pa.array(first)).to_pylist(), strict=True)
        found |= {token: piece for token, piece in known if piece is not None}
    return found
