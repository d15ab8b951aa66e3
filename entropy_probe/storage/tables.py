"""Rows of a record as Arrow tables and back, bit for bit: one line a sample, one line a token."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from entropy_probe.rollout import Alternatives, Provenance, Rollouts

METADATA = b"entropy_probe"
"""Key of the JSON that each samples part carries: provenance, special ids, layers."""

_SAMPLES = pa.schema(
    [
        ("sample", pa.int64()),
        ("group", pa.int64()),
        ("chunk", pa.int32()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_length", pa.int32()),
        ("length", pa.int32()),
        ("reward", pa.float32()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("facts", pa.string()),
    ]
)
_TOKENS = pa.schema(
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


def samples_table(
    rollouts: Rollouts,
    *,
    first: int,
    chunk: int,
    problems: Sequence[Mapping[str, Any]] = (),
) -> pa.Table:
    """Give one line a sample: its texts, lengths, reward and problem.

    Args:
        rollouts: the rows.
        first: number of the first row in the whole run.
        chunk: which chunk they are.
        problems: id, answer and facts of each row's problem, where there is a task.
    """
    count = len(rollouts)
    rewards = [None] * count if rollouts.rewards is None else rollouts.rewards.tolist()
    columns = {
        "sample": np.arange(first, first + count),
        "group": rollouts.groups.numpy(),
        "chunk": np.full(count, chunk, dtype=np.int32),
        "prompt": [_prompt(rollouts, row) for row in range(count)],
        "completion": [rollouts.completion(row) for row in range(count)],
        "prompt_length": rollouts.prompt_lengths.int().numpy(),
        "length": rollouts.lengths.int().numpy(),
        "reward": pa.array(rewards, pa.float32()),
        "problem": [p["id"] for p in problems] or [None] * count,
        "answer": [p["answer"] for p in problems] or [None] * count,
        "facts": [json.dumps(p["facts"]) for p in problems] or [None] * count,
    }
    about = {
        "provenance": rollouts.provenance.to_dict(),
        "special_ids": sorted(rollouts.special_ids),
        "alternatives": rollouts.alternatives.ids.shape[2],
        "layers": list(rollouts.residuals),
        "rewarded": rollouts.rewards is not None,
    }
    schema = _SAMPLES.with_metadata({METADATA: json.dumps(about).encode()})
    return pa.table({name: pa.array(v) for name, v in columns.items()}).cast(schema)


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
    alternatives = rollouts.alternatives
    top_ids = alternatives.ids[at]
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
        "rank": pa.array(rollouts.ranks[at].numpy(), mask=missing),
        "captured": rollouts.captured[at].numpy(),
        "control": rollouts.controls[at].numpy(),
        "top_ids": _lists(pa.array(top_ids[valid].flatten().numpy()), top_ids, valid),
        "top_logprobs": _lists(
            pa.array(alternatives.logprobs[at][valid].flatten().numpy()), top_ids, valid
        ),
        "top_bytes": _lists(
            _bytes_of(rollouts.pieces, top_ids[valid].flatten().numpy()), top_ids, valid
        ),
    }
    arrays = {n: v if isinstance(v, pa.Array) else pa.array(v) for n, v in columns.items()}
    return pa.table(arrays).cast(_TOKENS)


def index_table(rollouts: Rollouts, *, first: int, file: str) -> pa.Table:
    """Give one line a captured state: whose it is, and its row in the file's tensors."""
    row, place = rollouts.captured.nonzero(as_tuple=True)
    return pa.table(
        {
            "sample": (row + first).numpy(),
            "position": place.int().numpy(),
            "control": rollouts.controls[row, place].numpy(),
            "state": np.arange(len(row)),
            "file": pa.array([file] * len(row), pa.string()),
        }
    )


def rollouts_from_tables(
    samples: pa.Table, tokens: pa.Table, residuals: Mapping[int, Tensor]
) -> Rollouts:
    """Rebuild the record of some samples from their lines, in the order of ``samples``."""
    about = json.loads(samples.schema.metadata[METADATA])
    names = samples["sample"].to_numpy()
    lengths = samples["length"].to_numpy()
    order = np.argsort(names, kind="stable")
    sample = tokens["sample"].to_numpy()
    row = torch.from_numpy(order[np.searchsorted(names, sample, sorter=order)])
    place = torch.from_numpy(tokens["position"].to_numpy().astype(np.int64))
    shape = (len(names), int(lengths.max(initial=0)))
    valid = torch.from_numpy(tokens["valid"].to_numpy().copy())
    known = (row[valid], place[valid])

    def placed(name: str, dtype: torch.dtype, at: tuple[Tensor, Tensor]) -> Tensor:
        out = torch.zeros(shape, dtype=dtype)
        values = tokens[name].drop_null().to_numpy().copy()
        out[at] = torch.from_numpy(values).to(dtype)
        return out

    def listed(name: str, dtype: torch.dtype) -> Tensor:
        out = torch.zeros(*shape, about["alternatives"], dtype=dtype)
        values = _flat(tokens[name]).to_numpy(zero_copy_only=False).copy()
        out[known] = torch.from_numpy(values).to(dtype).view(len(known[0]), -1)
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
            listed("top_ids", torch.int32), listed("top_logprobs", torch.float32)
        ),
        provenance=Provenance.from_dict(about["provenance"]),
        captured=placed("captured", torch.bool, (row, place)),
        controls=placed("control", torch.bool, (row, place)),
        residuals=residuals,
        rewards=None if rewards is None else torch.from_numpy(rewards),
        pieces=_pieces(tokens),
        special_ids=frozenset(about["special_ids"]),
    )


def _prompt(rollouts: Rollouts, row: int) -> str:
    ids = rollouts.tokens[row, : int(rollouts.prompt_lengths[row])].tolist()
    return b"".join(rollouts.pieces.get(i, b"") for i in ids).decode("utf-8", "replace")


def _bytes_of(pieces: Mapping[int, bytes], ids: np.ndarray) -> pa.Array:
    """Give the bytes of each token id."""
    distinct, where = np.unique(ids, return_inverse=True)
    known = pa.array([pieces.get(i, b"") for i in distinct.tolist()], pa.binary())
    return known.take(pa.array(where))


def _decoded(pieces: pa.Array) -> pa.Array:
    """Give text for bytes, U+FFFD for what is no UTF-8."""
    encoded = pieces.dictionary_encode()
    texts = [piece.decode("utf-8", "replace") for piece in encoded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(encoded.indices)


def _lists(values: pa.Array, top: Tensor, valid: Tensor) -> pa.Array:
    """Give a list of k values where valid, null elsewhere."""
    ends = torch.cat([torch.zeros(1, dtype=torch.long), valid.long().cumsum(0)]) * top.shape[1]
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
        found |= dict(zip(distinct.tolist(), pieces.take(pa.array(first)).to_pylist(), strict=True))
    return found
