"""The verbs of `probe`: a table of names, so that listing them loads none."""

import difflib
import importlib
from importlib import metadata
from typing import NamedTuple

import click

from entropy_probe import __version__

from .failing import Failure, usage
from .plugins import help_line, load, plugins


class Verb(NamedTuple):
    """A verb that is loaded when it is called."""

    target: str
    """``module:attribute`` of its click command."""
    help: str
    """What it does, in a line: the first line of the command's own help."""


_HERE = "entropy_probe.cli"
VERBS = {
    "demo": Verb(f"{_HERE}.demo:demo", "Run the shipped model on a few problems; leave a report."),
    "capture": Verb(f"{_HERE}.capture:capture", "Sample from a model into a run directory."),
    "score": Verb(f"{_HERE}.score:score", "Describe tokens that exist: a text, or another run."),
    "train": Verb(
        f"{_HERE}.train:train", "Train a model with gradients at its forking tokens alone."
    ),
    "forks": Verb(f"{_HERE}.forks:forks", "List the tokens that fork most often, and where."),
    "report": Verb(f"{_HERE}.report:report", "Write a run as one self-contained HTML page."),
    "show": Verb(f"{_HERE}.show:show", "Show a run, or one of its samples, in the terminal."),
    "ls": Verb(f"{_HERE}.ls:ls", "List the runs in a folder."),
    "import": Verb(f"{_HERE}.importing:import_", "Read what another tool left behind into a run."),
    "export": Verb(f"{_HERE}.exporting:export", "Write a run as files that other tools read."),
    "organism": Verb(f"{_HERE}.organism:organism", "List the shipped models, or show one's card."),
    "env": Verb(f"{_HERE}.env:env", "Show versions, devices, and which extras are there."),
}
"""Name -> verb, in the order of the help."""


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time, when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs by name."""
        return [*VERBS, *_added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name in VERBS:
            module, _, attribute = VERBS[cmd_name].target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        plugin = _added().get(cmd_name)
        try:
            return None if plugin is None else load(plugin)
        except Failure:
            if ctx.resilient_parsing:  # a shell completes; the other verbs are there
                return None
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that was called, or name the one that was probably meant."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing:
            names = self.list_commands(ctx)
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                fix = f"did you mean `probe {near[0]}`?" if near else "`probe --help` lists them"
                raise usage(f"no such verb: {name}", f"there are {', '.join(names)}", fix)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs first, then the options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, without importing a verb."""
        rows = [(name, verb.help) for name, verb in VERBS.items()]
        rows += [(name, help_line(plugin)) for name, plugin in _added().items()]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB ...",
    epilog="Results go to standard output, the path of what was written on its last line; remarks "
    "and progress go to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 4 a part was "
    "saved and can be gone on with, 5 nothing matched, 130 interrupted.",
)
@click.version_option(__version__, prog_name="probe", message="%(prog)s %(version)s")
@click.pass_context
def probe(context: click.Context) -> None:
    """Find, capture and show the forking tokens of language models."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def _added() -> dict[str, metadata.EntryPoint]:
    """Give the verbs that other packages add; none replaces one of ours."""
    return {name: entry for name, entry in plugins().items() if name not in VERBS}
