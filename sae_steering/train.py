"""Train a sparse autoencoder on states of runs: SAELens' trainer, over our shuffled stream."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe import __version__
from entropy_probe.storage.errors import RunConflict
from entropy_probe.storage.files import remove_leftovers, replacing

from .lens import sae_lens
from .sae import CONFIG, WEIGHTS, SparseDictionary, load_sae
from .store import Source, StateStore

ARCHITECTURES = ("standard", "topk", "batchtopk")
"""What can be trained; SAELens writes a batch-top-k autoencoder as a JumpReLU one."""

PLAN, CHECKPOINTS = "training.json", "checkpoints"
_SCHEMA = 1
_MEASURED = 16_384  # states whose mean length and mean are the start; the error is under 1%

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Training:
    """Everything that decides a dictionary's weights, besides the states."""

    architecture: str = "topk"
    """"standard" (ReLU and an L1 penalty), "topk" or "batchtopk"."""
    d_sae: int = 512
    """Number of features."""
    k: int | float = 16
    """Features active at a state (batchtopk: on average); not for standard."""
    l1: float = 1.0
    """Weight of the L1 penalty; for standard only."""
    samples: int = 500_000
    """States to train on, counted anew at each pass; whole batches."""
    batch_size: int = 1024
    """States a step."""
    rate: float = 1e-3
    """Peak learning rate of Adam; it rises over the first 2% and falls over the last third."""
    scaled: bool = True
    """Whether states are scaled to a mean length of sqrt(d_model) first (and the scale folded into
    the weights at the end)."""
    seed: int = 0
    """Seed of the initial weights and of the order of the states."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the argument."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}: {self.architecture!r}")
        for name in ("d_sae", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.k <= self.d_sae or (self.architecture == "topk" and self.k % 1):
            raise ValueError(f"k must be 1 to d_sae={self.d_sae}, whole for topk, got {self.k}")
        if not (self.rate > 0 and self.l1 >= 0):
            raise ValueError(f"rate must be above 0 and l1 at least 0: {self.rate}, {self.l1}")
        if self.samples < self.batch_size:
            raise ValueError(f"samples={self.samples} is less than a batch of {self.batch_size}")

    @property
    def steps(self) -> int:
        """Count the optimiser's steps."""
        return self.samples // self.batch_size


def train_sae(
    sources: Source | Iterable[Source],
    out: str | Path,
    *,
    layer: int | None = None,
    positions: str | Mapping[str, float] = "all",
    fraction: float = 0.2,
    architecture: str = "topk",
    d_sae: int | None = None,
    k: int | float = 16,
    l1: float = 1.0,
    samples: int = 500_000,
    batch_size: int = 1024,
    rate: float = 1e-3,
    scaled: bool = True,
    seed: int = 0,
    device: str = "cpu",
    checkpoint_every: int = 500,
    resume: bool = False,
    progress: Progress | None = None,
) -> SparseDictionary:
    """Train a sparse autoencoder on states of runs; leave it in SAELens' disk format.

    States come in a really shuffled order and are never all in memory (see `StateStore`). The
    decoder's bias starts at their mean. A training that was interrupted goes on from its last
    checkpoint, bit for bit as if it had not been (on one device, with as many threads).

    Args:
        sources: records and run directories, of one model.
        out: folder for ``cfg.json``, ``sae_weights.safetensors`` and ``training.json``.
        layer: whose states; may be left out where only one layer was captured.
        positions: which states, see `StateStore`: "all", "forks", "others" or shares of the two.
        fraction: see `StateStore`.
        architecture: see `Training`, as for all arguments down to ``seed``.
        d_sae: number of features; by default four times the width of a state.
        k: features active at a state.
        l1: weight of the L1 penalty.
        samples: states to train on, counted anew at each pass.
        batch_size: states a step.
        rate: peak learning rate.
        scaled: whether states are scaled first.
        seed: of the initial weights and of the order.
        device: where to compute.
        checkpoint_every: steps between checkpoints.
        resume: go on with the training that is there, or load it if it is done.
        progress: called with (states done, states in all, {"loss", "dead"}).

    Raises:
        ValueError: an argument that makes no sense, or no states.
        RunConflict: the folder is taken, or holds another training.
        LoadError: SAELens is not installed.

    >>> train_sae("runs/mine", "saes/mine", layer=1)  # doctest: +SKIP
    """
    store = StateStore(sources, layer, positions=positions, fraction=fraction)
    training = Training(
        architecture, 4 * store.d_model if d_sae is None else d_sae, k, l1, samples, batch_size,
        rate, scaled, seed,
    )  # fmt: skip
    out, plan = Path(out), _plan(store, training)
    if _check_out(out, plan, resume):
        return load_sae(out, device=device)
    with replacing(out / PLAN) as temporary:
        temporary.write_text(json.dumps(plan, indent=1) + "\n")
    trainer = _trainer(store, training, device)
    _go_on(trainer, out / CHECKPOINTS)
    batches = store.batches(batch_size, seed=seed, start=trainer.n_training_steps)
    while trainer.n_training_steps < training.steps:
        trainer.maybe_reset_sparsity()
        step = trainer.step(next(batches))
        trainer.n_training_steps += 1
        done = trainer.n_training_steps
        if done % checkpoint_every == 0 and done < training.steps:
            _save_checkpoint(trainer, out / CHECKPOINTS)
        if progress is not None and (done % 20 == 0 or done == training.steps):
            told = {"loss": step.loss.item(), "dead": int(trainer.dead_neurons.sum())}
            progress(done * batch_size, training.steps * batch_size, told)
    _finish(trainer, plan, out)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return load_sae(out, device=device)


def _plan(store: StateStore, training: Training) -> dict[str, Any]:
    """Say what is trained on what, as JSON values."""
    return {
        "schema_version": _SCHEMA,
        "training": asdict(training),
        "layer": store.layer,
        "positions": store.positions,
        "fraction": store.fraction,
        "states": store.counts,
        "d_model": store.d_model,
        "model": store.model,
        "weights": store.weights,
    }


def _check_out(out: Path, plan: Mapping[str, Any], resume: bool) -> bool:
    """Tell whether the training is done already; refuse a folder that holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    where = f"{str(out)!r}"
    if not (out / PLAN).is_file():
        raise RunConflict(
            f"{where} holds something else", f"there is no {PLAN} in it", "pass another folder"
        )
    if not resume:
        raise RunConflict(
            f"{where} holds a training already", "it is not replaced",
            "go on with it by resume=True (--resume), remove it, or pass another folder",
        )  # fmt: skip
    there = json.loads((out / PLAN).read_text())
    if there != json.loads(json.dumps(plan)):
        other = [name for name in plan if there.get(name) != json.loads(json.dumps(plan[name]))]
        raise RunConflict(
            f"{where} holds another training",
            f"its {', '.join(other)} differ from what is asked for",
            "give the same arguments and runs, or another folder",
        )
    return (out / CONFIG).is_file()


def _trainer(store: StateStore, training: Training, device: str) -> Any:
    """Give SAELens' trainer, its weights and normalisation set; it does not fetch data itself."""
    lens = sae_lens("training a sparse autoencoder")
    from sae_lens.config import SAETrainerConfig

    options: dict[str, Any] = {"d_in": store.d_model, "d_sae": training.d_sae, "device": device}
    if training.scaled:
        options["normalize_activations"] = "expected_average_only_in"
    steps = training.steps
    if training.architecture == "standard":
        options |= {"l1_coefficient": training.l1, "l1_warm_up_steps": steps // 20}
        config = lens.StandardTrainingSAEConfig(**options)
    elif training.architecture == "topk":
        config = lens.TopKTrainingSAEConfig(**options, k=int(training.k))
    else:
        config = lens.BatchTopKTrainingSAEConfig(**options, k=training.k)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        sae = lens.TrainingSAE.from_dict(config.to_dict())
    trainer = lens.SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * training.batch_size,
            train_batch_size_samples=training.batch_size, lr=training.rate,
            lr_end=training.rate / 100, lr_warm_up_steps=steps // 50, lr_decay_steps=steps // 3,
            device=device, dead_feature_window=min(1000, max(1, steps // 5)),
            feature_sampling_window=max(1, steps // 5),
        ),
        sae, data_provider=iter(()),
    )  # fmt: skip
    mean, scale = _measure(store, training)
    if training.scaled:
        trainer.activation_scaler.scaling_factor = scale
    sae.b_dec.data = (mean * scale).to(device)
    return trainer


def _measure(store: StateStore, training: Training) -> tuple[Float[Tensor, " d_model"], float]:
    """Give the states' mean, and the factor that makes their mean length sqrt(d_model)."""
    some = next(store.batches(_MEASURED, seed=training.seed))
    scale = math.sqrt(store.d_model) / float(some.norm(dim=1).mean())
    return some.mean(dim=0), scale if training.scaled else 1.0


def _go_on(trainer: Any, folder: Path) -> None:
    """Load the last whole checkpoint, where there is one."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover)
    if found := sorted(folder.glob("step-*")):
        trainer.sae.load_weights_from_checkpoint(found[-1])
        trainer.load_trainer_state(found[-1])


def _save_checkpoint(trainer: Any, folder: Path) -> None:
    """Save a checkpoint whole, then remove the ones before it."""
    before = sorted(folder.glob("step-*"))
    name = f"step-{trainer.n_training_steps:09d}"
    trainer.save_checkpoint(name, base_path=folder / ".writing")
    (folder / ".writing" / name).rename(folder / name)
    (folder / ".writing").rmdir()
    for older in before:
        shutil.rmtree(older)


def _finish(trainer: Any, plan: Mapping[str, Any], out: Path) -> None:
    """Fold the scale into the weights, write down what was done, and leave the files."""
    sae, scale = trainer.sae, trainer.activation_scaler.scaling_factor
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    trainer.set_final_sae_metadata()
    training = plan["training"]
    for name, value in {
        "model_name": plan["model"], "model_weights": plan["weights"], "layer": plan["layer"],
        "hook_name": f"blocks.{plan['layer']}.hook_resid_post", "activation_scale": scale or 1.0,
        "positions": plan["positions"], "states": plan["states"], "seed": training["seed"],
        "samples": trainer.n_training_samples, "entropy_probe": __version__,
    }.items():  # fmt: skip
        sae.cfg.metadata[name] = value
    sae.cfg.device = "cpu"
    written = out / CHECKPOINTS / ".writing"
    sae.save_inference_model(written)
    for name in (WEIGHTS, CONFIG):  # the configuration last: with it the dictionary is there
        remove_leftovers(out / name)
        with replacing(out / name) as temporary:
            shutil.move(written / name, temporary)
