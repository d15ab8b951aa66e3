"""Checkpoints of a training run: everything that goes on bit for bit, written whole or not at all.

A checkpoint is a folder in Hugging Face format, loadable as any model is, with the optimizer's
state and `checkpoint.json` beside the weights. It appears by the last rename.
"""

import dataclasses
import json
import os
import random
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from entropy_probe.models import no_weights_bar
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.storage.errors import RunError
from entropy_probe.storage.files import TEMPORARY, is_full

from .model_files import save_model

SCHEMA_VERSION = 1
FOLDER, STATE, OPTIMIZER = "checkpoints", "checkpoint.json", "optimizer.pt"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)
_NAME = re.compile(r"step-(\d{5,})")


@dataclass(frozen=True)
class Progress:
    """How far a run has come, at the end of a step."""

    step: int = 0
    """Steps that are done."""
    drawn: int = 0
    """Prompts that have been drawn."""
    log_bytes: int = 0
    """Length of the log then: what a run wrote after its last checkpoint it writes again."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    """Its folder."""
    progress: Progress
    """Where it was written."""
    weights: str
    """Fingerprint of its weights."""


def find_checkpoints(out: Path) -> list[Path]:
    """List the checkpoints of a run, the oldest first."""
    folder = out / FOLDER
    found = folder.iterdir() if folder.is_dir() else ()
    named = ((_NAME.fullmatch(path.name), path) for path in found)
    return [path for _, path in sorted((int(name[1]), path) for name, path in named if name)]


def last_checkpoint(out: Path) -> Checkpoint | None:
    """Read what the last checkpoint of a run says of itself; None where there is none.

    Raises:
        RunError: it is damaged, or of a newer version.
    """
    paths = find_checkpoints(out)
    return read_checkpoint(paths[-1]) if paths else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint says of itself.

    Raises:
        RunError: it is damaged, or of a newer version.
    """
    try:
        values = json.loads((path / STATE).read_text())
        version = values["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunError(
                f"{str(path)!r} was written by a newer version of entropy-probe",
                f"its schema version is {version}, and this version reads up to {SCHEMA_VERSION}",
                "pip install --upgrade entropy-probe",
            )
        return Checkpoint(path, Progress(**values["progress"]), values["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise _damaged(path, f"{STATE}: {type(error).__name__}: {error}") from error


def write_checkpoint(
    out: Path,
    model: nn.Module,
    tokenizer: Any,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    progress: Progress,
    *,
    fingerprint: str,
    keep: int,
) -> Path:
    """Write a checkpoint, and remove all but the last ones.

    Args:
        out: the run's folder.
        model: what was trained; its configuration is written.
        tokenizer: its tokenizer, so that the folder can be loaded from.
        weights: its whole state dictionary, on the CPU.
        state: what `training_state` gave, one for each process.
        progress: how far the run has come.
        fingerprint: of the weights.
        keep: how many checkpoints stay.

    Raises:
        RunError: the disk is full; the checkpoints before are whole.
    """
    path = out / FOLDER / f"step-{progress.step:05d}"
    _remove_leftovers(out)
    if not path.exists():
        temporary = path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            save_model(model, tokenizer, temporary, weights)
            torch.save(dict(state), temporary / OPTIMIZER)
            about = {
                "schema_version": SCHEMA_VERSION,
                "progress": dataclasses.asdict(progress),
                "weights": fingerprint,
            }
            (temporary / STATE).write_text(json.dumps(about, indent=1) + "\n")
            _flush(temporary)
            temporary.rename(path)
            _sync(path.parent)
        except (OSError, SafetensorError, RuntimeError) as error:
            if is_full(error):
                raise _no_space(out, progress.step) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in find_checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return path


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put a checkpoint's weights into a model of the same build.

    Raises:
        RunError: they are not those that were saved, or do not fit the model.
    """
    try:
        with no_weights_bar():
            saved = type(model).from_pretrained(checkpoint.path, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
    except (*_UNREADABLE, SafetensorError) as error:
        raise _damaged(checkpoint.path, str(error).splitlines()[0]) from error
    if weights_fingerprint(model) != checkpoint.weights:
        raise _damaged(checkpoint.path, "its weights are not those that were saved")


def load_state(checkpoint: Checkpoint, rank: int) -> dict[str, Any]:
    """Read what `training_state` gave of this process; the first one's where it was not there.

    Raises:
        RunError: it is damaged.
    """
    try:
        state = torch.load(checkpoint.path / OPTIMIZER, map_location="cpu", weights_only=True)
        randomness = state["randomness"]
        mine = randomness[rank] if rank < len(randomness) else randomness[0]
        return {"optimizer": state["optimizer"], "randomness": mine}
    except (*_UNREADABLE, EOFError, UnpicklingError) as error:
        raise _damaged(checkpoint.path, f"{OPTIMIZER}: {error}") from error


def whole_weights(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Give a model's state dictionary on the CPU, sharded tensors put together.

    Where the model is sharded, every process has to call this; ``keep=False`` gives nothing.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        whole = _whole(tensor)
        if keep:
            found[name] = whole
    return found


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give an optimizer's state by the names of the model's parameters, put together too."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            values = optimizer.state[parameter]
            found[name] = {k: _whole(v) if isinstance(v, Tensor) else v for k, v in values.items()}
    return found


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put what `optimizer_state` gave into an optimizer of the same parameters."""
    for name, parameter in model.named_parameters():
        if name in saved:
            optimizer.state[parameter] = {k: _like(v, parameter) for k, v in saved[name].items()}


def randomness() -> dict[str, Any]:
    """Give the state of every generator that a reward or a task may draw from."""
    algorithm, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (algorithm, keys.tolist(), *rest),
        "python": random.getstate(),
    }


def restore_randomness(saved: Mapping[str, Any]) -> None:
    """Put every generator into the state that `randomness` gave."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    algorithm, keys, *rest = saved["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))


def _whole(tensor: Tensor) -> Tensor:
    """Give a tensor, or what its shards make, on the CPU."""
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().cpu()


def _like(value: object, parameter: Tensor) -> object:
    """Give a saved value of the optimizer's, placed as the parameter is if it has its shape."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, placements, src_data_rank=None)


def _remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed has left half written."""
    for leftover in (out / FOLDER).glob(f".step-*{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Make a folder's files survive a loss of power."""
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(path: Path, why: str) -> RunError:
    return RunError(
        f"the checkpoint {str(path)!r} cannot be read",
        why,
        "remove that folder and go on with --resume, from the checkpoint before",
    )


def _no_space(out: Path, step: int) -> RunError:
    kept = find_checkpoints(out)
    safe = f"{kept[-1].name} is whole" if kept else "there is no checkpoint yet"
    return RunError(
        f"the disk is full: the checkpoint of step {step} was not written",
        f"no space left on device at {str(out)!r}; {safe}",
        "free some space and go on with --resume",
    )
