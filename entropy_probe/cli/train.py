"""`probe train`: reinforcement learning at the tokens that a selection keeps."""

import json
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.storage.errors import RunError

from .failing import Failure, explain, usage
from .options import model_options, speaking
from .output import QUIET, note
from .prompts import find_task
from .running import default_out, require_model
from .training import PRESETS, SELECTION, given, training_options
from .training_words import conclude, show, tell

if TYPE_CHECKING:
    from entropy_probe.tasks import Task
    from entropy_probe.training.config import TrainConfig
    from entropy_probe.training.distributed import Ranks
    from entropy_probe.training.folder import About


@click.command(
    epilog="Several processes: `accelerate launch -m entropy_probe train ...`, or torchrun."
)
@model_options(required=False, dtype="float32")
@click.option("--task", metavar="NAME", help="Problems, with their verifier.")
@click.option(
    "--reward",
    metavar="NAME",
    help="What is learnt: correct, majority, random:0.5, format+confidence, ...; a name that is "
    "not known lists all.  [default: correct]",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help="The selection as others make it; options add to it.",
)
@training_options
@click.option(
    "--config",
    "file",
    metavar="FILE",
    help="JSON with any of these options; those given count more.",
)
@click.option(
    "--trackio",
    metavar="PROJECT",
    help="Project on trackio's local board, '' for none.  [default: entropy-probe, if installed]",
)
@click.option("--dry-run", is_flag=True, help="Show configuration, memory and TRL's arguments.")
@click.option("--resume", is_flag=True, help="Go on with the run at -o; alone, as begun.")
@click.option("-o", "--out", metavar="DIR", help="Folder.  [default: runs/<model>-<time>]")
@speaking
def train(
    model: str | None, device: str | None, dtype: str | None, revision: str | None,
    task: str | None, reward: str | None, preset: str | None, file: str | None,
    trackio: str | None, dry_run: bool, resume: bool, out: str | None, **options: Any,
) -> None:  # fmt: skip
    """Train a model with gradients at its forking tokens alone.

    Log, checkpoints (folders that --model takes) and rollouts (runs that `probe report` shows) go
    to the folder; a run that was cut off goes on with --resume.
    """
    before = _before(out, file) if resume else None
    model = require_model(model or (before and before.model))
    task_name = _required_task(task or (before and before.task))
    reward = reward or (before.reward if before else "correct")
    config = _config(options, preset, file, before and before.config)
    found, ranks = find_task(task_name), _join(config)
    if not ranks.main:
        click.get_current_context().meta[QUIET] = True
    if before and model == before.model:
        revision = revision or before.revision
    dtype = dtype or (before.dtype if before else "float32")
    loaded = _load(model, device, dtype, revision, ranks)
    if dry_run:
        show(loaded, found, reward, config, ranks)
        return
    path = Path(out) if out is not None else ranks.first(lambda: default_out(model))
    _run(loaded, found, reward, config, ranks, path, resume, trackio)


def _before(out: str | None, file: str | None) -> "About":
    """Read what a run does that is to be gone on with."""
    from entropy_probe.training.folder import read_about

    alone = "`probe train --resume -o DIR`"
    if out is None:
        why = "--resume goes on with the run at -o, and there is no -o"
        raise usage("which run to go on with?", why, alone)
    if file is not None:
        why = f"a run goes on as it was begun: the file {file!r} would not be read"
        raise usage("--config does not go with --resume", why, f"leave it out: {alone}")
    return read_about(out)


def _required_task(name: str | None) -> str:
    if name is None:
        why = "there are no problems to train on"
        raise usage("missing option --task", why, "pass --task arithmetic, or another task's name")
    return name


def _config(
    options: Mapping[str, Any], preset: str | None, file: str | None, before: Mapping | None
) -> "TrainConfig":
    """Give the configuration: the run's or the file's, under the preset, under the options."""
    from entropy_probe.training.config import TrainConfig
    from entropy_probe.training.presets import PRESETS as SELECTIONS

    values = dict(before or (_read(file) if file else {}))
    chosen = given(options)
    selection = dict(values.get("selection", {}))
    sampling = values.get("temperature", TrainConfig.temperature)
    follows = selection.get("temperature", sampling) == sampling  # unless it names another one
    if preset is not None:
        selection, follows = SELECTIONS[preset].selection.to_dict(), preset != "lightrft"
    selection |= {name: chosen.pop(name) for name in SELECTION if name in chosen}
    values |= chosen
    if follows and selection.get("select", "forks") not in ("all", "random"):
        selection["temperature"] = values.get("temperature", sampling)
    return TrainConfig.from_dict(values | {"selection": selection})


def _read(file: str) -> dict[str, Any]:
    """Read a configuration."""
    try:
        values = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        what = f"cannot read the configuration {file!r}"
        raise usage(what, str(error), "pass a file of JSON") from error
    if not isinstance(values, dict):
        why = f"it holds {type(values).__name__}, not an object"
        raise usage(f"{file!r} is no configuration", why, 'write {"steps": 24, "lr": 0.02} there')
    return values


def _join(config: "TrainConfig") -> "Ranks":
    from entropy_probe.training.distributed import join

    return join(bf16=config.bf16)


def _load(
    model: str, device: str | None, dtype: str, revision: str | None, ranks: "Ranks"
) -> tuple[Any, Any]:
    """Load the model, each process onto its own device."""
    from entropy_probe.models import load

    note(f"loading {model}")
    device = device or (str(ranks.device) if ranks.device is not None else None)
    return load(model, device=device, dtype=dtype, revision=revision)


def _run(
    loaded: tuple[Any, Any], task: "Task", reward: str, config: "TrainConfig", ranks: "Ranks",
    path: Path, resume: bool, trackio: str | None,
) -> None:  # fmt: skip
    """Train, and say what came of it."""
    from entropy_probe.training.journal import default_log, trackio_log
    from entropy_probe.training.trainer import train as train_model

    about = (path.name, config.to_dict())
    board = trackio_log(trackio, *about) if trackio else None
    if trackio is None:
        board = default_log(path, about[1])

    def log(line: dict[str, Any]) -> None:
        tell(line, config.steps)
        if board is not None:
            board(line)

    with _resumable(path, config), _ending() as should_stop:
        result = train_model(
            *loaded,
            task,
            config=config,
            reward=reward,
            out=path,
            resume=resume,
            log=log,
            should_stop=should_stop,
        )
    if not result.done:
        what = f"stopped after step {result.steps} of {config.steps}"
        raise _saved("partial", what, "it was asked to end", path)
    if ranks.main:
        conclude(result, path)


def resume_command(path: Path, more: str = "") -> str:
    """Give the command that goes on with a training run, with another option where one is given."""
    return f"probe train --resume {more}-o {shlex.quote(str(path))}"


@contextmanager
def _ending() -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT or SIGTERM end training after the step at hand, the second at once."""
    asked = []

    def end(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        note("ending after this step, with a checkpoint; once more ends at once, without")

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _resumable(path: Path, config: "TrainConfig") -> Iterator[None]:
    """Turn what cuts training off into what is saved and the command that goes on."""
    from entropy_probe.training.collecting import NothingToLearn

    try:
        yield
    except KeyboardInterrupt as error:
        raise _saved("interrupted", "interrupted", "", path) from error
    except RunError:
        raise
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        told = explain(error)
        if not _steps(path):
            raise
        more = f"--resample {4 * config.resample} " if isinstance(error, NothingToLearn) else ""
        raise _saved("partial", told.what, told.why, path, more=more) from error


def _saved(kind: str, what: str, why: str, path: Path, *, more: str = "") -> Failure:
    """Say what training that was cut off has left, and what goes on with it."""
    steps = _steps(path)
    if not steps:
        return Failure(kind, what, why or "nothing was saved", "run it again")
    safe = f"the first {steps} steps are saved in {str(path)!r}"
    go_on = f"go on: {resume_command(path, more)}"
    return Failure(kind, what, f"{why}; {safe}" if why else safe, go_on)


def _steps(path: Path) -> int:
    """Count the steps that are saved."""
    from entropy_probe.training.checkpoints import last_checkpoint

    last = last_checkpoint(path)
    return last.progress.step if last else 0
