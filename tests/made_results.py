"""Results of runs that were never run: numbers that are put in, to see them come out."""

import numpy as np

from analyses.experiments.results import Results

WORDINGS = {"compute": 2.2, "find": -0.2, "what is": -1.9}


def look(step, accuracy, share=0.5, shift=0.0, slope=0.0, rows=9):
    """Give what is seen at a step: everything that the measures read."""
    right = round(rows * accuracy)
    return {
        "step": step, "accuracy": accuracy, "entropy": 0.1, "length": 30.0,
        "share": {"code": share, "prose": 1 - share, "other": 0.0},
        "right": {"code": accuracy, "prose": accuracy / 2},
        "ways": "C" * right + "p" * (rows - right),
        "memorised": {"accuracy": accuracy}, "greedy": {"accuracy": accuracy},
        "openings": {
            name: {"logit": odds + shift + slope * odds, "share": 0.5, "problems": rows // 3}
            for name, odds in WORDINGS.items()
        },
    }  # fmt: skip


def result(accuracy, *, base=0.75, clip=0.05, **seen):
    """Give the result of a run that ended at an accuracy."""
    looks = [look(0, base), look(8, (base + accuracy) / 2, **seen), look(24, accuracy, **seen)]
    steps = [
        {"step": 1 + i, "gradient_norm": 0.4, "entropy_all": 0.1, "mask_on_forks": 0.3,
         "accuracy": accuracy, "clip_kept": 0.01, "clip_first": clip}
        for i in range(3)
    ]  # fmt: skip
    bins = [0.01 * i for i in range(20)]
    places = {"steps": [0, 8, 24], "with_first": [1, 0.9, 0.8], "with_last": [0.8, 0.9, 1]}
    return {"watched": looks, "steps": steps, "positions": places | {"change": bins, "base": bins}}


def lines(analysis, makers, *, noise=0.002, default=None):
    """Give a line a planned run: of each arm what its maker makes of a little noise.

    Args:
        analysis: what is planned.
        makers: arm -> function of noise.
        noise: its spread.
        default: the maker of all other arms.
    """
    made = []
    for run in analysis.runs():
        drawn = np.random.default_rng([run.seed, len(run.arm)]).normal(0, noise)
        maker = makers.get(run.arm, default)
        if maker is not None:
            made.append({
                "key": run.key, "arm": run.arm, "seed": run.seed, "settings": run.settings,
                "result": maker(float(drawn)), "weights": "abc", "revision": "def",
                "date": "2026-11-26", "seconds": {"cpu": 60.0, "wall": 60.0},
                "hardware": {"processor": "x"}, "libraries": {"torch": "2"},
            })  # fmt: skip
    return made


def results(analysis, makers, **options):
    """Give the same as results."""
    return Results(analysis, lines(analysis, makers, **options))
