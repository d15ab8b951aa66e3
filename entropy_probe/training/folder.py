"""The folder of a training run: what it does, its log, its checkpoints, one writer at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entropy_probe.storage.errors import RunConflict, RunError, cannot_write
from entropy_probe.storage.files import replacing
from entropy_probe.storage.locking import LOCK, writing

from .checkpoints import Checkpoint, last_checkpoint

SCHEMA_VERSION = 1
ABOUT = "train.json"

FREE = ("resample",)
"""What a run may be gone on with otherwise: the steps that are done did not need it."""

_NAMES = {"model": "the model's name", "weights": "the weights before training"}


@dataclass(frozen=True)
class About:
    """What a run does, as its folder says."""

    model: str
    """Reference that the model was loaded by."""
    weights: str
    """Fingerprint of its weights before training."""
    task: str
    """Name of the task."""
    reward: str
    """Name of the reward."""
    config: Mapping[str, Any]
    """The configuration, see `TrainConfig.to_dict`."""
    revision: str | None
    """Hub revision of the model, where there is one."""
    dtype: str
    """Type of its weights."""
    created: str
    """When the run began, ISO 8601, UTC."""
    libraries: Mapping[str, str]
    """Versions of what computes it."""
    hardware: Mapping[str, Any]
    """Machine, device, processes and threads: on these the last bits depend."""

    def differences(self, other: "About") -> list[str]:
        """Say in words how another run would not go on with this one."""
        found = []
        for name in ("weights", "task", "reward"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"{_NAMES.get(name, f'the {name}')} was {mine!r}, now {theirs!r}")
        for name in sorted((set(self.config) | set(other.config)) - set(FREE)):
            mine, theirs = self.config.get(name), other.config.get(name)
            if mine != theirs:
                found.append(f"{name} was {mine!r}, now {theirs!r}")
        return found


def read_about(out: str | Path) -> About:
    """Read what a training run does.

    Raises:
        RunConflict: there is no training run.
        RunError: it is damaged, or of a newer version.
    """
    file = Path(out) / ABOUT
    try:
        values = json.loads(file.read_text())
        version = values.pop("schema_version")
        if version <= SCHEMA_VERSION:
            return About(**values)
    except FileNotFoundError:
        raise RunConflict(
            f"{str(out)!r} is no training run",
            f"it holds no {ABOUT}",
            "pass a folder that `probe train -o FOLDER` wrote",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{str(file)!r} is damaged",
            f"{type(error).__name__}: {error}",
            "restore it from a copy; the checkpoints beside it can be loaded as models",
        ) from error
    raise RunError(
        f"{str(out)!r} was written by a newer version of entropy-probe",
        f"its schema version is {version}, and this version reads up to {SCHEMA_VERSION}",
        "pip install --upgrade entropy-probe",
    )


@contextmanager
def opened(out: Path, about: About, *, resume: bool) -> Iterator[tuple[About, Checkpoint | None]]:
    """Hold a run's folder as its only writer; give what it says, and the checkpoint to go on from.

    Args:
        out: the folder.
        about: what the run does.
        resume: whether to go on with the run that is there, if there is one.

    Raises:
        RunConflict: the folder is taken, by another run or by another process.
        RunError: it cannot be written, or what is there cannot be read.
    """
    before = None
    if (out / ABOUT).exists():
        before = read_about(out)
        _refuse_another(out, before, about, resume=resume)
    elif out.is_dir() and any(not entry.name.startswith(LOCK) for entry in out.iterdir()):
        raise RunConflict(
            f"{str(out)!r} is taken by something that is no training run",
            f"it holds no {ABOUT}",
            "pass another -o",
        )
    with writing(out):
        if before is None:
            before = about
            _write(out, about)
        elif (config := dict(before.config) | {k: about.config[k] for k in FREE}) != before.config:
            before = replace(before, config=config)
            _write(out, before)
        yield before, last_checkpoint(out)


def _refuse_another(out: Path, before: About, about: About, *, resume: bool) -> None:
    """Raise where the run that is there is not to be gone on with, or cannot be."""
    if not resume:
        raise RunConflict(
            f"{str(out)!r} already holds a training run",
            f"it was begun {before.created}",
            "go on with it with --resume, or pass another -o",
        )
    last = last_checkpoint(out)
    if last is not None and about.weights == last.weights and not about.config["beta"]:
        about = replace(about, weights=before.weights)  # trained up to there already
    if differences := before.differences(about):
        raise RunConflict(
            f"{str(out)!r} cannot be gone on with: it was begun differently",
            "; ".join(differences),
            "pass --resume and -o alone with the same model, or another -o",
        )


def _write(out: Path, about: About) -> None:
    """Write what the run does."""
    values = {"schema_version": SCHEMA_VERSION} | vars(about)
    try:
        with replacing(out / ABOUT) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(out, error) from error
