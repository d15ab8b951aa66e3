"""Token exports of prime-rl's trainer: ids, exact entropies and log-probabilities, no texts."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entropy_probe.rollout import Provenance

from .fields import listed, logprob_of, mapped, number, optional, whole
from .reading import read_lines
from .rows import Imported, Numbers, TokenRow, left_out, named, unreadable

_PER_TOKEN = {"id": "token_ids", "loss_mask": "loss_mask", "entropy": "entropy",
              "trainer_logprob": "trainer_logprobs", "temperature": "temperatures",
              "reward": "rewards", "advantage": "advantages"}  # fmt: skip
_NEWEST = 2
_MANY = 5  # temperatures, of which the ends are enough to say


@dataclass(frozen=True)
class _Sequence:
    """One exported sequence, checked."""

    ids: Sequence[int]
    """Token ids."""
    known: Mapping[int, Numbers]
    """Position -> numbers of the tokens that were trained on."""
    start: int
    """Position of the first such token."""
    temperatures: frozenset[float | None]
    """Sampling temperatures of those tokens, None where one is not told."""
    reward: float | None
    """Reward, where there is one."""
    facts: Mapping[str, Any]
    """Step, environment and advantage."""


def is_prime(value: object) -> bool:
    """Tell whether a JSON value looks like a line of a token export."""
    if not isinstance(value, Mapping) or "schema_version" not in value:
        return False
    return "token_ids" in value or isinstance(value.get("tokens"), list)


def read_prime(files: Sequence[Path]) -> Imported:
    """Read ``rank_*.jsonl`` of one training; rows of a step with one prompt form a group.

    A row's valid tokens are those of its loss mask that have an entropy; sequences without any are
    left out and counted. The entropies are the trainer's, over the full vocabulary; the files hold
    neither texts nor alternatives nor ranks.

    Raises:
        RunError: something else, a newer schema, or no sequence with entropies.
    """
    temperatures: set[float | None] = set()
    rewarded, rows, skipped = False, 0, 0
    for sequence in _sequences(files):
        temperatures |= sequence.temperatures
        rewarded |= sequence.reward is not None
        rows += bool(sequence.known)
        skipped += not sequence.known
    if not rows:
        raise unreadable(files[0], "no sequence in it has a token with an entropy")
    provenance = Provenance(
        model="unknown",
        source="import",
        dtype="unknown",
        temperature=None,
        entropy_basis=f"the trainer's logits / sampling temperature{_told(temperatures)}, "
        "full vocabulary",
        entropy_temperature=None,
        origin="; ".join(
            filter(None, (f"{named(files)}: token exports of prime-rl", left_out(skipped, rows)))
        ),
    )
    one = next(iter(temperatures)) if len(temperatures) == 1 else None
    if one is not None:
        provenance = replace(provenance, temperature=one, entropy_temperature=one or 1.0)
    return Imported(_rows(files), provenance, rewarded=rewarded, skipped=skipped)


def _told(temperatures: Set[float | None]) -> str:
    """Say what is known of temperatures that are not all one."""
    known = sorted(value for value in temperatures if value is not None)
    if not known:
        return " (not told)"
    if len(temperatures) == 1:
        return ""
    each = [f"{value:g}" for value in known]
    words = ", ".join(each) if len(each) < _MANY else f"{each[0]} to {each[-1]}"
    words += ", mixed" if len(each) > 1 else ""
    return f" ({words}{', not told for some tokens' if None in temperatures else ''})"


def _rows(files: Sequence[Path]) -> Iterator[TokenRow]:
    groups: dict[object, int] = {}
    for sequence in _sequences(files):
        if not sequence.known:
            continue
        key = sequence.facts.get("step"), tuple(sequence.ids[: sequence.start])
        group = groups.setdefault(key, len(groups))
        yield TokenRow(
            sequence.ids, sequence.start, group, sequence.known, sequence.reward, sequence.facts
        )


def _sequences(files: Sequence[Path]) -> Iterator[_Sequence]:
    """Go through the sequences of all files, those without an entropy too."""
    for file in files:
        for number_, value in enumerate(read_lines(file), start=1):
            try:
                found = _sequence(mapped(value, "a sequence"))
            except ValueError as error:
                raise unreadable(file, f"line {number_}: {error}") from None
            yield found


def _sequence(value: Mapping[str, Any]) -> _Sequence:
    version = whole(value.get("schema_version"), "schema_version")
    if version > _NEWEST:
        raise ValueError(f"its schema version is {version}, and this reads up to {_NEWEST}")
    columns = _columns(value)
    ids = [whole(i, "a token id") for i in columns["token_ids"]]
    known: dict[int, Numbers] = {}
    temperatures: set[float | None] = set()
    for t, trained in enumerate(columns["loss_mask"]):
        entropy = number(columns["entropy"][t], "entropy")
        logprob = logprob_of(columns["trainer_logprobs"][t], missing=True)
        # Nothing produced the first token.
        if not trained or t == 0 or entropy is None or logprob is None:
            continue
        if entropy < -1e-3:
            raise ValueError(f"an entropy is {entropy}, below 0")
        known[t] = Numbers(max(entropy, 0.0), logprob)
        temperatures.add(number(columns["temperatures"][t], "a temperature"))
    start = min(known, default=0)
    facts = {
        "step": optional(value.get("export_step", value.get("step")), int, "step"),
        "environment": optional(value.get("env_name"), str, "env_name"),
        "advantage": _first(columns["advantages"], known),
    }
    reward = _first(columns["rewards"], known)
    return _Sequence(ids, known, start, frozenset(temperatures), reward, facts)


def _columns(value: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Give the columns of a sequence: lists as they are, or out of one object a token."""
    if "token_ids" not in value:
        tokens = [mapped(t, "a token") for t in listed(value.get("tokens"), "tokens")]
        return {many: [t.get(one) for t in tokens] for one, many in _PER_TOKEN.items()}
    count = len(listed(value["token_ids"], "token_ids"))
    needed = ("loss_mask", "entropy", "trainer_logprobs")
    columns = {
        name: listed(value[name] if name in needed else value.get(name) or [None] * count, name)
        for name in _PER_TOKEN.values()
        if name in value or name not in needed
    }
    if lacking := [name for name in needed if name not in columns]:
        raise ValueError(f"there is no {lacking[0]!r}")
    if odd := [name for name, values in columns.items() if len(values) != count]:
        raise ValueError(f"{odd[0]} has {len(columns[odd[0]])} entries for {count} tokens")
    return columns


def _first(values: Sequence[object], known: Mapping[int, Numbers]) -> float | None:
    """Give the first number among the known positions."""
    found = (number(values[t], "a reward or advantage") for t in sorted(known))
    return next((value for value in found if value is not None), None)
