"""Options that several verbs share, and the types of their values."""

import re
from collections.abc import Callable

import click

from .output import AS_JSON, QUIET

Decorator = Callable[[Callable], Callable]

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?)b?", re.IGNORECASE)


class Layers(click.ParamType):
    """Blocks of a model: whole numbers, negatives from the end, ``last``, or ``all``."""

    name = "layers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | str:
        """Give the numbers, or "all"."""
        if not isinstance(value, str):
            return value
        words = [word.strip() for word in value.split(",")]
        if words == ["all"]:
            return "all"
        try:
            return tuple(-1 if word == "last" else int(word) for word in words)
        except ValueError:
            self.fail(
                f"{value!r} names no layers: give numbers like 0,8,-1, or last, or all", param, ctx
            )


class Size(click.ParamType):
    """A number of bytes, with a unit or without."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Give the bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no size: give bytes, or 500MB, 2GB, 1.5GiB", param, ctx)
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))


class Shard(click.ParamType):
    """One of so many shares of a run: i/n."""

    name = "shard"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Give (i, n)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is no shard: give i/n, with i from 1 to n", param, ctx)
        return int(match[1]), int(match[2])


def _keep(key: str) -> Callable:
    """Give a callback that keeps a flag where `output` looks for it."""

    def keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[key] = value

    return keep


def speaking(command: Callable) -> Callable:
    """Add what every verb takes: how it speaks."""
    flags = (
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_keep(AS_JSON), is_eager=True,
            help="Write the result, and an error too, as JSON.",
        ),
        click.option(
            "--quiet", "-q", is_flag=True, expose_value=False, callback=_keep(QUIET), is_eager=True,
            help="No remarks, no progress.",
        ),
        click.option(
            "--traceback", is_flag=True, expose_value=False, help="Show where an error came from."
        ),
    )  # fmt: skip
    return _all(flags)(command)


def model_options(
    *, required: bool, dtype: str = "float32 on the CPU, else the checkpoint's own"
) -> Decorator:
    """Add what every verb takes that runs a model; ``dtype`` says which is the default."""
    return _all((
        click.option(
            "--model", metavar="MODEL", required=required,
            help="Hub id, local folder, .gguf file, or organism:NAME.",
        ),
        click.option("--device", help="cpu, cuda, cuda:1, ...  [default: cuda if there is one]"),
        click.option(
            "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64", "auto"]),
            help=f"[default: {dtype}]",
        ),
        click.option("--revision", help="Hub branch, tag or commit."),
    ))  # fmt: skip


def fork_options(command: Callable) -> Callable:
    """Add how forks are chosen when a run is read."""
    return _all((
        fraction_option("Share of the tokens called forks: 0.2 is 20%."),
        click.option(
            "--scope", type=click.Choice(["batch", "group", "sequence"]), default="batch",
            show_default=True, help="What that share is a share of: the run, each prompt's "
            "samples, each sample.",
        ),
    ))(command)  # fmt: skip


def fraction_option(text: str) -> Decorator:
    """Add ``--fraction``."""
    kind = click.FloatRange(0, 1, min_open=True)
    return click.option("--fraction", type=kind, default=0.2, show_default=True, help=text)


def count_option(name: str, default: int | None, text: str, *, least: int = 1) -> Decorator:
    """Add a whole number."""
    kind = click.IntRange(min=least)
    shown = default is not None
    return click.option(name, type=kind, default=default, show_default=shown, help=text)


def writing_options(command: Callable) -> Callable:
    """Add how a run directory is written: what is kept, and what happens where one is already."""
    return _all((
        click.option(
            "--layers", type=Layers(), metavar="LAYERS",
            help="Blocks whose output stream to keep: 0,8,-1, last, all.  [default: none]",
        ),
        click.option(
            "--activations", type=click.Choice(["forks", "all", "none"]), default="forks",
            show_default=True, help="Where to keep it; forks adds as many random other tokens.",
        ),
        count_option("--alternatives", 5, "Most probable tokens kept at each position.", least=0),
        fraction_option("Share of the tokens whose activations are kept as forks."),
        click.option("--max-disk", type=Size(), metavar="SIZE",
                     help="Refuse a run that may take more: 500MB, 2GB."),
        click.option("--shard", type=Shard(), metavar="I/N",
                     help="Compute a share of the chunks; all shards write to the same -o."),
        click.option("--ray", metavar="ADDRESS",
                     help="Compute on a Ray cluster: local, auto, ray://HOST:PORT (extra ray)."),
        click.option("--resume", is_flag=True, help="Go on with the run at -o; alone, as begun."),
        click.option("--overwrite", is_flag=True, help="Replace the run at -o."),
        click.option(
            "-o", "--out", metavar="RUN",
            help="Run directory.  [default: runs/<model>-<time>]",
        ),
    ))(command)  # fmt: skip


def _all(decorators: tuple[Decorator, ...]) -> Decorator:
    """Join decorators; options show in the order given."""

    def decorate(command: Callable) -> Callable:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
