"""The tables of prompts and completions that TRL's trainers log: texts and rewards, no tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_probe.rollout import Provenance

from .fields import number
from .messages import plain, written_out
from .rows import Imported, TextRow, named, unreadable

_TEXTS = ("prompt", "completion")
_ADVANTAGE, _STEP = "advantage", "step"


def read_trl(files: Sequence[Path]) -> Imported:
    """Read ``completions_*.parquet`` of one training.

    The columns of decimal numbers other than the advantage are taken to be rewards: their sum is
    the row's reward, as with TRL's default weights, and the facts keep each of them and what
    else was logged. Rows of one step with one prompt form a group.

    Raises:
        RunError: a file that cannot be read, or lacks a prompt or a completion.
    """
    schemas = [_schema(file) for file in files]
    names = sorted({name for schema in schemas for name in _reward_columns(schema)})
    total = f", rewards are the sum of {', '.join(names)}" if names else ""
    provenance = Provenance(
        model="unknown",
        source="text",
        dtype="unknown",
        temperature=None,
        entropy_basis="none: the file holds text only",
        entropy_temperature=None,
        origin=f"{named(files)}: completions logged by TRL, text only{total}",
    )
    return Imported(_rows(files), provenance, rewarded=bool(names))


def _schema(file: Path) -> pa.Schema:
    """Give the columns of a file, which must be such a table."""
    try:
        schema = pq.read_schema(file)
        names = schema.names
    except (OSError, pa.ArrowException, ValueError) as error:
        raise unreadable(file, f"it is not a Parquet file ({_first(error)})") from None
    if lacking := [name for name in _TEXTS if name not in names]:
        raise unreadable(
            file,
            f"it has no column {lacking[0]!r}, as the completions that TRL logs have",
            "export prompts and completions under those names",
        )
    if len(set(names)) < len(names):
        raise unreadable(file, "two of its columns have the same name")
    return schema


def _reward_columns(schema: pa.Schema) -> list[str]:
    return [
        column.name
        for column in schema
        if pa.types.is_floating(column.type) and column.name not in (*_TEXTS, _ADVANTAGE, _STEP)
    ]


def _rows(files: Sequence[Path]) -> Iterator[TextRow]:
    """Go through the rows of all files."""
    groups: dict[object, int] = {}
    for file in files:
        try:
            table = pq.read_table(file, partitioning=None)
            lines = table.to_pylist()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise unreadable(file, f"it is damaged ({_first(error)})") from None
        names = _reward_columns(table.schema)
        for i, line in enumerate(lines):
            try:
                yield _row(line, names, groups)
            except ValueError as error:
                raise unreadable(file, f"row {i}: {error}") from None


def _row(line: Mapping[str, Any], names: Sequence[str], groups: dict[object, int]) -> TextRow:
    """Give a line's texts, its reward and the rest."""
    prompt, prompt_messages = _said(line["prompt"], "prompt")
    completion, messages = _said(line["completion"], "completion")
    facts = {"step": line.get(_STEP), "advantage": line.get(_ADVANTAGE)}
    rewards = {name: number(line[name], name) for name in names}
    facts = {k: number(v, k) for k, v in facts.items() if v is not None}
    if facts.get(_STEP) is not None and facts[_STEP].is_integer():
        facts[_STEP] = int(facts[_STEP])
    facts |= {"rewards": rewards} if rewards else {}
    known = {*_TEXTS, _ADVANTAGE, _STEP, *names}
    extra = {k: v for k, v in line.items() if k not in known and isinstance(v, str | int)}
    facts |= {"extra": extra} if extra else {}
    if prompt_messages is not None and messages is not None:
        facts["messages"] = [prompt_messages, messages]
    given = [value for value in rewards.values() if value is not None]
    group = groups.setdefault((facts.get(_STEP), prompt), len(groups))
    return TextRow(prompt, completion, group, math.fsum(given) if given else None, facts)


def _said(value: object, name: str) -> tuple[str, list[dict[str, Any]] | None]:
    """Give (text, messages): a text has none."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, list) and all(isinstance(m, Mapping) and "role" in m for m in value):
        messages = plain(value)
        return written_out(messages), messages
    raise ValueError(f"the {name} is neither text nor messages, but {type(value).__name__}")


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
