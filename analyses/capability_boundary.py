"""Does reinforcement widen what a model can do? ``python -m analyses.capability_boundary``.

pass@k counted twice, by right answers and by answers whose every step is valid, for a base, for
what reinforcement makes of it, and for what distillation makes of it, which is known to widen it.
"""

import sys
from functools import partial
from typing import Any

from analyses.boundary_figures import (
    containments,
    histograms,
    pass_curves,
    perplexity,
    share,
    solved_at,
)
from analyses.claims import Contrast
from analyses.experiments.analysis import Analysis, Arm, Source
from analyses.experiments.command import main
from analyses.experiments.pictures import forest
from analyses.experiments.results import Results

N = 256

SETTINGS = {
    "model": "organism:amenable",
    "task": "arithmetic",
    "evaluate": {"near": "own", "far": "arithmetic:hard"},
    "problems": 40,
    "n": N,
    "max_new_tokens": 72,
    "reward": "correct",
    "config": {
        "steps": 24, "prompts": 24, "n": 16, "max_new_tokens": 72, "optimizer": "sgd", "lr": 0.02,
        "warmup": 3, "decay": "linear", "rollouts_every": 0, "selection": {"select": "all"},
    },
    "distil": {
        "teacher": "organism:amenable", "task": "arithmetic:long", "problems": 1500,
        "steps": 150, "batch": 48, "lr": 1e-3,
    },
}  # fmt: skip
REINFORCED = {"learn": "reward"}
SHALLOW = {
    "model": "organism:shallow",
    "evaluate": {"near": "arithmetic:middle", "far": "arithmetic:long"},
}

primary = partial(Arm, seeds=8, role="primary")
ARMS = (
    primary("base", "as it is", minutes=1.8),
    primary("trained", "reinforced on true answers", REINFORCED | {"match": True}, minutes=5.0),
    primary("shallow", "good at 2 and 3 steps, as it is", SHALLOW, minutes=1.2),
    primary("edge", "reinforced on 4 steps, at the edge of what it can",
            SHALLOW | REINFORCED | {"task": "arithmetic:middle"}, minutes=2.5),
    primary("distilled", "taught 5 and 6 steps by amenable's valid completions",
            SHALLOW | {"learn": "distil"}, minutes=3.0),
    Arm("inside", "reinforced on 2 and 3 steps, which it can", minutes=2.2,
        settings=SHALLOW | REINFORCED | {"task": "arithmetic:short"}),
    Arm("beyond", "reinforced on 5 and 6 steps, which it cannot", minutes=3.0,
        settings=SHALLOW | REINFORCED | {"task": "arithmetic:long"}),
)  # fmt: skip

MEASURES = {
    "pass@1, near": solved_at(1, "near", "right"),
    f"pass@{N}, near": solved_at(N, "near", "right"),
    "pass@1, far": solved_at(1, "far", "right"),
    "pass@16 by valid steps, far": solved_at(16, "far", "valid"),
    f"pass@{N}, far": solved_at(N, "far", "right"),
    f"pass@{N} by valid steps, far": solved_at(N, "far", "valid"),
    f"pass@{N} by valid steps, far, at the base's entropy": solved_at(N, "far", "valid", True),
    "never right, far": share("never", "far"),
    "always right, near": share("always", "near"),
    "guess rate, far": lambda result: result["reach"].get("far", {}).get("guess") or 0.0,
    "median perplexity under the base": lambda result: result["perplexity"]["own"][9],
}
FAR = f"pass@{N} by valid steps, far"

CONTRASTS = (
    Contrast("no wider at many tries", "trained", "base", FAR, "not higher", 0.05, "primary"),
    Contrast("nor at the edge", "edge", "shallow", FAR, "not higher", 0.05, "primary"),
    Contrast("distillation widens", "distilled", "shallow", FAR, "higher", 0.05, "primary"),
    Contrast("better at one try", "trained", "base", "pass@1, near", "higher", 0.05),
    Contrast("the base overtakes", "trained", "base", FAR, "lower", 0.02),
    Contrast("also at equal entropy", "trained", "base", f"{FAR}, at the base's entropy",
             "not higher", 0.05, against=FAR),
    Contrast("more mass at 0", "trained", "base", "never right, far", "higher", 0.02),
    Contrast("more mass at 1", "trained", "base", "always right, near", "higher", 0.05),
    Contrast("its samples are likely ones", "trained", "base", "median perplexity under the base",
             "lower", 0.01),
    Contrast("wider from the edge than from inside", "edge", "inside", FAR, "higher", 0.05),
    Contrast("nothing from beyond", "beyond", "shallow", FAR, "equal", 0.05),
    Contrast("the edge helps at one try", "edge", "shallow", "pass@1, far", "higher", 0.01),
)  # fmt: skip


def figures(results: Results) -> list[tuple[str, Any]]:
    """Give the figures of the report."""
    two, shallow = ("base", "trained"), ("shallow", "inside", "edge", "beyond", "distilled")
    return [
        ("contrasts", forest(results)),
        ("near", pass_curves(results, two, "near", "Problems of 3 to 5 steps")),
        ("far", pass_curves(results, two, "far", "Problems of 9 and 10 steps")),
        ("shallow", pass_curves(results, shallow, "far", "Problems of 5 and 6 steps", ("valid",))),
        ("histograms", histograms(results, two, "near")),
        ("histograms-far", histograms(results, two, "far")),
        ("containment", containments(results, (
            ("trained", "base", "near"), ("trained", "base", "far"), ("edge", "shallow", "far"),
            ("inside", "shallow", "far"), ("beyond", "shallow", "far"),
            ("distilled", "shallow", "far"),
        ))),
        ("perplexity", perplexity(results, ("trained", "edge", "distilled"))),
    ]  # fmt: skip


ANALYSIS = Analysis(
    name="capability_boundary",
    question="Does reinforcement widen what a model can do, or only make it likelier?",
    claim=Source(
        "2504.13837",
        "Reinforcement on verified answers raises pass@1 and not pass@k at large k, where the base "
        "overtakes it; what the trained model solves, the base solves too; distillation widens.",
        "text",
    ),
    refuted_by="a trained model that solves clearly more problems in 256 valid tries than its base",
    execute="analyses.experiments.reach:execute",
    settings=SETTINGS,
    arms=ARMS,
    measures=MEASURES,
    contrasts=CONTRASTS,
    figures=figures,
    quick={
        "problems": 4, "n": 16, "config": {"steps": 2, "prompts": 4, "n": 4, "warmup": 0},
        "distil": {"problems": 40, "steps": 2, "batch": 8},
    },
    quick_arms=("base", "trained", "edge", "distilled"),
    evidence=(
        Source("2505.24864", "With KL, resets of the reference and long training, pass@k rises at "
               "large k too, also where the base has 0.", "secondary", "against"),
        Source("2512.07783", "In synthetic arithmetic reinforcement raises pass@128 only where "
               "pretraining left headroom and the data lie at the edge of competence.",
               "secondary", "against"),
        Source("2506.14245", "Counting only tries whose reasoning is right, trained models keep "
               "their lead at large k.", "secondary", "against"),
        Source("2507.14843", "What reinforcement can find is bounded by the base's support.",
               "secondary", "for"),
    ),
    discussion="Whether 256 tries are many depends on the problems: where the base solves all of "
    "them, nothing can be widened, and where it solves few, a sharper distribution over the same "
    "steps multiplies over the steps of a chain. Acquisition would be a step that no base sample "
    "has; a longer chain of known steps is in between.",
    untested="training for thousands of steps, and models that write thousands of tokens",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
