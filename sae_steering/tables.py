"""A table with a line a feature: columns of numbers, and what they are of."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_probe.storage.files import replacing

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FeatureTable:
    """Numbers of each feature of a dictionary; NaN where there is nothing to say."""

    score: str
    """What the table scores: "fork", "strategy", "outcome", "reason", "shift", "choice"."""
    columns: Mapping[str, Tensor]
    """Name -> one number a feature. ``x_low`` and ``x_high`` are the 95% interval of ``x``."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How many states, which words, ...: what the numbers are of."""

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        if len({len(column) for column in self.columns.values()}) > 1:
            lengths = {name: len(column) for name, column in self.columns.items()}
            raise ValueError(f"columns must have one number a feature, got {lengths}")

    def __len__(self) -> int:
        """Count the features."""
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> Tensor:
        """Give a column."""
        if name not in self.columns:
            raise ValueError(f"no column {name!r}: there are {', '.join(self.columns)}")
        return self.columns[name]

    def best(self, count: int, *, by: str, around: float | None = None) -> list[int]:
        """Give the features with the highest numbers, best first; NaN never among them.

        Args:
            count: how many at most.
            by: the column.
            around: rank by the distance from this number instead, such as 0.5 for an AUROC.
        """
        values = self[by].double()
        values = values if around is None else (values - around).abs()
        values = torch.where(values.isnan(), -math.inf, values)
        order = values.argsort(descending=True, stable=True)[:count]
        return order[values[order] > -math.inf].tolist()

    def lines(self, features: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Give a line a feature as JSON values: its number, and each column; None for NaN."""
        features = range(len(self)) if features is None else features
        plain = {name: column.tolist() for name, column in self.columns.items()}
        return [
            {"feature": int(i), **{name: _number(column[i]) for name, column in plain.items()}}
            for i in features
        ]

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, in one step."""
        values = {
            "schema_version": SCHEMA_VERSION,
            "score": self.score,
            "about": dict(self.about),
            "features": self.lines(),
        }
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(values, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        """Say what is inside in one line."""
        return f"FeatureTable({self.score}, {len(self)} features: {', '.join(self.columns)})"


def _number(value: float | int | bool) -> float | int | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
