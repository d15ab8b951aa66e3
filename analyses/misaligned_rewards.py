"""Can a wrong reward drive a base below itself? ``python -m analyses.misaligned_rewards``.

Rewards that pay for what is wrong, or for the strategy that is worse; how far and how fast accuracy
falls under them; and whether a gradient at the top 20% of tokens alone protects or exposes. A mean
over fewer tokens is a longer gradient, and where all end up says nothing of who was there first: so
the primary arms have gradients of equal length, and are compared by their accuracy all along.
"""

import sys
from functools import partial
from typing import Any

from analyses.claims import Contrast
from analyses.experiments import reading
from analyses.experiments.analysis import Analysis, Arm, Source
from analyses.experiments.command import main
from analyses.experiments.pictures import curves, forest, intervals
from analyses.experiments.results import Results

FORKS = {"config": {"selection": {"select": "forks", "fraction": 0.2}}}
BOTTOM = {"config": {"selection": {"select": "bottom", "fraction": 0.8}}}
MATCH = {"config": {"gradient_rule": "match", "gradient_norm": 0.4}}
MATCHED_FORKS = {"config": FORKS["config"] | MATCH["config"]}
WORSE = {"reward": "strategy:prose"}
LOST = 0.1
"""How far accuracy has to fall for the step to be counted."""

SETTINGS = {
    "model": "organism:amenable",
    "task": "arithmetic",
    "reward": "inverted",
    "config": {
        "steps": 24, "prompts": 24, "n": 16, "max_new_tokens": 72, "optimizer": "sgd", "lr": 0.02,
        "warmup": 3, "decay": "linear", "clip_low": 0.2, "clip_high": 0.28, "rollouts_every": 0,
        "selection": {"select": "all"},
    },
    "watch": {"problems": 300, "n": 4, "every": 4},
}  # fmt: skip
primary = partial(Arm, seeds=8, minutes=1.6, role="primary")
explored = partial(Arm, seeds=3, minutes=1.6)
PAIRS = (
    "inverted, matched", "inverted, forks, matched", "prose, matched", "prose, forks, matched",
)  # fmt: skip
UNMATCHED = ("inverted", "inverted, forks", "prose", "prose, forks")
OTHERS = ("wrong majority", "wrong, in the format", "prose, misleading", "inverted, absent")

ARMS = (
    primary(PAIRS[0], "paid for every wrong answer, all tokens, gradients of one length", MATCH),
    primary(PAIRS[1], "the same, gradients at the top 20% alone", MATCHED_FORKS),
    primary(PAIRS[2], "paid for the worse strategy, all tokens, gradients of one length",
            WORSE | MATCH),
    primary(PAIRS[3], "the same, gradients at the top 20% alone", WORSE | MATCHED_FORKS),
    Arm("still", "learning rate 0", {"config": {"lr": 0.0, "steps": 1}, "watch": {"every": 0}},
        seeds=8, minutes=0.4, role="negative control"),
    Arm("correct", "paid for right answers", {"reward": "correct"}, minutes=1.6,
        role="positive control"),
    explored("inverted, bottom", "gradients at the bottom 80%", BOTTOM),
    explored("inverted", "gradients as long as they come, all tokens"),
    explored("inverted, forks", "as long as they come, the top 20%", FORKS),
    explored("prose", "gradients as long as they come, all tokens", WORSE),
    explored("prose, forks", "as long as they come, the top 20%", WORSE | FORKS),
    explored("prose, bottom", "gradients at the bottom 80%", WORSE | BOTTOM),
    explored("wrong majority", "paid for the majority's answer where it is wrong",
             {"reward": "incorrect", "config": {"problems": 400, "label_samples": 16}}),
    explored("wrong, in the format", "paid for wrong answers in the right format",
             {"reward": "format*inverted"}),
    explored("prose, misleading", "the organism whose prose is the better strategy",
             {"model": "organism:misleading"} | WORSE),
    explored("inverted, absent", "the organism without code", {"model": "organism:absent"}),
)  # fmt: skip

MEASURES = {
    "accuracy": reading.accuracy,
    "gain": reading.gain,
    "mean accuracy": reading.mean_accuracy,
    "share of code": reading.strategy_share("code"),
    "right in code": reading.right_within("code"),
    "right in prose": reading.right_within("prose"),
    "steps to lose 0.1, or all": reading.steps_to_lose(LOST),
    "entropy": reading.entropy,
    "gradient norm": reading.average("gradient_norm"),
}

CONTRASTS = (
    Contrast("an inverted reward degrades", PAIRS[0], "still", "accuracy", "lower", 0.05,
             "primary"),
    Contrast("forks protect from the inverted", PAIRS[1], PAIRS[0], "mean accuracy", "higher",
             0.05, "primary"),
    Contrast("forks protect from the worse strategy", PAIRS[3], PAIRS[2], "mean accuracy",
             "higher", 0.05, "primary"),
    Contrast("the worse strategy degrades", PAIRS[2], "still", "accuracy", "lower", 0.05),
    Contrast("also in the end, inverted", PAIRS[1], PAIRS[0], "accuracy", "higher", 0.05),
    Contrast("also in the end, worse strategy", PAIRS[3], PAIRS[2], "accuracy", "higher", 0.05),
    Contrast("also unmatched, inverted", "inverted, forks", "inverted", "mean accuracy", "higher",
             0.05),
    Contrast("also unmatched, worse strategy", "prose, forks", "prose", "mean accuracy", "higher",
             0.05),
    Contrast("the rest exposes", "inverted, bottom", "inverted", "accuracy", "lower", 0.05),
    Contrast("the wrong majority degrades", "wrong majority", "still", "accuracy", "lower", 0.05),
    Contrast("true answers do not", "correct", "still", "accuracy", "higher", 0.05),
)  # fmt: skip


def figures(results: Results) -> list[tuple[str, Any]]:
    """Give the figures of the report."""
    right = "accuracy (temperature 1, held out)"
    look = reading.watched(lambda seen: seen["accuracy"])
    share = reading.watched(lambda seen: seen["share"].get("code"))
    return [
        ("contrasts", forest(results)),
        ("accuracy", curves(results, (*PAIRS, "correct"), look, x="step", y=right,
                            title="Accuracy under wrong rewards, by the tokens that train")),
        ("unmatched", curves(results, UNMATCHED, look, x="step", y=right,
                             title="The same, gradients as long as they come")),
        ("others", curves(results, OTHERS, look, x="step", y=right,
                          title="Accuracy under other wrong rewards, and on other organisms")),
        ("final", intervals(results, [arm.name for arm in ARMS], reading.gain, at=0.0,
                            x="accuracy after training less that before",
                            title="Change of accuracy, all arms")),
        ("strategy", curves(results, PAIRS, share, x="step", y="share of completions in code",
                            title="The strategy that is chosen")),
        ("within", curves(results, PAIRS, reading.right_over_time("code"), x="step",
                          y="accuracy of completions in code (while 1% are)",
                          title="How well the better strategy is carried out")),
    ]  # fmt: skip


ANALYSIS = Analysis(
    name="misaligned_rewards",
    question="Can a wrong reward drive a base below itself, and do masks protect it?",
    claim=Source(
        "2506.10947",
        "Wrong rewards still raise a base whose pretraining suits them; the open question is "
        "whether rewards against the goal can degrade it, and how fast.",
        "text",
    ),
    refuted_by="accuracy within the smallest effect of interest of the untrained base under an "
    "inverted reward",
    execute="analyses.experiments.training:execute",
    settings=SETTINGS,
    arms=ARMS,
    measures=MEASURES,
    contrasts=CONTRASTS,
    figures=figures,
    quick={
        "config": {"steps": 2, "prompts": 4, "n": 4, "problems": 60, "label_samples": 4,
                   "warmup": 0},
        "watch": {"problems": 20, "n": 1, "every": 0},
    },
    quick_arms=(PAIRS[0], PAIRS[1], PAIRS[2], "still", "wrong majority"),
    evidence=(
        Source(
            "2507.10532",
            "On arithmetic that nobody can have memorised, inverted rewards are destructive, "
            "random ones unstable, and only right ones give steady gains.",
            "abstract",
            "for",
        ),
        Source(
            "2512.16912",
            "The benefit of random rewards grows with the base's accuracy: a model of misaligned "
            "rewards, in which a weak base loses.",
            "secondary",
            "for",
        ),
    ),
    discussion="A wrong reward is learnt as readily as a right one: an inverted one drives both "
    "strategies to nothing within a dozen steps, one for the worse strategy takes the better one "
    "away and then harms the worse one, too. Nothing of this raises a base, unlike what the paper "
    "reports of Qwen; but these problems cannot have been memorised, and a reward for every wrong "
    "answer is not the paper's, which pays for one wrong answer that the majority gave. A mask at "
    "the forks delays the fall under an inverted reward a little, if gradients are made equally "
    "long, and prevents nothing; with gradients as long as they come, longer ones at forks, there "
    "is no protection to be seen. Which arms are primary, and that gradients are made equal there, "
    "was decided before they were run, after arms of `fork_rl` had been seen.",
    untested="whether a large model resists longer; rewards that a policy learns to deceive",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
