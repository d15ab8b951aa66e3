"""What a run will do, in fixed chunks: enough to go on with it elsewhere or later."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLE_ARGUMENTS = frozenset(
    {
        "n", "max_new_tokens", "temperature", "top_p", "top_k", "residual_layers",
        "residual_positions", "alternatives", "seed", "batch_size", "stop", "fraction",
    }
)  # fmt: skip
SCORE_ARGUMENTS = frozenset(
    {
        "temperature", "residual_layers", "residual_positions", "alternatives", "seed",
        "batch_size", "fraction",
    }
)  # fmt: skip
_ARGUMENTS = {"sample": SAMPLE_ARGUMENTS, "score": SCORE_ARGUMENTS}
_OPTIONAL = {"sample": frozenset({"compile"}), "score": frozenset({"head"})}
_KINDS = {
    "kind": str, "model": str, "weights": str, "inputs": Sequence, "arguments": Mapping,
    "chunk": int, "threads": int, "device": str, "dtype": str, "revision": str | None,
    "task": str | None, "problems": Sequence, "origin": str | None,
}  # fmt: skip
_ROW = {"tokens", "valid", "prompt_length", "group", "reward"}
_PROBLEM = {"id", "answer", "facts"}


@dataclass(frozen=True)
class Plan:
    """Inputs and arguments of a run, cut into chunks that can be computed in any order."""

    kind: str
    """"sample" (inputs are prompts) or "score" (inputs are rows of tokens)."""
    model: str
    """Reference that the model can be loaded by."""
    weights: str
    """Fingerprint of its weights, which a resumed run must match."""
    inputs: Sequence[Any]
    """Prompts (text, list of messages or list of token ids), or rows to score: mappings with
    ``tokens``, ``valid`` ([start, stop) spans), ``prompt_length``, ``group`` and, where there is
    one, ``reward``."""
    arguments: Mapping[str, Any]
    """Keyword arguments of `sample` or `score`, all but what else than its own modules computes a
    model's numbers (``compile``, ``head``), which are here where they are not left at the
    default."""
    chunk: int
    """Inputs a chunk."""
    threads: int
    """CPU threads of the computation: another count may change the last bits of the numbers."""
    device: str = "cpu"
    """Type of the device of the computation."""
    dtype: str = "float32"
    """Type that the model computes in."""
    revision: str | None = None
    """Hub revision that was asked for, where one was."""
    task: str | None = None
    """Task whose problems the prompts are, and whose verifier gives the rewards."""
    problems: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Id, answer and facts of each input's problem; empty where there is no task."""
    origin: str | None = None
    """Where rows that are scored come from, in words."""

    def __post_init__(self) -> None:
        """Refuse a plan that could not be carried out as it reads."""
        if self.kind not in _ARGUMENTS:
            raise ValueError(f"kind must be one of {sorted(_ARGUMENTS)}, got {self.kind!r}")
        odd = sorted((set(self.arguments) - _OPTIONAL[self.kind]) ^ _ARGUMENTS[self.kind])
        if odd:
            raise ValueError(f"arguments of a {self.kind} plan are missing or unknown: {odd}")
        if not self.inputs:
            raise ValueError("there is nothing to do: pass at least one prompt")
        if not _is_count(self.chunk):
            raise ValueError(f"a chunk must hold 1 input or more, got {self.chunk}")
        _check_rows(self)

    @property
    def chunks(self) -> int:
        """Count the chunks."""
        return -(-len(self.inputs) // self.chunk)

    @property
    def rows_per_input(self) -> int:
        """Count the samples that an input becomes."""
        return self.arguments["n"] if self.kind == "sample" else 1

    @property
    def samples(self) -> int:
        """Count the samples of the whole run."""
        return len(self.inputs) * self.rows_per_input

    def inputs_of(self, index: int) -> range:
        """Give the inputs that a chunk holds, by their numbers."""
        if not 0 <= index < self.chunks:
            raise ValueError(f"the plan has chunks 0 to {self.chunks - 1}, got {index}")
        return range(index * self.chunk, min((index + 1) * self.chunk, len(self.inputs)))

    def samples_of(self, index: int) -> range:
        """Give the samples that a chunk holds, by their numbers in the whole run."""
        inputs = self.inputs_of(index)
        return range(inputs.start * self.rows_per_input, inputs.stop * self.rows_per_input)

    def differences(self, other: "Plan") -> list[str]:
        """Say in words how another plan would compute something else, one entry a difference.

        Threads and device are left out: they touch at most the last bits. So is the model's
        reference: its weights say what it is.
        """
        found = []
        for name in ("kind", "weights", "dtype", "chunk", "task"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"{name} was {mine!r}, now {theirs!r}")
        for name in sorted(set(self.arguments) | set(other.arguments)):
            mine, theirs = self.arguments.get(name), other.arguments.get(name)
            if mine != theirs:
                found.append(f"{name} was {mine!r}, now {theirs!r}")
        if self.inputs != other.inputs:
            found.append(f"the {len(self.inputs)} inputs are not the {len(other.inputs)} given now")
        elif list(self.problems) != list(other.problems):
            found.append("the problems' answers or facts are not those given now")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: missing or unknown fields, or values that make no plan.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if odd := sorted(set(values) ^ known):
            raise ValueError(f"the plan's fields are missing or unknown: {odd}")
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind):
                raise ValueError(f"the plan's {name} makes no sense: {values[name]!r:.80}")
        return cls(**values)


def _check_rows(plan: Plan) -> None:
    """Raise unless inputs and problems hold what they must."""
    if plan.kind == "sample" and not _is_count(plan.arguments["n"]):
        raise ValueError(f"n must be 1 or more, got {plan.arguments['n']!r}")
    if plan.kind == "score" and not all(_ROW <= set(row) for row in plan.inputs):
        raise ValueError(f"a row to score must have {sorted(_ROW)}")
    if not all(_PROBLEM <= set(problem) for problem in plan.problems):
        raise ValueError(f"a problem must have {sorted(_PROBLEM)}")
    if plan.problems and len(plan.problems) != len(plan.inputs):
        raise ValueError(f"{len(plan.problems)} problems do not go with {len(plan.inputs)} prompts")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
