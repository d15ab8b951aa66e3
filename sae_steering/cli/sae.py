"""`probe sae`: train a sparse autoencoder on a run's states, and measure one."""

from pathlib import Path
from typing import Any

import click

from entropy_probe.cli.failing import usage
from entropy_probe.cli.options import (
    Layers,
    count_option,
    fraction_option,
    model_options,
    speaking,
)
from entropy_probe.cli.output import note, progress, table, wants_json, write_json, write_path


class Positions(click.ParamType):
    """Which states take part: all, forks, others, or forks=SHARE of every batch."""

    name = "positions"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | dict[str, float]:
        """Give a name, or the shares of forks and others."""
        if value in ("all", "forks", "others") or not isinstance(value, str):
            return value
        name, _, share = value.partition("=")
        try:
            forks = float(share)
        except ValueError:
            forks = 0.0
        if name != "forks" or not 0 < forks < 1:
            self.fail(f"{value!r} is none of all, forks, others, forks=0.5", param, ctx)
        return {"forks": forks, "others": 1 - forks}


@click.group()
def sae() -> None:
    """Train a sparse autoencoder on a run's states, or measure one."""


@sae.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--out", required=True, metavar="SAE", help="Folder for the autoencoder.")
@click.option("--layer", type=Layers(), help="Block whose states.  [default: the only one there]")
@click.option(
    "--positions",
    type=Positions(),
    default="all",
    show_default=True,
    help="all states, those at forks, the others, or forks=0.5 for that share of each batch.",
)
@click.option(
    "--architecture",
    type=click.Choice(["standard", "topk", "batchtopk"]),
    default="topk",
    show_default=True,
    help="batchtopk is written, and comes back, as a JumpReLU one.",
)
@count_option("--features", None, "Number of features.  [default: 4 times the states' width]")
@click.option("--k", type=float, default=16, show_default=True, help="Active features a state.")
@click.option(
    "--l1",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Weight of the penalty; for standard.",
)
@count_option("--samples", 500_000, "States to train on, counted anew at each pass.")
@count_option("--batch-size", 1024, "States a step.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Peak learning rate.",
)
@click.option("--unscaled", is_flag=True, help="Take states as they are, of whatever length.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@fraction_option("Share of the tokens that are forks, where a run kept all states.")
@click.option("--resume", is_flag=True, help="Go on with the training at -o.")
@speaking
def train(
    runs: tuple[str, ...], out: str, layer: tuple[int, ...] | None,
    positions: str | dict[str, float], architecture: str, features: int | None, k: float, l1: float,
    samples: int, batch_size: int, rate: float, unscaled: bool, seed: int, device: str,
    fraction: float, resume: bool,
) -> None:  # fmt: skip
    """Train a sparse autoencoder on the states of runs, with SAELens' trainer.

    States come in a really shuffled order, a few megabytes at a time. A training that was cut
    off goes on with --resume. The folder holds SAELens' own format.
    """
    if layer is not None and (layer == "all" or len(layer) != 1 or layer[0] < 0):
        why = "a dictionary reads one layer, counted from 0"
        raise usage("which layer?", why, "pass --layer with one number")
    from sae_steering import train_sae

    with progress("state") as move:
        made = train_sae(
            runs, out, layer=None if layer is None else layer[0], positions=positions,
            fraction=fraction, architecture=architecture, d_sae=features, k=k, l1=l1,
            samples=samples, batch_size=batch_size, rate=rate, scaled=not unscaled, seed=seed,
            device=device, resume=resume, progress=lambda done, total, told: move(done, total),
        )  # fmt: skip
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    note(f"{made!r}, {size / 1e6:.2f} MB")
    values = {
        "sae": out, "architecture": made.architecture, "layer": made.layer, "features": made.d_sae,
        "scale": made.scale, "bytes": size,
    }  # fmt: skip
    write_path(Path(out), values)


@sae.command("eval")
@click.argument("sae_", metavar="SAE")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@model_options(required=False)
@fraction_option("Share of the tokens that are forks, where a run kept all states.")
@count_option("--states", 200_000, "States to measure at most, in whole chunks.")
@count_option("--rows", 256, "Samples to run through the model at most.")
@count_option("--batch-size", 16, "Samples a pass.")
@speaking
def evaluate_(
    sae_: str, runs: tuple[str, ...], model: str | None, device: str | None, dtype: str | None,
    revision: str | None, fraction: float, states: int, rows: int, batch_size: int,
) -> None:  # fmt: skip
    """Measure a sparse autoencoder on runs: at forks, and elsewhere.

    Explained variance and active features; with --model also the model's loss where the states
    are replaced by their reconstruction, beside the loss where they are replaced by their mean.
    """
    from entropy_probe import load
    from sae_steering import load_sae
    from sae_steering.evaluate import evaluate

    dictionary = load_sae(sae_)
    held = None
    if model is not None:
        held, _ = load(model, device=device, dtype=dtype, revision=revision)
    found = evaluate(
        dictionary, runs, model=held, fraction=fraction, states=states, rows=rows,
        batch_size=batch_size,
    )  # fmt: skip
    if wants_json():
        write_json({"sae": sae_} | found.to_dict())
        return
    click.echo(f"{dictionary!r}")
    click.echo(f"{found.dead} of {found.d_sae} features are active nowhere here")
    lines = [["states", "", "explained variance", "active features"]]
    for place, fit in found.fits.items():
        lines.append([place, str(fit.states), _figure(fit.explained_variance), _figure(fit.l0)])
    click.echo("\n" + "\n".join(table(lines, right=frozenset({1}))))
    lines = [["loss, nats", "tokens", "clean", "spliced", "mean instead", "recovered"]]
    for place, loss in found.losses.items():
        parts = (loss.clean, loss.spliced, loss.ablated, loss.recovered)
        lines.append([place, str(loss.tokens), *map(_figure, parts)])
    if found.losses:
        click.echo("\n" + "\n".join(table(lines, right=frozenset({1}))))


def _figure(figure: Any) -> str:
    """Write a figure with its interval."""
    if figure is None:
        return "ablation does not hurt"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
