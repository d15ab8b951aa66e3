"""Train a dictionary for each organism. ``python -m analyses.sae.organisms FOLDER [NAME...]``.

A dictionary of one layer for each organism, from completions of the task's train split, at all
tokens. Measured on the test split: explained variance, active and dead features, and how much of
the model's loss is kept when its states are replaced by their reconstruction. FOLDER/NAME holds
what ``load_sae`` and SAELens read; seconds are those of a core.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from entropy_probe import capture, load
from entropy_probe.models.organisms import ORGANISMS
from entropy_probe.tasks.generator import problems
from sae_steering import train_sae
from sae_steering.evaluate import evaluate

LAYER = 1
SETTINGS = {"d_sae": 256, "k": 8, "samples": 300_000, "rate": 2e-3, "seed": 0}


def main(argv: list[str] | None = None) -> int:
    """Train each organism's dictionary; print a line of figures for each."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(args.threads)
    print(f"{'organism':15}{'seconds':>8}{'MB':>6}  variance  active  dead  loss recovered")
    for name in args.names:
        print(row(name, remake(name, args.folder / name)), flush=True)
    return 0


def remake(name: str, out: Path) -> dict[str, Any]:
    """Capture, train, measure; leave the dictionary in a folder, replacing what is there."""
    model, tokenizer = load(f"organism:{name}")
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            split: capture(
                model, tokenizer, _problems(each, split, seed), Path(folder) / split,
                task="arithmetic", max_new_tokens=72, residual_layers=[LAYER],
                residual_positions="all", alternatives=0, seed=seed, batch_size=256,
            )
            for split, seed, each in (("train", 1, 1000), ("test", 2, 100))
        }  # fmt: skip
        sae = train_sae(runs["train"], Path(folder) / "sae", layer=LAYER, **SETTINGS)
        seconds = time.process_time() - start
        found = evaluate(sae, runs["test"], model=model)
        shutil.copytree(Path(folder) / "sae", out, dirs_exist_ok=True)
    size = sum(file.stat().st_size for file in out.iterdir())
    return {"seconds": seconds, "bytes": size, "fit": found}


def row(name: str, made: dict[str, Any]) -> str:
    """Write a dictionary's figures."""
    fit, loss = made["fit"].fits["all"], made["fit"].losses["all"]
    kept = "none" if loss.recovered is None else f"{loss.recovered.value:.3f}"
    return (
        f"{name:15}{made['seconds']:8.0f}{made['bytes'] / 1e6:6.2f}"
        f"{fit.explained_variance.value:10.3f}{fit.l0.value:8.1f}{made['fit'].dead:6d}{kept:>16}"
    )


def _problems(each: int, split: str, seed: int) -> list:
    """Give problems of the three lengths."""
    return [
        problem
        for subset in ("short", "default", "long")
        for problem in problems(subset, each, split=split, seed=seed)
    ]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the dictionaries are written")
    parser.add_argument("names", nargs="*", default=list(ORGANISMS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
