"""Pages, one self-contained file each: unsteered and steered side by side, and the evidence."""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from markupsafe import Markup
from torch import Tensor

from entropy_probe.figures import INTERVAL, Figure
from entropy_probe.rollout import Rollouts
from entropy_probe.viewing.page import heatmap
from entropy_probe.viewing.visible import visible_text

from .interventions import KINDS
from .outcomes import repetition
from .verdicts import CHANCE, HALF, LEAST, LEAST_GAIN, Verdict

if TYPE_CHECKING:
    from .evidence import Evidence

SIDE_TOKENS = 4_000
"""Tokens drawn on each side at most; a side with more is cut, and says so."""
PROBLEMS, EACH = 6, 2
"""Problems that the evidence page draws, and completions of each."""

_LOW, _HIGH = -0.25, 1.25
"""Span of the chart of shares; what lies outside is drawn at its edge."""


def comparison_page(
    plain: Rollouts,
    steered: Rollouts,
    *,
    title: str = "Unsteered and steered",
    facts: Sequence[tuple[str, str]] = (),
    measures: Sequence[Sequence[str]] = (),
    edited: Tensor | None = None,
    redact_prompts: bool = False,
    max_tokens: int = SIDE_TOKENS,
) -> str:
    """Give a page of two heatmaps beside each other: the same prompts, the same noise.

    Args:
        plain: what the model wrote as it is.
        steered: what it wrote under steering.
        title: heading of the page.
        facts: label and text of what is to be said above the heatmaps.
        measures: lines of a table there: what, as it is, steered, difference.
        edited: True at tokens of the steered side whose distribution was edited, where that was
            decided by entropy; they are marked.
        redact_prompts: leave the text of prompts out (completions may still quote them).
        max_tokens: tokens drawn on each side at most.
    """
    options = {"redact_prompts": redact_prompts, "max_tokens": max_tokens}
    roles = None if edited is None else {"edited": edited}
    sides = [
        _side("As it is", plain, heatmap(plain, title="As it is", **options)),
        _side("Steered", steered, heatmap(steered, title="Steered", roles=roles, **options)),
    ]
    if measures:  # they say what the captions would
        sides = [side | {"words": []} for side in sides]
    return _render(
        "comparison.html", sides, title=title, facts=list(facts), measures=list(measures)
    )  # fmt: skip


def evidence_page(evidence: "Evidence") -> str:
    """Give the page of a trial: verdicts, shares beside controls, and what was written."""
    verdicts, outcomes = evidence.verdicts, evidence.outcomes
    arms = {arm.name: arm.kind for arm in evidence.trial.arms}
    sides, featured = [], [name for name, kind in arms.items() if kind == "features"]
    if featured:
        for label, name in (("The base as it is", "base"), ("The base, steered", featured[0])):
            drawn = _few(outcomes[name].rollouts)
            page = heatmap(drawn, title=label, max_tokens=SIDE_TOKENS)
            sides.append(_side(label, outcomes[name].rollouts, page))
    rows = [
        {
            "name": name,
            "kind": kind,
            "about": evidence.about["interventions"][name],
            "accuracy": _percent(outcomes[name].accuracy),
            "share": _percent(verdicts.shares[name]),
            "chart": _chart(verdicts.shares[name]),
            "ahead": _points(verdicts.ahead.get(name)),
        }
        for name, kind in arms.items()
    ]
    about = evidence.about
    return _render(
        "evidence.html",
        sides,
        title=f"Is it in {visible_text(str(about['base']['model']))}?",
        about=about,
        cards=[
            ("Capability in the base", _card(verdicts.capability)),
            ("Carried by these features", _card(verdicts.carried)),
        ],
        base=_percent(outcomes["base"].accuracy),
        trained=_percent(outcomes["trained"].accuracy) if "trained" in outcomes else None,
        gain=_points(verdicts.gain),
        chance=verdicts.chance,
        randoms=_randoms(evidence),
        removed=[(name, _percent(figure)) for name, figure in evidence.removed.items()],
        rows=rows,
        kinds=[(kind, words) for kind, words in KINDS.items() if kind in arms.values()],
        rules={
            "half": f"{HALF:.0%}", "least": f"{LEAST:.0%}", "gain": f"{100 * LEAST_GAIN:g}",
            "chance": CHANCE, "interval": INTERVAL,
        },
        guide=[_place(0.0), _place(LEAST), _place(HALF), _place(1.0)],
    )  # fmt: skip


def _few(rollouts: Rollouts) -> Rollouts:
    """Give the first completions of the first problems."""
    rows: list[int] = []
    seen: dict[int, int] = {}
    for row, group in enumerate(rollouts.groups.tolist()):
        seen[group] = seen.get(group, 0) + 1
        if len(seen) <= PROBLEMS and seen[group] <= EACH:
            rows.append(row)
    return rollouts[torch.tensor(rows)]


def _side(label: str, rollouts: Rollouts, page: str) -> dict[str, Any]:
    """Give one side: its heatmap, and what sums it up."""
    valid = rollouts.valid
    rewards = rollouts.rewards
    tokens = float(valid.sum(dim=1).float().mean())
    words = [
        f"{len(rollouts)} completions",
        f"{tokens:.1f} tokens each",
        f"mean entropy {float(rollouts.entropy[valid].mean()):.3f} nats",
        f"repetition {repetition(rollouts):.1%}",
    ]
    words += [] if rewards is None else [f"mean reward {float(rewards.nanmean()):.3f}"]
    return {"label": label, "words": words, "page": page}


def _card(verdict: Verdict) -> Mapping[str, Any]:
    return {"statement": verdict.statement, "why": verdict.why, "change": verdict.would_change}


def _randoms(evidence: "Evidence") -> str | None:
    """Say what random directions reached, None where there are none."""
    drawn = sorted(evidence.trial.random)
    if not drawn:
        return None
    middle = drawn[len(drawn) // 2]
    return (
        f"{len(drawn)} random directions of equal length reach {drawn[0]:.1%} to {drawn[-1]:.1%} "
        f"(median {middle:.1%}), the features {evidence.trial.reached:.1%}, drawn alike"
    )


def _chart(share: Figure | None) -> Mapping[str, float] | None:
    """Give where a share and its interval are drawn, in percent of the width."""
    if share is None:
        return None
    return {"at": _place(share.value), "low": _place(share.low), "high": _place(share.high)}


def _place(value: float) -> float:
    return round(100 * (min(max(value, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW), 2)


def _percent(figure: Figure | None) -> str | None:
    if figure is None:
        return None
    return f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"


def _points(figure: Figure | None) -> str | None:
    if figure is None:
        return None
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(
        *(100 * value for value in (figure.value, figure.low, figure.high))
    )


def _render(name: str, sides: Sequence[Mapping[str, Any]], **values: Any) -> str:
    """Fill in a template; the policy allows the page's own style and what the heatmaps need."""
    style = _resource("pages.css")
    allowed = {"style-src": {_digest(style)}, "script-src": set()}
    for side in sides:  # a frame inherits this policy, so what its own allows is allowed here
        own = html.unescape(
            re.search(r'Content-Security-Policy" content="([^"]*)"', side["page"])[1]
        )
        for source, found in allowed.items():
            named = re.search(rf"{source} ([^;]*)", own)
            found |= set(re.findall(r"sha256-[A-Za-z0-9+/=]+", named[1])) if named else set()
    quoted = {source: [f"'{d}'" for d in sorted(found)] for source, found in allowed.items()}
    words = [f"{source} {' '.join(found)}" for source, found in quoted.items() if found]
    policy = "; ".join(["default-src 'none'", *words, "base-uri 'none'", "form-action 'none'"])
    return _environment().get_template(name).render(
        sides=sides, style=Markup(style), policy=Markup(policy), **values
    )  # fmt: skip


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _resource(name: str) -> str:
    """Read a file that lies beside this module."""
    return (files("sae_steering") / name).read_text(encoding="utf-8")


@lru_cache
def _environment() -> jinja2.Environment:
    """Give the templates, with escaping on."""
    names = ("comparison.html", "evidence.html", "sides.html")
    loader = jinja2.DictLoader({name: _resource(name) for name in names})
    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=loader,
    )  # fmt: skip
