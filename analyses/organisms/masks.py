"""Which tokens get the gradient: four selections on one organism, true answers as the reward.

``python -m analyses.organisms.masks`` trains each arm with each seed, one process a run, appends a
line with the run's provenance to the results, and skips what is there already. Then it prints a
table (means over seeds with 95% t intervals) and writes the curves as one page.

    python -m analyses.organisms.masks     # 4 arms, 5 seeds: about half an hour
    python -m analyses.organisms.masks --arms forks --seeds 1 --steps 4 --out /tmp/quick.jsonl
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "results" / "masks.jsonl"
ARMS = {
    "forks": {"select": "forks", "fraction": 0.2},
    "all": {"select": "all"},
    "bottom": {"select": "bottom", "fraction": 0.8},
    "random": {"select": "random", "fraction": 0.2},
}
"""Name -> selection: the top 20%, every token, what the top 20% leaves, a random 20%."""
COLOURS = {"forks": "#0072b2", "all": "#000000", "bottom": "#d55e00", "random": "#009e73"}
CURVES = {
    "accuracy": "accuracy at temperature 1, held-out problems",
    "gradient_norm": "length of the gradient before clipping",
    "mask_on_forks": "share of the mask on planted forks",
    "entropy_all": "mean entropy of a token, nats",
}


def settings(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Give the configuration of one run."""
    return {
        "steps": steps, "prompts": 32, "n": 16, "max_new_tokens": 72, "optimizer": "sgd",
        "lr": 0.01, "warmup": 5, "decay": "linear", "evaluate_every": 8, "evaluate_problems": 400,
        "evaluate_n": 4, "rollouts_every": 0, "seed": seed, "selection": ARMS[arm],
    }  # fmt: skip


def run(model: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one arm with one seed in this process; give its line of the results."""
    import torch

    from entropy_probe import load
    from entropy_probe.tasks import get_task
    from entropy_probe.training.config import TrainConfig
    from entropy_probe.training.trainer import train

    torch.set_num_threads(1)
    config = TrainConfig.from_dict(settings(arm, seed, steps))
    policy, tokenizer = load(model, device="cpu")
    started, wall = time.process_time(), time.perf_counter()
    result = train(policy, tokenizer, get_task("arithmetic"), config=config)
    spent = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall}
    return {"arm": arm, "seed": seed, "steps": steps, "seconds": spent, "log": result.log}


def read(path: Path) -> list[dict[str, Any]]:
    """Give the runs that are there; a line that was cut off is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def curve(runs: list[dict[str, Any]], name: str) -> tuple[list[int], np.ndarray]:
    """Give steps, and values [seeds steps] of a logged number."""
    kind = "evaluation" if name == "accuracy" else "step"
    each = [{e["step"]: e[name] for e in one["log"] if e["kind"] == kind} for one in runs]
    steps = sorted(each[0])
    return steps, np.array([[values[step] for step in steps] for values in each], dtype=float)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give mean and half a 95% t interval over seeds (NaN with a single one)."""
    from scipy.stats import t

    count = len(values)
    if count == 1:
        return values[0], np.full(values.shape[1], np.nan)
    half = t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), half


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Give a line an arm: what it reached, and what it trained on."""
    lines = [
        "arm     seeds  accuracy before  after (95% t)           gradient norm  mask on planted "
        "forks: first step, all  cpu s a run"
    ]
    for arm in ARMS:
        here = [one for one in runs if one["arm"] == arm]
        if not here:
            continue
        mean, half = interval(curve(here, "accuracy")[1])
        norm, on = curve(here, "gradient_norm")[1], curve(here, "mask_on_forks")[1]
        cpu = np.mean([one["seconds"]["cpu"] for one in here])
        lines.append(
            f"{arm:8}{len(here):5}  {mean[0]:15.3f}  {mean[-1]:.3f} ({mean[-1] - half[-1]:.3f} to "
            f"{mean[-1] + half[-1]:.3f})  {np.nanmean(norm):13.2f}  {np.nanmean(on[:, 0]):17.3f}"
            f"{np.nanmean(on):18.3f}{cpu:14.0f}"
        )
    return lines


def page(runs: list[dict[str, Any]]) -> str:
    """Give the curves of all arms as one self-contained page."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, subplot_titles=list(CURVES.values()))
    for place, name in enumerate(CURVES):
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        for arm, colour in COLOURS.items():
            here = [one for one in runs if one["arm"] == arm]
            if not here:
                continue
            steps, values = curve(here, name)
            mean, half = interval(values)
            line = {"color": colour, "dash": "dot" if arm == "random" else "solid"}
            figure.add_scatter(
                x=steps, y=mean, name=f"{arm} ({len(here)} seeds)", legendgroup=arm, line=line,
                showlegend=place == 0, mode="lines", **where,
            )  # fmt: skip
            figure.add_scatter(
                x=[*steps, *steps[::-1]], y=[*(mean + half), *(mean - half)[::-1]], fill="toself",
                fillcolor=colour, opacity=0.15, line={"width": 0}, legendgroup=arm,
                showlegend=False, hoverinfo="skip", **where,
            )  # fmt: skip
        figure.update_xaxes(title_text="step", **where)
    title = "True-answer reward, gradients at four choices of tokens; bands: 95% t over seeds"
    figure.update_layout(template="plotly_white", title=title, height=850)
    return figure.to_html(include_plotlyjs=True, full_html=True, div_id="masks")


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="organism:amenable")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="where the curves go, as HTML")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        arm, seed = options.one
        sys.stdout.write(json.dumps(run(options.model, arm, int(seed), options.steps)) + "\n")
        return 0
    there = {(one["arm"], one["seed"], one["steps"]) for one in read(options.out)}
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    missing = [pair for pair in wanted if (*pair, options.steps) not in there]

    def spawn(pair: tuple[str, int]) -> None:
        command = [sys.executable, "-m", "analyses.organisms.masks", "--one", *map(str, pair)]
        command += ["--steps", str(options.steps), "--model", options.model]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | _ONE_THREAD
        )
        append(options.out, json.loads(done.stdout.splitlines()[-1]))
        sys.stdout.write(f"{pair[0]}, seed {pair[1]}: done\n")
        sys.stdout.flush()

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(spawn, missing))
    runs = [one for one in read(options.out) if one["steps"] == options.steps]
    sys.stdout.write("\n".join(table(runs)) + "\n")
    if options.page:
        options.page.write_text(page(runs))
    return 0


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

if __name__ == "__main__":
    sys.exit(main())
