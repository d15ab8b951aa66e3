"""Training a sparse autoencoder, ours against SAELens' own runner: activations a second, memory.

One model, the same rows of tokens, the same autoencoder, batches and number of steps; every way in
a fresh process, imports and loading the model not timed. From the disk: ours from a run's states,
SAELens' runner from its own cache of activations. With the model: a pass over the rows that makes
the states, and training on them. Rows are packed to one length without padding, since that is
what the runner takes. Both use SAELens' trainer; what differs is where states come from and how
they are shuffled: ours by one permutation of all states, the runner's in a mixing buffer of 65,536.

    python -m analyses.benchmarks.sae
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL, LAYER, HOOK = "organism:amenable", 1, "model.layers.1"
LENGTH, D_SAE, K, BATCH = 64, 512, 16, 4096
TOGETHER = 64
"""Rows that a pass of the model takes; their number is a multiple of it."""
MIXED = 65_536
"""States in SAELens' mixing buffer, whose setting counts in rows of LENGTH."""
WAYS = {
    "ours": "ours, from disk",
    "cached": "SAELens, from disk",
    "ours+model": "ours, with the model",
    "runner": "SAELens, with the model",
}
ROWS, RUN, CACHE, HELD_OUT = "rows.pt", "run", "cache", "held-out"


def main(argv: list[str] | None = None) -> int:
    """Make the rows and the states, then time every way; print a table."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    if args.one:
        print(json.dumps(_one(args.one, args)))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        _fresh("prepare", folder, args)
        _report({way: [_fresh(way, folder, args) for _ in range(args.repeats)] for way in WAYS})
    return 0


def _one(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Do one thing in this process."""
    from analyses.benchmarks.machine import pin

    pin(args.threads)
    if way == "prepare":
        prepare(args.folder, args.problems)
        return {}
    make = {"ours": ours, "ours+model": ours_with_model}.get(way, saelens)
    return _timed(make, args.folder, args.passes, way)


def prepare(folder: Path, count: int) -> None:
    """Sample completions, pack them; write rows, our states, and SAELens' cache of the same."""
    import torch

    from entropy_probe import capture, load, sample
    from entropy_probe.storage.saving import save_run
    from entropy_probe.tasks.generator import problems

    model, tokenizer = load(MODEL)
    found = problems("default", count, split="train", seed=1)
    made = sample(
        model, tokenizer, [p.prompt for p in found], n=2, max_new_tokens=72, alternatives=0,
        batch_size=512,
    )  # fmt: skip
    real = torch.arange(made.tokens.shape[1]) < (made.prompt_lengths + made.valid.sum(1))[:, None]
    flat = made.tokens[real]
    whole = TOGETHER * LENGTH
    torch.save(flat[: len(flat) // whole * whole].view(-1, LENGTH), folder / ROWS)
    save_run(_states(model, tokenizer, torch.load(folder / ROWS)), folder / RUN)
    other = problems("default", 300, split="test", seed=2)
    capture(
        model, tokenizer, other, folder / HELD_OUT, task="arithmetic", max_new_tokens=72,
        residual_layers=[LAYER], residual_positions="all", alternatives=0, batch_size=256,
    )  # fmt: skip
    _cache(folder)


def ours(folder: Path, out: Path, passes: int) -> tuple[int, Callable[[], object]]:
    """Train on the states of a run."""
    from sae_steering import train_sae
    from sae_steering.store import StateStore

    samples = passes * len(StateStore(folder / RUN)) // BATCH * BATCH
    return samples, lambda: train_sae(folder / RUN, out, samples=samples, **_settings())


def ours_with_model(folder: Path, out: Path, passes: int) -> tuple[int, Callable[[], object]]:
    """Make the states by a pass through the model, write them, and train on them."""
    import torch

    from entropy_probe import load
    from entropy_probe.storage.saving import save_run
    from sae_steering import train_sae

    model, tokenizer = load(MODEL)
    rows = torch.load(folder / ROWS)
    samples = passes * rows[:, 1:].numel() // BATCH * BATCH

    def run() -> None:
        states = save_run(_states(model, tokenizer, rows), out.with_name("states"))
        train_sae(states, out, samples=samples, **_settings())

    return samples, run


def saelens(
    folder: Path, out: Path, passes: int, *, cached: bool
) -> tuple[int, Callable[[], object]]:
    """Train with SAELens' runner, from its cache or with the model."""
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    rows = _rows(folder)
    samples = passes * len(rows) * LENGTH // BATCH * BATCH
    steps = samples // BATCH
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(
            d_in=128, d_sae=D_SAE, k=K, normalize_activations="expected_average_only_in"
        ),
        model_name=_folder_of_model(), model_class_name="AutoModelForCausalLM", hook_name=HOOK,
        context_size=LENGTH, training_tokens=samples, train_batch_size_tokens=BATCH,
        store_batch_size_prompts=TOGETHER, n_batches_in_buffer=MIXED // LENGTH,
        n_batches_for_norm_estimate=4, lr=1e-3, lr_end=1e-5, lr_warm_up_steps=steps // 50,
        lr_decay_steps=steps // 3, use_cached_activations=cached,
        cached_activations_path=str(folder / CACHE), output_path=str(out), checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False), prepend_bos=False, verbose=False,
    )  # fmt: skip
    return samples, LanguageModelSAETrainingRunner(config, override_dataset=rows).run


def _timed(make: Callable, folder: Path, passes: int, way: str) -> dict[str, Any]:
    """Time one way and say how good what it trained is."""
    import sae_lens.config  # noqa: F401 - neither side's import is timed

    from analyses.benchmarks.machine import watching_peak
    from sae_steering import load_sae
    from sae_steering.evaluate import evaluate

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch) / "sae"
        options = {"cached": way == "cached"} if make is saelens else {}
        samples, run = make(folder, out, passes, **options)
        with watching_peak() as risen:
            start, busy = time.perf_counter(), time.process_time()
            run()
            seconds, cpu = time.perf_counter() - start, time.process_time() - busy
            extra = risen()
        sae = load_sae(out)
        fit = evaluate(sae, folder / HELD_OUT).fits["all"].explained_variance.value
    return {
        "samples": samples, "seconds": seconds, "cpu": cpu, "extra_mb": extra, "explained": fit,
    }  # fmt: skip


def _settings() -> dict[str, Any]:
    return {"layer": LAYER, "d_sae": D_SAE, "k": K, "batch_size": BATCH, "rate": 1e-3}


def _states(model, tokenizer, rows):
    """Give the record of rows, with the states that predict all tokens but the first."""
    import torch

    from entropy_probe import score

    valid = torch.ones_like(rows, dtype=torch.bool)
    valid[:, 0] = False
    return score(
        model, tokenizer, rows, valid, residual_layers=[LAYER], residual_positions="all",
        alternatives=0, batch_size=TOGETHER,
    )  # fmt: skip


def _rows(folder: Path):
    """Give the rows as SAELens takes them."""
    import torch
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": torch.load(folder / ROWS).tolist()})


def _cache(folder: Path) -> None:
    """Write SAELens' cache of the rows' activations.

    Its runner fills whole buffers, with the rows again and again: one is made as large as they are.
    """
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    rows = _rows(folder)
    states = len(rows) * LENGTH
    config = CacheActivationsRunnerConfig(
        dataset_path="rows", model_name=_folder_of_model(), model_batch_size=TOGETHER,
        hook_name=HOOK, d_in=128, training_tokens=states, context_size=LENGTH, device="cpu",
        buffer_size_gb=(states + 1) * 128 * 4 / 1e9,
        model_class_name="AutoModelForCausalLM", new_cached_activations_path=str(folder / CACHE),
        prepend_bos=False,
    )  # fmt: skip
    CacheActivationsRunner(config, override_dataset=rows).run()


def _folder_of_model() -> str:
    """Give the folder of the model's files, which SAELens loads by transformers."""
    from entropy_probe.models.organisms import organism_path

    return str(organism_path(MODEL.partition(":")[2]))


def _report(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print a table of the ways, and ours beside SAELens'."""
    print(f"{MODEL}, layer {LAYER}: {D_SAE} features, top {K}, batches of {BATCH}")
    names = ("states", "median s", "CPU s", "states/s", "extra MB", "variance")
    print(f"{'':25}{''.join(f'{name:>10}' for name in names)}")
    rates, busy = {}, {}
    for way, runs in found.items():
        states = runs[0]["samples"]
        seconds, cpu, extra, fit = (
            statistics.median(run[name] for run in runs)
            for name in ("seconds", "cpu", "extra_mb", "explained")
        )
        rates[way], busy[way] = states / seconds, states / cpu
        print(
            f"{WAYS[way]:25}{states:10d}{seconds:10.2f}{cpu:10.2f}{rates[way]:10.0f}"
            f"{extra:10.0f}{fit:10.3f}"
        )
    for one, other, where in (
        ("ours", "cached", "from disk"), ("ours+model", "runner", "with the model"),
    ):  # fmt: skip
        print(
            f"{where}: ours has {rates[one] / rates[other]:.2f}x the states/s of SAELens' runner, "
            f"{busy[one] / busy[other]:.2f}x those of a CPU second"
        )


def _fresh(way: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Do one thing in a process of its own."""
    command = [
        sys.executable, "-m", "analyses.benchmarks.sae", folder, "--one", way,
        "--passes", str(args.passes), "--threads", str(args.threads),
        "--problems", str(args.problems),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-3000:]}")
    print(f"{way} is done", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where scratch files may lie")
    parser.add_argument("--problems", type=int, default=2000, help="two completions of each")
    parser.add_argument("--passes", type=int, default=2, help="over the states")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=["prepare", *WAYS], help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
