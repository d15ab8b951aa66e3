"""`probe forks`: the tokens that fork most often, and where."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .failing import Failure, usage
from .options import count_option, fork_options, speaking
from .output import table, wants_json, write_json
from .reading import read_run

if TYPE_CHECKING:
    from torch import Tensor

    from entropy_probe.rollout import Rollouts

_PLACES = 3


@dataclass(frozen=True)
class Chosen:
    """The forks of a run, and the line between them and the rest."""

    mask: "Tensor"
    """True at forks, ``[batch seq]``."""
    thresholds: list[float]
    """Entropy in nats of the least uncertain fork of each scope that has one."""
    sentence: str
    """What was chosen, in words."""


@click.command()
@click.argument("run")
@fork_options
@click.option(
    "--rule",
    type=click.Choice(["exact", "threshold"]),
    help="exact keeps that share; threshold every token from --threshold on.  [default: exact]",
)
@click.option("--threshold", type=float, help="Entropy in nats; it implies the rule threshold.")
@count_option("--top", 20, "Tokens to list at most.")
@speaking
@click.pass_context
def forks(
    context: click.Context, run: str, fraction: float, scope: str, rule: str | None,
    threshold: float | None, top: int,
) -> None:  # fmt: skip
    """List the tokens that fork most often, and where.

    A place is sample:position, the most uncertain first; `probe show RUN --sample SAMPLE` draws
    it.
    """
    source, default = context.get_parameter_source, ParameterSource.DEFAULT
    fixed = threshold is not None or rule == "threshold"
    if fixed and source("fraction") is not default:
        why = "--fraction belongs to the rule exact, --threshold to the rule threshold"
        raise usage("forks by share or by threshold?", why, "pass one of them")
    if fixed and source("scope") is not default:
        why = "a threshold in nats is the same for all tokens, whatever they are compared with"
        raise usage("--scope beside a threshold?", why, "leave --scope out")
    found, rollouts = read_run(run)
    chosen = choose(rollouts, fraction, scope, rule, threshold)
    kept, total = int(chosen.mask.sum()), int(rollouts.valid.sum())
    if not kept:
        why = f"none of the {total} tokens is one by this rule"
        raise Failure("nothing", "there are no forks", why, "pass a lower --threshold")
    lines = count_by_token(rollouts, chosen.mask, found.sample_numbers)
    if wants_json():
        write_json(
            {
                "run": run, "fraction": None if threshold is not None else fraction,
                "scope": scope if threshold is None else None,
                "rule": rule or ("exact" if threshold is None else "threshold"),
                "threshold": min(chosen.thresholds), "thresholds": chosen.thresholds,
                "tokens": total, "forks": kept, "distinct": len(lines), "list": lines[:top],
            }
        )  # fmt: skip
        return
    click.echo(chosen.sentence)
    click.echo()
    rows = [["token", "forks", "of all forks", "of its uses", "mean entropy", "where"]]
    for line in lines[:top]:
        where = " ".join(f"{p['sample']}:{p['position']}" for p in line["where"])
        rows.append(
            [
                line["token"], str(line["forks"]), f"{line['share']:.1%}",
                f"{line['forks'] / line['uses']:.1%}", f"{line['mean_entropy']:.3f}",
                where + (" ..." if line["forks"] > _PLACES else ""),
            ]
        )  # fmt: skip
    click.echo("\n".join(table(rows, right=frozenset({1, 2, 3, 4}))))
    if len(lines) > top:
        click.echo(f"and {len(lines) - top} more tokens; --top {len(lines)} lists them all")


def choose(
    rollouts: "Rollouts", fraction: float, scope: str, rule: str | None, threshold: float | None
) -> Chosen:
    """Choose the forks of a record."""
    from entropy_probe.forking import forking_mask
    from entropy_probe.viewing.marks import mark_forks

    if threshold is None and rule != "threshold":
        marks = mark_forks(rollouts, fraction=fraction, scope=scope)
        found = [s.threshold for s in marks.shares.values() if s.threshold is not None]
        return Chosen(marks.forks, found, marks.sentence())
    rule = rule or "threshold"
    mask = forking_mask(rollouts.entropy, rollouts.valid, rule=rule, threshold=threshold)
    words = (
        f"Forks are the tokens with an entropy of {threshold:g} nats or more: "
        f"{int(mask.sum()):,} of {int(rollouts.valid.sum()):,} tokens."
    )
    return Chosen(mask, [threshold], words)


def count_by_token(
    rollouts: "Rollouts", mask: "Tensor", numbers: list[int]
) -> list[dict[str, Any]]:
    """Give a line for each token that forks somewhere, most forks first.

    Args:
        rollouts: the record.
        mask: its forks.
        numbers: number of each row in the whole run.
    """
    import torch

    from entropy_probe.viewing.facts import token_text

    row, position = mask.nonzero(as_tuple=True)
    entropy, tokens = rollouts.entropy[row, position], rollouts.tokens[row, position]
    # Grouped by token, the most uncertain place of each first.
    order = entropy.argsort(descending=True, stable=True)
    order = order[tokens[order].argsort(stable=True)]
    distinct, counts = torch.unique_consecutive(tokens[order], return_counts=True)
    uses = torch.bincount(rollouts.tokens[rollouts.valid])
    lines, start = [], 0
    for token, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        own = order[start : start + count]
        start += count
        lines.append(
            {
                "token": token_text(rollouts, token),
                "token_id": token,
                "bytes": rollouts.pieces.get(token, b"").hex(),
                "forks": count,
                "share": count / len(order),
                "uses": int(uses[token]),
                "mean_entropy": float(entropy[own].double().mean()),
                "where": [
                    {"sample": numbers[int(row[i])], "position": int(position[i])}
                    for i in own[:_PLACES].tolist()
                ],
            }
        )
    return sorted(lines, key=lambda line: (-line["forks"], -line["mean_entropy"], line["token_id"]))
