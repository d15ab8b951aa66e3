"""`probe evidence`: is a capability in the base, and do these features carry it?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.cli.failing import Failure, usage
from entropy_probe.cli.options import count_option, speaking
from entropy_probe.cli.output import note, progress, wants_json, write_path
from entropy_probe.cli.prompts import find_task
from entropy_probe.viewing.visible import visible_text

from .wanted import (
    PLACES,
    dictionary_for,
    feature_options,
    features_by_strength,
    origin_of,
    refuse_other_width,
    refuse_threshold,
    threshold_of,
)

if TYPE_CHECKING:
    from sae_steering.evidence import Evidence
    from sae_steering.verdicts import Verdict


@click.command()
@click.option(
    "--base", metavar="MODEL", required=True, help="The model that is asked whether it can."
)
@click.option("--trained", metavar="MODEL", help="Its sibling, whose gain is to be explained.")
@click.option("--task", metavar="NAME", required=True, help="Problems, with their verifier.")
@feature_options(required=False)
@click.option(
    "--by",
    type=click.Choice(["choice", "strategy", "outcome"]),
    default="choice",
    show_default=True,
    help="What features are chosen by, where none is named: how they predict the way to answer "
    "before it is taken, tell it later, or tell right answers.",
)
@count_option("--count", 1, "Features to choose, where none is named.")
@click.option(
    "--where",
    type=click.Choice(PLACES),
    default="opening",
    show_default=True,
    help="States to change: opening is the last of the prompt, forks those that choose a token "
    "with an entropy of --threshold or more.",
)
@count_option("--limit", 200, "Problems of the test split to report on.")
@count_option("--choose-on", 200, "Problems of the train split to choose on.")
@count_option("--n", 4, "Completions a problem.")
@count_option("--max-new-tokens", 256, "Tokens after which a completion is cut.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of everything but the low temperature.",
)
@count_option(
    "--randoms", 100, "Random directions; fewer cannot show that features matter.", least=0
)
@count_option(
    "--orders", 100, "Shuffled labels, for what labels found and seems to count; as many.", least=0
)
@count_option("--latents", 2, "Other features, about as often active.", least=0)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything.")
@count_option("--batch-size", 256, "Completions decoded together.")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: cuda if there is one]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64", "auto"]),
    help="[default: float32 on the CPU, else the checkpoint's own]",
)
@click.option("-o", "--out", default="evidence", show_default=True, metavar="FOLDER")
@speaking
def evidence(
    base: str, trained: str | None, task: str, sae: str, features: tuple[int, ...],
    strengths: tuple[float, ...], layer: tuple[int, ...] | str | None,
    threshold: float | str | None, by: str, count: int, where: str, limit: int, choose_on: int,
    n: int, max_new_tokens: int, temperature: float, randoms: int, orders: int, latents: int,
    seed: int, batch_size: int, device: str | None, dtype: str | None, out: str,
) -> None:  # fmt: skip
    """Judge whether the base had it already, and features carry it.

    It: what --trained gained. Features, strengths and controls are chosen on the train split, and
    measured on the test split. Two verdicts by stated rules, and what would change them: is the
    capability in the base, and do these features carry it. Writes evidence.json and
    evidence.html.
    """
    wanted = _wanted(features, strengths, count)
    refuse_threshold(where, threshold)
    dictionary, block = dictionary_for(sae, layer, features)
    found = find_task(task)
    nats, path = threshold_of(threshold), _writable(Path(out))
    from dataclasses import asdict, replace

    from sae_steering.arms import Plan, make_arms
    from sae_steering.evidence import gather_evidence, write_evidence
    from sae_steering.outcomes import Drawing, Outcome

    (model, tokenizer), sibling = _models(base, trained, device, dtype)
    origin = origin_of(dictionary, model)
    if sibling is not None:
        refuse_other_width(dictionary, sibling)
    dictionary = replace(dictionary.to(model.device), layer=block)
    plan = Plan(
        by=by, where=where, features=tuple(wanted), strengths=tuple(wanted.values()) if strengths
        else (), count=count, threshold=nats, randoms=randoms, orders=orders,
        latents=latents, seed=seed,
    )  # fmt: skip
    drawing = Drawing(n, max_new_tokens, temperature, seed, batch_size)
    problems = found.problems(choose_on, split="train", seed=seed)
    arms = make_arms(
        model, tokenizer, found, problems, dictionary, plan, drawing=drawing, progress=note
    )
    with progress("arm") as move:
        total, done = _count(arms, sibling), []

        def tell(outcome: Outcome) -> None:
            done.append(outcome.name)
            move(len(done), max(total, len(done)))  # orders of labels come when they are needed

        judged = gather_evidence(
            model, tokenizer, found, found.problems(limit, split="test", seed=seed),
            arms.interventions, trained=sibling, randoms=arms.randoms, blind=arms.blind,
            ablations=arms.ablations,
            drawing=replace(drawing, seed=seed + 1), chosen=dict(arms.about) | {"sae": origin},
            random_drawing=Drawing(**asdict(drawing) | {"n": 1, "seed": seed + 1}),
            progress=tell,
        )  # fmt: skip
    page = write_evidence(judged, path)
    if not wants_json():
        click.echo("\n".join(_lines(judged)))
    write_path(page, {"page": str(page)} | judged.to_dict())


def _wanted(
    features: tuple[int, ...], strengths: tuple[float, ...], count: int
) -> dict[int, float]:
    """Give the features that were named, at their strengths, or at 1 where none was given."""
    if strengths and not features:
        why = "strengths belong to features, and none is named"
        raise usage("--strength without --feature", why, "name them, or leave it to be chosen")
    if features and count > 1:
        why = "features that are named need not be chosen"
        raise usage("--count with --feature", why, "leave one of them out")
    return features_by_strength(features, strengths or (1.0,)) if features else {}


def _writable(path: Path) -> Path:
    """Make the folder now: it would be late to find out after all the work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what, why = f"cannot write {str(path)!r}", error.strerror or str(error)
        raise Failure("failed", what, why, "pass another -o, where you may write") from error
    return path


def _models(
    base: str, trained: str | None, device: str | None, dtype: str | None
) -> tuple[tuple[Any, Any], Any]:
    """Load the base with its tokenizer, and its sibling, which must read the same tokens."""
    from entropy_probe import load

    held = load(base, device=device, dtype=dtype)
    if trained is None:
        note("no --trained: nothing is explained without a gain, so that no verdict is 'shown'")
        return held, None
    sibling, tokenizer = load(trained, device=device, dtype=dtype)
    if tokenizer.get_vocab() != held[1].get_vocab():
        why = f"{base!r} and {trained!r} have other vocabularies"
        raise usage("the two are no siblings", why, "pass a model that was trained from the base")
    return held, sibling


def _count(arms: Any, sibling: Any) -> int:
    """Count what is measured."""
    trained = 0 if sibling is None else 1 + len(arms.ablations)
    extra = len(arms.randoms) + 1 if arms.randoms else 0
    return 1 + trained + len(arms.interventions) + extra


def _lines(judged: "Evidence") -> list[str]:
    """Write both verdicts for people."""
    verdicts = judged.verdicts
    found = _said("capability in the base", verdicts.capability)
    found += _said("carried by these features", verdicts.carried)
    for name, share in judged.removed.items():
        text = (
            "no share"
            if share is None
            else f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
        )
        found.append(f"{name}: {text} of the gain goes with it")
    return [visible_text(line) for line in found]


def _said(name: str, verdict: "Verdict") -> list[str]:
    """Write a verdict, why, and what would change it."""
    why = [f"  {line}" for line in verdict.why]
    return [f"{name}: {verdict.statement}", *why,
            *(f"  would change it: {line}" for line in verdict.would_change)]  # fmt: skip
