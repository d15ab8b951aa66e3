"""Is there a rate at which a coin moves the strategy and spares the arithmetic?

``python -m analyses.experiments.regime`` trains `organism:amenable` on a random reward, with eight
clipped updates a batch, at several rates and batch sizes, with seeds that no analysis uses. The
settings of `analyses.spurious_rewards` are chosen from its table; a line a run is kept in
analyses/results/regime.jsonl, and a second call goes on.
"""

import argparse
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from analyses.lines import Lines
from analyses.spurious_rewards import SETTINGS

from . import reading
from .analysis import merged
from .command import RESULTS
from .runner import compute_here

SEEDS = (900, 901)
GRID = {
    "sgd 0.002, 24 prompts": {"lr": 0.002},
    "sgd 0.004, 24 prompts": {"lr": 0.004},
    "sgd 0.008, 24 prompts": {"lr": 0.008},
    "adamw 2e-5, 24 prompts": {"optimizer": "adamw", "lr": 2e-5},
    "adamw 5e-5, 24 prompts": {"optimizer": "adamw", "lr": 5e-5},
    "sgd 0.008, 64 prompts": {"lr": 0.008, "prompts": 64},
    "adamw 5e-5, 64 prompts": {"optimizer": "adamw", "lr": 5e-5, "prompts": 64},
    "sgd 0.008, 48 prompts, 14 steps": {"lr": 0.008, "prompts": 48, "steps": 14},
}
"""Options of training laid over those of the analysis' first arm."""
COMMON = {
    "steps": 20, "prompts": 24, "optimizer": "sgd", "warmup": 8, "decay": "linear",
    "clip_low": 0.2, "clip_high": 0.2,
}  # fmt: skip
WATCH = {"every": 5, "greedy": False}


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, and print the table."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    lines = Lines(options.results)
    wanted = [(name, seed) for seed in SEEDS[: options.seeds] for name in options.only or GRID]

    def one(job: tuple[str, int]) -> None:
        lines.get(f"{job[0]}, seed {job[1]}", lambda: run(*job))

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(one, wanted))
    print("\n".join(row(key, line) for key, line in lines.found.items()))
    return 0


def run(name: str, seed: int) -> dict[str, Any]:
    """Train once, and give what came of it, with its settings and what it was computed with."""
    config = COMMON | GRID[name]
    settings = merged(SETTINGS, {"seed": seed, "config": config, "watch": WATCH})
    return {"settings": settings, **compute_here("analyses.experiments.training:execute", settings)}


def row(key: str, line: Mapping[str, Any]) -> str:
    """Write a run as one line of the table: what was at each look, and what moved."""
    result = line["result"]
    looks = result["watched"]

    def each(read: Any) -> str:
        return " ".join(f"{read(look):.3f}" for look in looks)

    return (
        f"{key:32} right {each(lambda look: look['accuracy'])}"
        f"  code {each(lambda look: look['share']['code'])}"
        f"  right in code {each(lambda look: look['right'].get('code', reading.NAN))}"
        f"  slope {reading.opening_slope(result):+.3f}"
        f"  shift {reading.opening_shift(result):+.3f}"
        f"  clipped {reading.average('clip_kept')(result):.4f}"
        f"  {line['seconds']['cpu']:.0f} s"
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GRID, metavar="NAME", help="of the grid")
    parser.add_argument("--seeds", type=int, default=1, help=f"of {SEEDS}, how many")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--results", type=Path, default=RESULTS / "regime.jsonl")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
