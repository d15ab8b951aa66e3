"""What is drawn of a record, and its forks with their counts and thresholds in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from entropy_probe.forking import forking_mask
from entropy_probe.rollout import Rollouts


@dataclass(frozen=True)
class Share:
    """The forks of one scope: how many of how many, and where the line fell."""

    kept: int
    """Forks in this scope."""
    total: int
    """Valid tokens in this scope."""
    threshold: float | None
    """Entropy of the least uncertain fork, in nats; None where there is no fork."""
    tied: int
    """Tokens with exactly that entropy that the exact count left out."""


@dataclass(frozen=True)
class Marks:
    """The forks of a record and how they were chosen."""

    forks: Bool[Tensor, "batch seq"]
    """True at forks."""
    fraction: float
    """Share of the tokens kept."""
    scope: str
    """"batch", "group" or "sequence": what the share is a share of."""
    shares: dict[int, Share]
    """Scope id (0, the group or the row) -> its share."""
    scope_of_row: list[int]
    """Key into ``shares`` of each row."""

    @property
    def kept(self) -> int:
        """Count the forks."""
        return sum(s.kept for s in self.shares.values())

    @property
    def total(self) -> int:
        """Count the valid tokens."""
        return sum(s.total for s in self.shares.values())

    def threshold(self, row: int) -> float | None:
        """Give the threshold in nats that holds in a row."""
        return self.shares[self.scope_of_row[row]].threshold

    def threshold_words(self) -> str:
        """Give the realised threshold, or the span of thresholds, with its unit."""
        found = sorted(s.threshold for s in self.shares.values() if s.threshold is not None)
        if not found:
            return "none"
        if len(found) == 1 or f"{found[0]:.3f}" == f"{found[-1]:.3f}":
            return f"{found[0]:.3f} nats"
        return f"{found[0]:.3f} to {found[-1]:.3f} nats"

    def sentence(self) -> str:
        """Say fraction, scope, kept count and realised threshold."""
        if not self.total:
            return "There are no valid tokens, so there are no forks."
        within = {
            "batch": "of all tokens together",
            "group": "of each prompt's tokens",
            "sequence": "of each rollout's tokens",
        }[self.scope]
        many = len(self.shares) > 1
        words = (
            f"Forks are the most uncertain {_percent(self.fraction)} {within} "
            f"(fraction {self.fraction:g}, scope {self.scope}): {self.kept:,} of {self.total:,} "
            f"tokens, those with an entropy of at least {self.threshold_words()}"
        )
        words += f", over {len(self.shares)} scopes." if many else "."
        tied = sum(s.tied for s in self.shares.values())
        if tied:
            words += (
                f" {tied:,} more {'tokens have' if tied > 1 else 'token has'} exactly the "
                "threshold's entropy and would have made the share too large: the earlier ones "
                "were kept."
            )
        return words


def mark_forks(rollouts: Rollouts, *, fraction: float = 0.2, scope: str = "batch") -> Marks:
    """Choose the forks of a record and say where the line fell in each scope."""
    entropy, valid, groups = rollouts.entropy, rollouts.valid, rollouts.groups
    forks = forking_mask(
        entropy, valid, fraction=fraction, scope=scope, groups=groups if scope == "group" else None
    )
    rows = len(rollouts)
    keys = {"batch": [0] * rows, "group": groups.tolist()}.get(scope, list(range(rows)))
    members: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    shares = {}
    for key, inside in sorted(members.items()):
        here, marked, held = valid[inside], forks[inside], entropy[inside]
        kept, total = int(marked.sum()), int(here.sum())
        threshold = float(held[marked].min()) if kept else None
        tied = int((here & ~marked & (held == threshold)).sum()) if kept else 0
        shares[key] = Share(kept, total, threshold, tied)
    return Marks(forks, fraction, scope, shares, keys)


def check_roles(rollouts: Rollouts, roles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the roles that can be drawn on a record, or say what is wrong with them."""
    if len(roles) > 2:
        raise ValueError(f"a page draws at most two roles, got {len(roles)}: {', '.join(roles)}")
    for name, mask in roles.items():
        if mask.dtype != torch.bool or mask.shape != rollouts.valid.shape:
            raise ValueError(
                f"the role {name!r} must be a bool mask of shape {tuple(rollouts.valid.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
    return dict(roles)


def role_words(roles: Mapping[str, Tensor], marks: Marks) -> list[tuple[str, str]]:
    """Give each role with the share of the forks that have it, and how many of it are forks."""
    found = []
    for name, mask in roles.items():
        both, of = int((mask & marks.forks).sum()), int(mask.sum())
        share = f"{both / marks.kept:.0%}" if marks.kept else "none"
        found.append((name, f"{share} of the forks, {both:,} of the {of:,} there are"))
    return found


def drawn_lengths(rollouts: Rollouts, max_tokens: int) -> list[int]:
    """Give how many tokens of each row are drawn: whole rows up to a total, the first at least.

    The list is as long as the number of rows drawn; only the first row can be cut short.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    out: list[int] = []
    left = max_tokens
    for length in rollouts.lengths.tolist():
        if length > left and out:
            break
        out.append(min(length, left))
        left -= out[-1]
    return out


def cut_words(rollouts: Rollouts, drawn: Sequence[int]) -> str | None:
    """Say what was left out of a drawing, None where nothing was."""
    lengths = rollouts.lengths.tolist()
    if list(drawn) == lengths:
        return None
    words = f"Only {sum(drawn):,} of {sum(lengths):,} tokens are drawn: "
    if drawn[0] < lengths[0]:
        words += f"the first {drawn[0]:,} tokens of rollout 1"
    else:
        words += "rollout 1" if len(drawn) == 1 else f"rollouts 1 to {len(drawn):,}"
    left = len(lengths) - len(drawn)
    words += f" ({left:,} of {len(lengths):,} rollouts left out)" if left else ""
    return words + ". The forks and their threshold are those of the whole record."


def ordinal_names(rollouts: Rollouts) -> list[tuple[int, int]]:
    """Give each row's (prompt number, number among its siblings), both from 1, in row order."""
    numbers: dict[int, int] = {}
    counts: dict[int, int] = {}
    names = []
    for group in rollouts.groups.tolist():
        number = numbers.setdefault(group, len(numbers) + 1)
        counts[group] = counts.get(group, 0) + 1
        names.append((number, counts[group]))
    return names


def _percent(fraction: float) -> str:
    """Write a share as a percentage without trailing zeros."""
    return f"{100 * fraction:.4g}%"
