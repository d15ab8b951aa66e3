"""What can be chosen about the tokens that train: every choice spelt out, none read in silence."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entropy_probe.loss import NORMALIZERS

from .choosing import CHOICES, Choice
from .pooling import COUNTS, QUANTILES

SCOPES = ("sequence", "group", "micro_batch", "global_micro_batch", "batch", "global")
RULES = ("exact", "threshold")
SOURCES = ("rollout", "old", "current")
AVERAGES = ("step", "micro_batch", "sequence")


@dataclass(frozen=True)
class Selection:
    """Which tokens train and what their loss is divided by; options that nothing reads raise."""

    select: str | Choice = "forks"
    """"forks", "all", "bottom", "random", "surprise", or a function like those in `choosing`."""
    fraction: float | None = None
    """Share kept, of each pool; 0.2 unless said. "all" and a fixed threshold have none."""
    scope: str = "global"
    """What the share is a share of: each "sequence", "group" of a prompt, "micro_batch" of a rank,
    "global_micro_batch" (those of one number on all ranks), "batch" (a rank's rows of the
    optimizer step) or "global" (the rows of all ranks)."""
    rule: str = "exact"
    """"exact" keeps a count, ties by row and position; "threshold" all that reach a number."""
    threshold: float | None = None
    """Nats, fixed; under the threshold rule, unless there is a quantile."""
    quantile: str | None = None
    """The threshold as each pool's own: "linear", the (1 - fraction) quantile, or "kth"."""
    count: str = "ceil"
    """Tokens that a share of n is: "ceil", or "ceil_9999" and "floor" as others count (`wanted`);
    read by the exact rule and by the "kth" quantile."""
    entropy_source: str = "rollout"
    """The policy whose statistics choose: "rollout" as it sampled, "old" before the step's first
    update, "current" before each update."""
    normalizer: str = "selected"
    """What a mean counts: "selected" tokens, or all "valid" ones."""
    average: str = "step"
    """What means are taken of: the tokens of the "step" together, or of each "micro_batch" or
    "sequence", and these then by their rows."""
    mask_kl: bool = True
    """Whether a KL to a reference counts at the kept tokens only."""
    temperature: float = 1.0
    """Of the distributions whose statistics choose."""
    seed: int = 0
    """Of the noise that "random" and functions of yours get."""

    def __post_init__(self) -> None:
        """Fill in the share, and refuse what does not exist or would not be read."""
        if self.fraction is None and self.select != "all" and self.threshold is None:
            object.__setattr__(self, "fraction", 0.2)
        _check_words(self)
        _check_share(self)
        _check_unread(self)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values; a function of yours by its name."""
        values = dataclasses.asdict(self)
        if callable(self.select):
            name = getattr(self.select, "__qualname__", type(self.select).__qualname__)
            values["select"] = f"{self.select.__module__}:{name}"
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Selection":
        """Rebuild from `to_dict`, or from some of its keys.

        Raises:
            ValueError: a name that is not known, or options that do not go together.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"no option {unknown[0]!r} of a selection: there are {known}")
        return cls(**dict(values))


def _check_words(selection: Selection) -> None:
    """Refuse options that do not exist."""
    if not callable(selection.select) and selection.select not in CHOICES:
        raise ValueError(
            f"select must be one of {tuple(CHOICES)} or a function, got {selection.select!r}"
        )
    words = {
        "scope": SCOPES, "rule": RULES, "count": COUNTS, "entropy_source": SOURCES,
        "normalizer": NORMALIZERS, "average": AVERAGES, "quantile": (None, *QUANTILES),
    }  # fmt: skip
    for name, known in words.items():
        if getattr(selection, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(selection, name)!r}")
    if not (isinstance(selection.temperature, int | float) and selection.temperature > 0):
        raise ValueError(f"temperature must be above 0, got {selection.temperature}")


def _check_share(selection: Selection) -> None:
    """Refuse a share or threshold that is missing, out of range, or not read."""
    ruled = selection.rule == "threshold"
    given = (selection.threshold is not None) + (selection.quantile is not None)
    if ruled and selection.select != "forks":
        raise ValueError(f"rule='threshold' keeps forks, got select={selection.select!r}")
    if given != ruled:
        raise ValueError(
            "rule='threshold' needs one of threshold (nats) and quantile, and no other rule reads "
            f"them: got rule={selection.rule!r}, threshold={selection.threshold}, "
            f"quantile={selection.quantile!r}"
        )
    if selection.threshold is not None and math.isnan(selection.threshold):
        raise ValueError("threshold is NaN, above which nothing lies: pass nats")
    if selection.fraction is not None:
        if selection.select == "all" or selection.threshold is not None:
            raise ValueError(
                f"fraction={selection.fraction} would not be read: select='all' keeps all tokens, "
                "a fixed threshold what reaches it; pass fraction=None"
            )
        if not 0 < selection.fraction <= 1:
            raise ValueError(
                f"fraction must be above 0 and at most 1 (0.2 keeps 20%), got {selection.fraction}"
            )


def _check_unread(selection: Selection) -> None:
    """Refuse options that this selection would not read."""
    fixed, sure = selection.threshold is not None, selection.select == "all"
    chance = selection.select == "random"
    unread = {
        "scope": sure or fixed,
        "count": sure or fixed or selection.quantile == "linear",
        "entropy_source": sure or chance,
        "temperature": sure or chance,
        "seed": not (chance or callable(selection.select)),
    }
    for field in dataclasses.fields(Selection):
        value = getattr(selection, field.name)
        if unread.get(field.name, False) and value != field.default:
            raise ValueError(
                f"{field.name}={value!r} would not be read with select={selection.select!r}, "
                f"rule={selection.rule!r}: leave it out"
            )
