"""What the verbs that steer share: which features, how strongly, where, and of which dictionary."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.cli.failing import usage
from entropy_probe.cli.options import Layers
from entropy_probe.cli.output import note

if TYPE_CHECKING:
    from sae_steering.forks import Threshold
    from sae_steering.sae import SparseDictionary

PLACES = ("all", "prompt", "opening", "generated", "forks", "non-forks")
"""What --where takes; the names that `steer` knows."""


class Nats(click.ParamType):
    """An entropy from which on a step is a fork: a number, or an unsteered run's folder."""

    name = "threshold"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Give a finite number, or the folder as it is."""
        try:
            nats = float(value)
        except ValueError:
            return value
        if not math.isfinite(nats):
            self.fail(f"{value!r} is no entropy: give nats, or the folder of a run", param, ctx)
        return nats


def feature_options(*, required: bool) -> Callable[[Callable], Callable]:
    """Add which features are steered, how strongly, and where."""
    options = (
        click.option(
            "--sae", required=True, metavar="SAE", help="Folder, or RELEASE:ID of SAELens."
        ),
        click.option(
            "--feature", "features", type=click.IntRange(min=0), multiple=True, required=required,
            metavar="ID", help="Number of a feature; repeatable.",
        ),
        click.option(
            "--strength", "strengths", type=float, multiple=True, required=required, metavar="X",
            help="In units of the feature's activation; one for all features, or one each.",
        ),
        click.option("--layer", type=Layers(), help="Block, if the SAE does not name one."),
        click.option(
            "--threshold", type=Nats(), metavar="NATS|RUN",
            help="From which entropy on a step is a fork: nats, or an unsteered run, whose 80th "
            "percentile is taken.",
        ),
    )  # fmt: skip

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def features_by_strength(
    features: tuple[int, ...], strengths: tuple[float, ...]
) -> dict[int, float]:
    """Put features and strengths together.

    Raises:
        Failure: numbers that do not fit each other, or are not finite.
    """
    if len(set(features)) < len(features):
        why = f"of {', '.join(map(str, features))}, some are the same"
        raise usage("a feature is named twice", why, "name each once, with one --strength")
    if not all(map(math.isfinite, strengths)):
        why = f"got {', '.join(f'{s:g}' for s in strengths)}"
        raise usage("strengths must be finite", why, "pass --strength with a number")
    if len(strengths) not in (1, len(features)):
        why = f"there are {len(features)} features and {len(strengths)} strengths"
        raise usage("which strength is whose?", why, "pass one --strength for all, or one each")
    strengths = strengths * len(features) if len(strengths) == 1 else strengths
    return dict(zip(features, strengths, strict=True))


def refuse_threshold(where: str, threshold: float | str | None) -> None:
    """Raise where a threshold is given that nothing would read."""
    if threshold is not None and "forks" not in where:
        why = f"--where {where} is not decided by entropy"
        raise usage("--threshold without forks", why, "add --where forks, or leave it out")


def threshold_of(threshold: float | str | None) -> "Threshold | None":
    """Give the threshold that was asked for, read from its run where it names one."""
    from sae_steering.forks import fork_threshold

    return None if threshold is None else fork_threshold(threshold)


def dictionary_for(
    reference: str, layer: tuple[int, ...] | str | None, features: tuple[int, ...]
) -> "tuple[SparseDictionary, int]":
    """Load a dictionary and give the block it is steered after.

    Raises:
        Failure: features that it does not have, no layer, or another one than its own.
    """
    from sae_steering import load_sae

    sae = load_sae(reference)
    if wrong := [feature for feature in features if feature >= sae.d_sae]:
        what = f"no feature {', '.join(map(str, wrong))}"
        why = f"{reference!r} has features 0 to {sae.d_sae - 1}"
        raise usage(what, why, "`probe features RUN --sae SAE` lists some")
    if layer is not None and (layer == "all" or len(layer) != 1):
        raise usage("which layer?", "one block is steered", "pass --layer with one number")
    asked = None if layer is None else layer[0]
    if asked is None and sae.layer is None:
        why = f"{reference!r} does not say which block's stream it reads"
        raise usage("which layer?", why, "pass --layer with the block, counted from 0")
    if asked is not None and sae.layer not in (None, asked):
        why = f"{reference!r} reads the stream after block {sae.layer}, not {asked}"
        raise usage("its features are of another layer", why, "leave --layer out")
    return sae, sae.layer if asked is None else asked


def refuse_other_width(sae: "SparseDictionary", model: Any) -> None:
    """Raise where a dictionary reads states of another width than a model's."""
    from entropy_probe.models.engine import decoder_of

    width = decoder_of(model).config.get_text_config().hidden_size
    if sae.d_model != width:
        why = f"it reads states of width {sae.d_model}, the model's have {width}"
        raise usage("the SAE belongs to another model", why, "pass models of the kind it is of")


def origin_of(sae: "SparseDictionary", model: Any) -> str:
    """Say whose states a dictionary was trained on, and whether that is this model."""
    from entropy_probe.models.engine import decoder_of
    from entropy_probe.models.fingerprint import weights_fingerprint

    refuse_other_width(sae, model)
    if sae.weights is None:
        return f"{sae!r}; whether of these weights is not recorded"
    if sae.weights == weights_fingerprint(decoder_of(model)):
        return f"{sae!r}, these weights"
    note(f"the SAE was trained on states of {sae.model or 'another model'}, of other weights")
    return f"{sae!r}, OTHER WEIGHTS than those steered"
