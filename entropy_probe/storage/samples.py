"""The line that a run keeps of each sample, and what each chunk says of itself."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from entropy_probe.rollout import Provenance, Rollouts

METADATA = b"entropy_probe"
"""Key of the JSON that each samples part carries: provenance, special ids, layers."""

SAMPLES_SCHEMA = pa.schema(
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
    starts, ends = rollouts.prompt_lengths.tolist(), rollouts.lengths.tolist()
    rows = list(zip(rollouts.tokens.tolist(), starts, ends, strict=True))
    columns = {
        "sample": np.arange(first, first + count),
        "group": rollouts.groups.numpy(),
        "chunk": np.full(count, chunk),
        "prompt": [_text(rollouts, ids[:start]) for ids, start, _ in rows],
        "completion": [_text(rollouts, ids[start:end], special=False) for ids, start, end in rows],
        "prompt_length": starts,
        "length": ends,
        "reward": rewards,
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
    return _samples(columns, about)


def texts_table(
    rows: Sequence[Mapping[str, Any]], *, first: int, chunk: int, provenance: Provenance
) -> pa.Table:
    """Give one line a sample of which only the texts are known.

    Args:
        rows: prompt, completion, group, reward and facts of each.
        first: number of the first row in the whole run.
        chunk: which chunk they are.
        provenance: where they come from.
    """
    columns = {
        "sample": np.arange(first, first + len(rows)),
        "chunk": np.full(len(rows), chunk),
        **{
            name: [row[name] for row in rows]
            for name in ("group", "prompt", "completion", "reward")
        },
        **{name: np.zeros(len(rows), dtype=np.int32) for name in ("prompt_length", "length")},
        **{name: [None] * len(rows) for name in ("problem", "answer")},
        "facts": [json.dumps(row["facts"]) for row in rows],
    }
    about = {
        "provenance": provenance.to_dict(),
        "special_ids": [],
        "alternatives": 0,
        "layers": [],
        "rewarded": any(row["reward"] is not None for row in rows),
    }
    return _samples(columns, about)


def about_of(schema: pa.Schema) -> dict[str, Any]:
    """Give what a samples part says of its chunk: provenance, special ids, layers."""
    return json.loads(schema.metadata[METADATA])


def _samples(columns: Mapping[str, Any], about: Mapping[str, Any]) -> pa.Table:
    """Give the table of samples, what the chunk says of itself in its metadata."""
    schema = SAMPLES_SCHEMA.with_metadata({METADATA: json.dumps(about).encode()})
    arrays = {name: pa.array(columns[name]) for name in SAMPLES_SCHEMA.names}
    return pa.table(arrays).cast(schema)


def _text(rollouts: Rollouts, ids: Sequence[int], *, special: bool = True) -> str:
    """Give the text of ids, control tokens left out of completions."""
    kept = (i for i in ids if special or i not in rollouts.special_ids)
    return b"".join(rollouts.pieces.get(i, b"") for i in kept).decode("utf-8", "replace")
