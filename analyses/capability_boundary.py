"""Does reinforcement widen what a model can do? ``python -m analyses.capability_boundary``.

pass@k counted twice, by right answers and by answers whose every step is valid, for a base, for
what reinforcement makes of it, and for what distillation makes of it, which is known to widen it.
Problems lie near what is trained on; further out, at the longest chains of the base's pretraining;
and far out, beyond them.
"""

import sys
from functools import partial
from typing import Any

from analyses.boundary_figures import (
    containments,
    guesses,
    histograms,
    nearly_always,
    never,
    pass_curves,
    perplexity,
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
    "evaluate": {"near": "own", "longer": "arithmetic:longer", "far": "arithmetic:hard"},
    "problems": 32,
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
    "task": "arithmetic",
    "evaluate": {"near": "arithmetic:middle", "longer": None, "far": "arithmetic:long"},
}

primary = partial(Arm, seeds=8, role="primary")
ARMS = (
    primary("base", "as it is", minutes=2.3),
    primary("trained", "reinforced on true answers", REINFORCED | {"match": ["longer"]},
            minutes=4.7),
    primary("shallow", "good at 2 and 3 steps, as it is", SHALLOW, minutes=1.0),
    primary("edge", "reinforced on 4 steps, at the edge of what it can",
            SHALLOW | REINFORCED | {"task": "arithmetic:middle"}, minutes=2.3),
    primary("distilled", "taught 5 and 6 steps by amenable's valid completions",
            SHALLOW | {"learn": "distil"}, minutes=2.8),
    Arm("inside", "reinforced on 2 and 3 steps, which it can", minutes=2.0,
        settings=SHALLOW | REINFORCED | {"task": "arithmetic:short"}),
    Arm("beyond", "reinforced on 5 and 6 steps, which it cannot", minutes=2.8,
        settings=SHALLOW | REINFORCED | {"task": "arithmetic:long"}),
)  # fmt: skip

FAR, LONGER = (f"pass@{N} by valid steps, {name}" for name in ("far", "longer"))
MATCHED = f"{LONGER}, at the base's entropy"
LOST = "never by valid steps, longer"
SURE = "right nine times in ten, near"

MEASURES = {
    "pass@1, near": solved_at(1, "near", "right"),
    f"pass@{N} by valid steps, near": solved_at(N, "near", "valid"),
    "pass@1, longer": solved_at(1, "longer", "right"),
    LONGER: solved_at(N, "longer", "valid"),
    MATCHED: solved_at(N, "longer", "valid", True),
    "pass@1, far": solved_at(1, "far", "right"),
    f"pass@{N}, far": solved_at(N, "far", "right"),
    "pass@16 by valid steps, far": solved_at(16, "far", "valid"),
    FAR: solved_at(N, "far", "valid"),
    LOST: never("longer", "valid"),
    SURE: nearly_always("near"),
    "guess rate, far": guesses("far"),
    "median perplexity under the base": lambda result: result["perplexity"]["own"][9],
}

CONTRASTS = (
    Contrast("no wider at many tries", "trained", "base", FAR, "not higher", 0.05, "primary"),
    Contrast("nor at the edge", "edge", "shallow", FAR, "not higher", 0.05, "primary"),
    Contrast("distillation widens", "distilled", "shallow", FAR, "higher", 0.05, "primary"),
    Contrast("better at one try", "trained", "base", "pass@1, near", "higher", 0.05),
    Contrast("and on longer problems", "trained", "base", "pass@1, longer", "higher", 0.05),
    Contrast("the base overtakes", "trained", "base", LONGER, "lower", 0.02),
    Contrast("no wider on longer problems at equal entropy", "trained", "base", MATCHED,
             "not higher", 0.05, against=LONGER),
    Contrast("more mass at 0", "trained", "base", LOST, "higher", 0.02),
    Contrast("more mass at 1", "trained", "base", SURE, "higher", 0.05),
    Contrast("its samples are likely ones", "trained", "base", "median perplexity under the base",
             "lower", 0.01),
    Contrast("wider from the edge than from inside", "edge", "inside", FAR, "higher", 0.05),
    Contrast("nothing from beyond", "beyond", "shallow", FAR, "equal", 0.05),
    Contrast("the edge helps at one try", "edge", "shallow", "pass@1, near", "higher", 0.01),
    # Added when the rest was known.
    Contrast("the base overtakes by answers alone", "trained", "base", f"pass@{N}, far", "lower",
             0.05),
    Contrast("distillation forgets", "distilled", "shallow", f"pass@{N} by valid steps, near",
             "lower", 0.05),
)  # fmt: skip


def figures(results: Results) -> list[tuple[str, Any]]:
    """Give the figures of the report."""
    two, shallow = ("base", "trained"), ("shallow", "inside", "edge", "beyond", "distilled")
    return [
        ("contrasts", forest(results)),
        ("near", pass_curves(results, two, "near", "Problems of 3 to 5 steps")),
        ("longer", pass_curves(results, two, "longer", "Problems of 7 and 8 steps")),
        ("far", pass_curves(results, two, "far", "Problems of 9 and 10 steps")),
        ("shallow", pass_curves(results, shallow, "far", "Problems of 5 and 6 steps", ("valid",))),
        ("shallow-near", pass_curves(results, shallow, "near", "Problems of 4 steps", ("valid",))),
        ("histograms", histograms(results, two, "near", "3 to 5 steps")),
        ("histograms-longer", histograms(results, two, "longer", "7 and 8 steps", "valid")),
        ("containment", containments(results, (
            ("trained", "base", "near"), ("trained", "base", "longer"), ("trained", "base", "far"),
            ("edge", "shallow", "near"), ("edge", "shallow", "far"),
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
    discussion="The first half of the claim is here: reinforcement makes likelier what the base "
    "does, on longer problems than it was trained on too, and its samples are ones that the base "
    "finds likely. The second half cannot be decided with these organisms. Their competence ends "
    "abruptly, at the longest chain that they were pretrained on: within it the base solves every "
    "problem in 256 tries, so that nothing can be widened, beyond it none of thousands of tries "
    "is valid, so that reinforcement there has but lucky answers to reward. That both are at 0 is "
    "no evidence of a bound. Distillation does move the boundary, and so completely that the "
    "shorter problems, which it was not shown, are forgotten. How one counts decides the rest: by "
    "final answers alone many of the far problems would seem to be solved, the base if anything "
    "ahead, though not one try is valid. (Two contrasts, of answers alone and of what distillation "
    "forgets, were added when the others were known.)",
    untested="training for thousands of steps, and models that write thousands of tokens",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
