"""The heatmap page: one self-contained HTML file, a pure function of a record."""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from torch import Tensor

from entropy_probe.rollout import Rollouts
from entropy_probe.viewing.chart import HEIGHT, draw_chart
from entropy_probe.viewing.columns import (
    CONTROL,
    FORK,
    VALID,
    Pool,
    Strip,
    cut_strip,
    finish,
    script_json,
    strip_data,
)
from entropy_probe.viewing.facts import fork_table, headline, origin, summary
from entropy_probe.viewing.marks import (
    Marks,
    check_roles,
    cut_words,
    drawn_lengths,
    mark_forks,
    ordinal_names,
    role_words,
)
from entropy_probe.viewing.scales import METRICS, Scale, reward_scale, reward_words
from entropy_probe.viewing.strips import ROLE_CLASSES, strip_html
from entropy_probe.viewing.visible import visible_text

PAGE_TOKENS = 50_000
"""Tokens that a page draws at most; a record with more is cut, and the page says so."""


def heatmap(
    rollouts: Rollouts,
    *,
    fraction: float = 0.2,
    scope: str = "batch",
    title: str | None = None,
    redact_prompts: bool = False,
    max_tokens: int = PAGE_TOKENS,
    roles: Mapping[str, Tensor] | None = None,
) -> str:
    """Give a self-contained HTML page of the tokens, coloured by entropy, with the forks marked.

    The same record gives the same bytes. The page fetches nothing and works with scripts off.

    Args:
        rollouts: what to draw.
        fraction: share of the tokens called forks; see `forking_mask`.
        scope: what that share is a share of: "batch", "group" or "sequence".
        title: heading of the page; by default it names the model.
        redact_prompts: leave the text of prompts out (completions may still quote them).
        max_tokens: how many tokens are drawn at most, in whole rollouts.
        roles: what is known of some tokens, at most two things: name -> where; drawn as a solid
            and a dotted line above the token (see `planted.planted_roles`).

    Raises:
        ValueError: more than two roles, or a mask that is not bool or of another shape.
    """
    marks = mark_forks(rollouts, fraction=fraction, scope=scope)
    drawn = drawn_lengths(rollouts, max_tokens)
    known = check_roles(rollouts, roles or {})
    build = _Build(rollouts, marks, drawn, redact_prompts, known)
    groups = _groups(build)
    style, script = _resource("page.css"), _resource("page.js")
    scales = list(METRICS)
    if rollouts.rewards is not None:
        scales.append(reward_scale(rollouts.rewards.tolist()))
    return _template().render(
        title=visible_text(title or f"Forking tokens of {rollouts.provenance.model}"),
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        sentence=marks.sentence(),
        summary=summary(rollouts),
        cut=cut_words(rollouts, drawn),
        tiles=headline(rollouts, marks),
        provenance=origin(rollouts),
        source=rollouts.provenance,
        basis=visible_text(rollouts.provenance.entropy_basis),
        marks=marks,
        roles=role_words(known, marks),
        redacted=redact_prompts,
        scales=scales,
        groups=groups,
        table=fork_table(rollouts, build.strips, redact=redact_prompts),
        alternatives=rollouts.alternatives.ids.shape[2],
        chart_height=HEIGHT,
        blocks=build.finished(),
        shared=script_json(_shared(build, scales)),
    )


@dataclass
class _Build:
    """What the parts of one page have in common while it is put together."""

    rollouts: Rollouts
    marks: Marks
    drawn: list[int]
    redact: bool
    roles: Mapping[str, Tensor]
    strips: list[Strip] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare what every strip needs: the pool, the names and the top of the charts."""
        self.pool = Pool(dict(self.rollouts.pieces))
        self.names = ordinal_names(self.rollouts)
        entropy, valid = self.rollouts.entropy, self.rollouts.valid
        peak = float(entropy[valid].max()) if bool(valid.any()) else 0.0
        self.top = 1000 * max(1, -int(-peak // 1))

    def add(self, row: int, start: int, stop: int) -> tuple[int, Strip, Markup]:
        """Draw a stretch of a row: its number among the strips, its numbers, its lines."""
        strip = cut_strip(self.rollouts, self.marks, row, start, stop)
        tokens = self.rollouts.tokens[row, start:stop].tolist()
        roles = [mask[row, start:stop].tolist() for mask in self.roles.values()]
        pieces = [self.pool.piece(t) for t in tokens]
        html = strip_html(strip, pieces, redact=self.redact, roles=roles)
        self.strips.append(strip)
        self.data.append(strip_data(self.rollouts, strip, self.pool, redact=self.redact))
        return len(self.strips) - 1, strip, html

    def finished(self) -> list[Markup]:
        """Give the JSON blocks, one a strip, once all strips are drawn."""
        return [Markup(script_json(finish(d, self.pool.width))) for d in self.data]


def _groups(build: _Build) -> list[dict[str, Any]]:
    """Give the prompts with their rollouts, in the order of their first row."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(build.rollouts.groups.tolist()[: len(build.drawn)]):
        members.setdefault(group, []).append(row)
    every = build.rollouts.groups.tolist()
    rewards = build.rollouts.rewards
    out = []
    for number, (group, rows) in enumerate(members.items(), start=1):
        shared = _shared_prompt(build, rows)
        prompt = None
        if shared and not build.redact:
            prompt = build.add(rows[0], 0, shared)
        siblings = [r for r, g in enumerate(every) if g == group]
        out.append(
            {
                "number": number,
                "rows": [_rollout(build, row, shared or 0) for row in rows],
                "prompt": prompt,
                "prompt_length": int(build.rollouts.prompt_lengths[rows[0]]),
                "shared": shared,
                "siblings": len(siblings),
                "reward": None
                if rewards is None
                else reward_words(float(rewards[siblings].nanmean())),
                "threshold": build.marks.threshold(rows[0]),
            }
        )
    return out


def _shared_prompt(build: _Build, rows: list[int]) -> int | None:
    """Give the length of the prompt that rows have in common, None if they are drawn with it.

    A prompt that was scored itself, differs between rows or is cut short stays with its row.
    """
    r = build.rollouts
    length = int(r.prompt_lengths[rows[0]])
    same = all(
        int(r.prompt_lengths[row]) == length
        and r.tokens[row, :length].equal(r.tokens[rows[0], :length])
        and not bool(r.valid[row, :length].any())
        and build.drawn[row] >= length
        for row in rows
    )
    return length if same else None


def _rollout(build: _Build, row: int, start: int) -> dict[str, Any]:
    """Give one rollout: its strip, its chart and its numbers."""
    number, strip, html = build.add(row, start, build.drawn[row])
    chart = draw_chart(strip, build.top)
    valid = (strip.flags & VALID) > 0
    entropy = strip.entropy[valid] / 1000
    threshold = build.marks.threshold(row)
    rewards = build.rollouts.rewards
    line = None
    if threshold is not None and chart and not chart.means:
        line = round(HEIGHT * (1 - min(1000 * threshold / chart.top, 1)), 1)
    return {
        "row": row,
        "name": build.names[row],
        "strip": number,
        "html": html,
        "reward": None if rewards is None else reward_words(float(rewards[row])),
        "tokens": int(valid.sum()),
        "forks": int(((strip.flags & FORK) > 0).sum()),
        "controls": int(((strip.flags & CONTROL) > 0).sum()),
        "mean": f"{entropy.mean():.3f}" if entropy.size else None,
        "peak": f"{entropy.max():.3f}" if entropy.size else None,
        "chart": chart,
        "line": line,
    }


def _shared(build: _Build, scales: list[Scale]) -> dict[str, Any]:
    """Give what all strips read: the strings, the ids, the scales, the rewards' levels."""
    levels = None
    if build.rollouts.rewards is not None:
        rewards = build.rollouts.rewards[: len(build.drawn)].nan_to_num(-math.inf).clamp(-1e9, 1e9)
        levels = scales[-1].levels([round(1000 * r) for r in rewards.tolist()]).tolist()
    return {
        "width": build.pool.width,
        "pool": build.pool.entries(),
        "ids": list(build.pool.index),
        "cuts": {s.name: s.cuts for s in scales},
        "rewards": levels,
        "names": build.names[: len(build.drawn)],
        "roles": dict(zip(ROLE_CLASSES, build.roles, strict=False)),
        "top": build.top,
    }


def _policy(style: str, script: str) -> str:
    """Give the content security policy: nothing but the page's own style and script."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """Give the hash by which a policy names an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@lru_cache
def _resource(name: str) -> str:
    """Read a file that lies beside this module."""
    return (files("entropy_probe.viewing") / name).read_text(encoding="utf-8")


@lru_cache
def _template() -> jinja2.Template:
    """Compile the page's template, with escaping on."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_resource("page.html"))
