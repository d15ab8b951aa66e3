"""Which tokens get the gradient: four selections on one organism, true answers as the reward.

``python -m analyses.organisms.masks`` trains each arm with each seed, one process a run, appends a
line with the run's provenance to the results, and skips what is there already. Then it prints a
table (means over seeds with 95% t intervals) and, with ``--page``, writes the curves as one page.

    python -m analyses.organisms.masks --page masks.html    # 4 arms, 5 seeds: half an hour
    python -m analyses.organisms.masks --arms forks --seeds 1 --steps 4 --out /tmp/quick.jsonl
"""

import argparse
import html
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from analyses.benchmarks.startup import machine
from analyses.lines import add_line, read_lines

RESULTS = Path(__file__).parents[1] / "results" / "masks.jsonl"
ARMS = {
    "forks": {"select": "forks", "fraction": 0.2},
    "all": {"select": "all"},
    "bottom": {"select": "bottom", "fraction": 0.8},
    "random": {"select": "random", "fraction": 0.2},
}
"""Name -> selection: the top 20%, every token, what the top 20% leaves, a random 20%."""
STYLES = {
    "forks": ("#0072b2", "solid"), "all": ("#000000", "dash"), "bottom": ("#d55e00", "solid"),
    "random": ("#009e73", "dot"),
}  # fmt: skip
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
    where, started, wall = machine(), time.process_time(), time.perf_counter()
    result = train(policy, tokenizer, get_task("arithmetic"), config=config)
    spent = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall}
    line = {"arm": arm, "seed": seed, "steps": steps, "machine": where, "seconds": spent}
    return line | {"log": result.log}


def key(line: dict[str, Any]) -> tuple[str, str, int, int]:
    """Give what makes a run another one."""
    return line["log"][0]["model"], line["arm"], line["seed"], line["steps"]


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
    """Give the curves of all arms, over the table, as one self-contained page."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2, cols=2, subplot_titles=list(CURVES.values()), vertical_spacing=0.13
    )
    for place, name in enumerate(CURVES):
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        for arm, (colour, dash) in STYLES.items():
            here = [one for one in runs if one["arm"] == arm]
            if not here:
                continue
            steps, values = curve(here, name)
            mean, half = interval(values)
            figure.add_scatter(
                x=[*steps, *steps[::-1]], y=[*(mean + half), *(mean - half)[::-1]], fill="toself",
                mode="lines", fillcolor=colour, opacity=0.15, line={"width": 0},
                legendgroup=arm, showlegend=False, hoverinfo="skip", **where,
            )  # fmt: skip
            figure.add_scatter(
                x=steps, y=mean, name=f"{arm} ({len(here)} seeds)", legendgroup=arm, mode="lines",
                line={"color": colour, "dash": dash}, showlegend=place == 0,
                hovertemplate="step %{x}: %{y:.3f}", **where,
            )  # fmt: skip
        figure.update_xaxes(title_text="step" if place > 1 else None, **where)
    if (own := best(runs[0]["log"][0]["model"])) is not None:
        figure.add_hline(
            y=own, line={"color": "grey", "dash": "dash", "width": 1}, row=1, col=1,
            annotation_text=f"its code strategy's own, {own:.3f}",
            annotation_position="top left",
        )  # fmt: skip
        figure.update_yaxes(autorangeoptions={"include": own + 0.02}, row=1, col=1)
    figure.update_layout(
        template="plotly_white", height=780, margin={"t": 90, "l": 60, "r": 20, "b": 50},
        legend={"orientation": "h", "y": 1.13}, font={"size": 13},
    )  # fmt: skip
    plot = figure.to_html(include_plotlyjs=True, full_html=False, div_id="masks")
    return _PAGE.format(plot=plot, table=html.escape("\n".join(table(runs))), facts=facts(runs))


def best(model: str) -> float | None:
    """Give an organism's accuracy in code, from its card; None for another model."""
    from entropy_probe.models.organisms import organism_path

    if not model.startswith("organism:"):
        return None
    card = json.loads((organism_path(model.partition(":")[2]) / "card.json").read_text())
    return card["figures"]["accuracy, code, T=1"]["value"]


def facts(runs: list[dict[str, Any]]) -> str:
    """Say what was trained and on what, in HTML."""
    about = runs[0]["log"][0]
    config = about["config"]
    said = (
        f"{about['model']} (weights {about['weights']}), task {about['task']}, reward "
        f"{about['reward']}, {config['steps']} steps of {config['prompts']} prompts x "
        f"{config['n']} completions, {config['optimizer']} at rate {config['lr']:g}, gradients "
        f"clipped at length {config['gradient_norm']:g}; evaluated on "
        f"{config['evaluate_problems']} held-out problems x {config['evaluate_n']}; begun "
        f"{about['created']}; torch {about['libraries']['torch']}"
    )
    return html.escape(said)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Gradients at four choices of tokens</title>
<meta name="viewport" content="width=device-width">
<style>body {{ font: 16px/1.5 sans-serif; max-width: 75rem; margin: 1rem auto; padding: 0 1rem }}
pre {{ overflow-x: auto; font-size: 0.8rem }} h1 {{ font-size: 1.4rem }}</style></head><body>
<h1>Gradients at four choices of tokens</h1>
<p>Lines are means over seeds, bands 95% t intervals over seeds. Each arm keeps other tokens of the
same kind of rollouts; gradients are not brought to one length.</p>
{plot}
<pre>{table}</pre>
<p>{facts}</p>
</body></html>
"""


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
    there = {key(one) for one in read_lines(options.out)}
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    missing = [
        (arm, seed)
        for arm, seed in wanted
        if (options.model, arm, seed, options.steps) not in there
    ]

    def spawn(pair: tuple[str, int]) -> None:
        command = [sys.executable, "-m", "analyses.organisms.masks", "--one", *map(str, pair)]
        command += ["--steps", str(options.steps), "--model", options.model]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | _ONE_THREAD
        )
        add_line(options.out, json.loads(done.stdout.splitlines()[-1]))
        sys.stdout.write(f"{pair[0]}, seed {pair[1]}: done\n")
        sys.stdout.flush()

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(spawn, missing))
    every = read_lines(options.out)
    runs = [one for one in every if key(one)[::3] == (options.model, options.steps)]
    sys.stdout.write("\n".join(table(runs)) + "\n")
    if options.page:
        options.page.write_text(page(runs), encoding="utf-8")
    return 0


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

if __name__ == "__main__":
    sys.exit(main())
