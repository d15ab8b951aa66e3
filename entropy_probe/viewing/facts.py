"""The page's words and numbers outside the strips: headline, provenance, the table of forks."""

from typing import Any

from entropy_probe.rollout import Rollouts
from entropy_probe.viewing.columns import FORK, HIDDEN, PROMPT, Strip
from entropy_probe.viewing.marks import Marks, ordinal_names
from entropy_probe.viewing.scales import probability, reward_words
from entropy_probe.viewing.strips import anchor
from entropy_probe.viewing.visible import visible, visible_text

HOW = {"sample": "sampled", "score": "scored", "import": "imported"}
"""A record's source, in words."""

LONG_TABLE = 1000
"""Forks after which the table names two other tokens each, not three: pages have to stay small."""


def fork_table(
    rollouts: Rollouts, strips: list[Strip], *, redact: bool = False
) -> list[dict[str, Any]]:
    """Give the forks of some strips, most uncertain first, equal ones in order of position."""
    r, found, names = rollouts, [], ordinal_names(rollouts)
    for strip in strips:
        for i in (strip.flags & FORK).nonzero()[0].tolist():
            position = strip.start + i
            hidden = redact and bool(strip.flags[i] & PROMPT)
            found.append((-float(r.entropy[strip.row, position]), strip.row, position, hidden))
    most = 3 if len(found) <= LONG_TABLE else 2
    return [
        {
            "anchor": anchor(row, position),
            "text": HIDDEN if hidden else token_text(r, int(r.tokens[row, position])),
            "name": names[row],
            "position": position,
            "entropy": f"{-negated:.3f}",
            "probability": probability(float(r.logprobs[row, position])),
            "rank": rank if (rank := int(r.ranks[row, position])) >= 0 else "unknown",
            "others": [] if hidden else others(r, row, position, most=most),
        }
        for negated, row, position, hidden in sorted(found)
    ]


def token_text(rollouts: Rollouts, token: int) -> str:
    """Give a token's visible text; an id that the record has no bytes for says so."""
    return visible(rollouts.pieces[token]) if token in rollouts.pieces else f"<id {token}>"


def others(rollouts: Rollouts, row: int, position: int, *, most: int) -> list[tuple[str, str]]:
    """Give the most probable tokens other than the drawn one, with their probabilities."""
    token = int(rollouts.tokens[row, position])
    ids = rollouts.alternatives.ids[row, position].tolist()
    logprobs = rollouts.alternatives.logprobs[row, position].tolist()
    pairs = [(i, p) for i, p in zip(ids, logprobs, strict=True) if i != token and i >= 0]
    return [(token_text(rollouts, i), probability(p)) for i, p in pairs[:most]]


def headline(rollouts: Rollouts, marks: Marks) -> list[tuple[str, str, str]]:
    """Give the headline numbers: label, value, unit or remark."""
    valid, prompts = rollouts.valid, len(set(rollouts.groups.tolist()))
    out = [("rollouts", f"{len(rollouts):,}", f"of {prompts:,} prompt{'s' * (prompts != 1)}")]
    out.append(("tokens", f"{marks.total:,}", "with a distribution"))
    if marks.total:
        out.append(("forks", f"{marks.kept:,}", f"{marks.kept / marks.total:.1%} of the tokens"))
        out.append(("threshold", marks.threshold_words().replace(" nats", ""), "nats or more"))
        out.append(("mean entropy", f"{float(rollouts.entropy[valid].mean()):.3f}", "nats"))
    if rollouts.rewards is not None and len(rollouts):
        out.append(("mean reward", reward_words(float(rollouts.rewards.nanmean())), "a rollout"))
    return out


def origin(rollouts: Rollouts) -> list[tuple[str, str]]:
    """Give what has to be known to repeat the numbers, as label and text."""
    p = rollouts.provenance
    temperature = "unknown" if p.temperature is None else f"{p.temperature:g}"
    basis = None if p.entropy_temperature is None else f"{p.entropy_temperature:g}"
    pairs: list[tuple[str, object]] = [
        ("Model", p.model),
        ("Revision", p.revision),
        ("Weights", p.weights),
        ("Computed in", p.dtype),
        ("Computed by", p.computed_by),
        ("Source", HOW.get(p.source, p.source)),
        ("Origin", p.origin),
        ("Seed", p.seed),
        ("Temperature", f"{temperature} (greedy)" if p.temperature == 0 else temperature),
        ("Top-p, top-k", f"{p.top_p:g}, {p.top_k or 'all'}"),
        ("Entropy of", p.entropy_basis),
        ("Missing mass", None if p.missing_mass is None else f"{p.missing_mass:.2%} on average"),
        ("Entropy at temperature", basis),
        ("Residuals", p.capture),
        ("Edited while it ran", p.edit),
        ("Near ties", p.near_ties or None),
        ("Libraries", ", ".join(f"{k} {v}" for k, v in sorted(p.libraries.items())) or None),
    ]
    return [(label, visible_text(str(value))) for label, value in pairs if value is not None]


def summary(rollouts: Rollouts) -> list[str]:
    """Give the few words on the origin that stand under the title."""
    p = rollouts.provenance
    how = HOW.get(p.source, visible_text(p.source))
    if p.source == "sample":
        greedy = p.temperature == 0
        how += " at " + ("greedy (temperature 0)" if greedy else f"temperature {p.temperature:g}")
    out = [how, visible_text(p.dtype)]
    out += [f"top-p {p.top_p:g}"] if p.top_p < 1 else []
    out += [f"top-k {p.top_k}"] if p.top_k else []
    out += [] if p.seed is None else [f"seed {p.seed}"]
    if p.temperature == 0:
        out.append(f"entropy at temperature {p.entropy_temperature:g}")
    return out + ([f"weights {visible_text(p.weights)[:23]}"] if p.weights else [])
