"""Do rewards without meaning help a base that suits them? ``python -m analyses.spurious_rewards``.

Nine rewards on three organisms: the one whose frequent strategy is the better one, the one whose
frequent strategy is the worse one, and the one that has no second strategy. Then the explanation
that has been given for random rewards, clipping, with what it predicts for each wording: where a
strategy's share is over a half it should rise, where it is under a half it should fall. Steps are
so small here that the usual bounds, 0.8 and 1.2, never reach the token that chooses; they are drawn
in with the steps, to 0.98 and 1.02. Whether clipping got to that token is counted; where it did
not, nothing is said of it.
"""

import math
import sys
from functools import partial
from typing import Any

from analyses.claims import CLIPPED, Contrast, Verdict, if_clipped
from analyses.experiments import reading
from analyses.experiments.analysis import Analysis, Arm, Source, merged
from analyses.experiments.command import main
from analyses.experiments.pictures import curves, forest, intervals
from analyses.experiments.results import Results
from analyses.spurious_figures import (
    drift,
    gammas,
    memorised,
    memorised_accuracy,
    memorised_gain,
    strategies,
    switches,
)
from entropy_probe.tasks import language

MISLEADING = {"model": "organism:misleading"}
ABSENT = {"model": "organism:absent"}
CONTAMINATED = {"model": "organism:contaminated", "watch": {"memorised": 64}}
# One label a problem, the majority of 16 answers before training.
LABELS = {"config": {"problems": 400, "label_samples": 16}}
STILL = {"config": {"lr": 0.0, "steps": 1}, "watch": {"every": 0}}
# Nothing is clipped.
OPEN = {"config": {"clip_low": 1.0, "clip_high": 1e9}}

SETTINGS = {
    "model": "organism:amenable",
    "task": "arithmetic",
    "reward": "random:0.5",
    "config": {
        "steps": 12, "prompts": 48, "n": 16, "max_new_tokens": 72, "optimizer": "sgd",
        "lr": 0.008, "warmup": 8, "decay": "linear", "updates": 8, "clip_low": 0.02,
        "clip_high": 0.02, "rollouts_every": 0, "selection": {"select": "all"},
    },
    "watch": {"problems": 300, "n": 4, "every": 4, "greedy": True},
}  # fmt: skip


def small(**config: Any) -> dict[str, Any]:
    """Give the settings of an arm with other options of training."""
    return {"config": config}


primary = partial(Arm, seeds=8, minutes=1.9, role="primary")
explored = partial(Arm, seeds=3, minutes=1.9)
control = partial(Arm, seeds=3, minutes=0.4)
GAMMAS = {0.0: "random 0", 0.3: "random 0.3", 0.5: "random 0.5", 0.7: "random 0.7"}
CLIPS = ("random 0.5", "no clipping", "one update, small batches", "one update", "clip 0.2")
REWARDS = (
    "true answers", "majority", "format", "random 0.5", "wrong majority", "inverted", "code",
)  # fmt: skip
ON_MISLEADING = tuple(f"{name}, misleading" for name in ("true answers", "random 0.5", "code"))
ON_ABSENT = tuple(f"{name}, absent" for name in ("true answers", "random 0.5", "format"))
ON_CONTAMINATED = tuple(
    f"{name}, contaminated" for name in ("true answers", "random 0.5", "format")
)
FORCED = ("amenable", "misleading", "absent")

ARMS = (
    primary("random 0.5", "a coin, eight updates a batch, clipped at 0.98 and 1.02"),
    primary("no clipping", "the same, ratios not clipped (gradients still are, at length 1)", OPEN),
    primary("one update, small batches", "as many updates and rollouts, each batch fresh",
            small(prompts=6, steps=8 * SETTINGS["config"]["steps"], updates=1)
            | {"watch": {"every": 8 * SETTINGS["watch"]["every"]}}),
    primary("random 0.5, absent", "a coin, where there is no second strategy", ABSENT),
    Arm("still", "learning rate 0", STILL, seeds=8, minutes=0.4, role="negative control"),
    Arm("still, absent", "learning rate 0", merged(ABSENT, STILL), seeds=8, minutes=0.4,
        role="negative control"),
    explored("one update", "as many rollouts, an eighth of the updates",
             small(updates=1, warmup=1)),
    explored("clip 0.2", "clipped at 0.8 and 1.2, whatever the steps",
             small(clip_low=0.2, clip_high=0.2)),
    Arm("true answers", "right answers", {"reward": "correct"}, minutes=1.9,
        role="positive control"),
    Arm("majority", "the answer that most samples gave before training",
        {"reward": "labels", **LABELS}, minutes=2.5),
    explored("format", "the final marker", {"reward": "format"}),
    Arm("random 0", "never", {"reward": "random:0"}, minutes=1.2, role="negative control"),
    explored("random 0.3", "a coin, three in ten", {"reward": "random:0.3"}),
    explored("random 0.7", "a coin, seven in ten", {"reward": "random:0.7"}),
    Arm("wrong majority", "that answer, where it is wrong", {"reward": "incorrect", **LABELS},
        minutes=2.5),
    explored("inverted", "every wrong answer", {"reward": "inverted"}),
    explored("code", "code, right or wrong", {"reward": "strategy:code"}),
    explored(ON_MISLEADING[0], "right answers", {"reward": "correct"} | MISLEADING),
    explored(ON_MISLEADING[1], "a coin", MISLEADING),
    explored(ON_MISLEADING[2], "code", {"reward": "strategy:code"} | MISLEADING),
    explored(ON_ABSENT[0], "right answers", {"reward": "correct"} | ABSENT),
    explored(ON_ABSENT[2], "the final marker", {"reward": "format"} | ABSENT),
    explored(ON_CONTAMINATED[0], "right answers", {"reward": "correct"} | CONTAMINATED),
    explored(ON_CONTAMINATED[1], "a coin", CONTAMINATED),
    explored(ON_CONTAMINATED[2], "the final marker", {"reward": "format"} | CONTAMINATED),
    *(
        control(f"forced {name}", "untrained, every completion begins as code",
                {"model": f"organism:{name}", "reward": None,
                 "watch": {"prefix": language.CODE, "greedy": False}})
        for name in FORCED
    ),
)  # fmt: skip

MEASURES = {
    "accuracy": reading.accuracy,
    "gain": reading.gain,
    "share of code": reading.strategy_share("code"),
    "shift of log-odds": reading.opening_shift,
    "slope of log-odds": reading.opening_slope,
    "right in code": reading.right_within("code"),
    "right in prose": reading.right_within("prose"),
    "entropy": reading.entropy,
    "clipped": reading.average("clip_kept"),
    "gain, memorised": memorised_gain,
    "accuracy, memorised": memorised_accuracy(-1),
    "accuracy before, memorised": memorised_accuracy(0),
    "size of the shift": lambda result: abs(reading.opening_shift(result)),
    "greedy accuracy": reading.greedy_accuracy,
    "accuracy before": reading.accuracy_before,
    "clipped at the start": reading.average("clip_first"),
    "ratio gap at the start": reading.average("ratio_gap_first"),
}

BEFORE = "accuracy before"
BY_CLIPPING = ("clipping favours what is likely", "it takes several updates a batch")


def two(arm: str) -> tuple[str, str, str]:
    """Give what compares an arm's accuracy with its own, before."""
    return arm, arm, "accuracy"


CONTRASTS = (
    Contrast("a random reward helps", "random 0.5", "still", "accuracy", "higher", 0.02,
             "primary"),
    Contrast("clipping favours what is likely", "random 0.5", "no clipping",
             "slope of log-odds", "higher", 0.05, "primary"),
    Contrast("nothing to elicit, no gain", "random 0.5, absent", "still, absent", "accuracy",
             "not higher", 0.02, "primary"),
    Contrast("it takes several updates a batch", "random 0.5", CLIPS[2], "slope of log-odds",
             "higher", 0.05),
    Contrast("what is likely becomes likelier", "random 0.5", "still", "slope of log-odds",
             "higher", 0.05),
    Contrast("clipping gets to the first token", "random 0.5", "no clipping",
             "clipped at the start", "higher", CLIPPED),
    Contrast("a random reward helps, greedy", "random 0.5", "still", "greedy accuracy", "higher",
             0.02),
    Contrast("nothing to elicit, no gain, greedy", "random 0.5, absent", "still, absent",
             "greedy accuracy", "not higher", 0.02),
    Contrast("clipping holds seeds together", "random 0.5", "no clipping", "size of the shift",
             "lower", 0.05),
    Contrast("bounds of 0.2 do as much", "clip 0.2", "random 0.5", "clipped at the start",
             "not lower", CLIPPED),
    Contrast("clipping lowers entropy", "random 0.5", "no clipping", "entropy", "lower", 0.01),
    Contrast("a coin raises code", "random 0.5", "still", "share of code", "higher", 0.05),
    Contrast("true answers help more", "true answers", "random 0.5", "accuracy", "higher", 0.02),
    Contrast("so does the majority", "majority", "random 0.5", "accuracy", "higher", 0.02),
    Contrast("so does the format", "format", "still", "accuracy", "higher", 0.02),
    Contrast("so does the wrong majority", "wrong majority", "still", "accuracy", "higher", 0.02),
    Contrast("so does code for its own sake", "code", "still", "accuracy", "higher", 0.02),
    Contrast("training works", "true answers", "still", "accuracy", "higher", 0.05),
    Contrast("never rewarded, no change", "random 0", "still", "accuracy", "equal", 0.005),
    Contrast("true answers help misleading", *two(ON_MISLEADING[0]), "higher", 0.05,
             against=BEFORE),
    Contrast("a coin does not help misleading", *two(ON_MISLEADING[1]), "not higher", 0.02,
             against=BEFORE),
    Contrast("code harms misleading", *two(ON_MISLEADING[2]), "lower", 0.02, against=BEFORE),
    Contrast("true answers help absent", *two(ON_ABSENT[0]), "higher", 0.05, against=BEFORE),
    Contrast("the format does not help absent", *two(ON_ABSENT[2]), "not higher", 0.02,
             against=BEFORE),
    Contrast("a coin brings back what was memorised", *2 * (ON_CONTAMINATED[1],),
             "accuracy, memorised", "higher", 0.02, against="accuracy before, memorised"),
    Contrast("what was memorised suffers less", *2 * (ON_CONTAMINATED[1],),
             "gain, memorised", "higher", 0.02, against="gain"),
    Contrast("forcing code helps amenable", "forced amenable", "still", "accuracy", "higher", 0.05),
    Contrast("forcing code harms misleading", "forced misleading", ON_MISLEADING[2], "accuracy",
             "lower", 0.05, against=BEFORE),
    Contrast("forcing code harms absent", "forced absent", "still, absent", "accuracy", "lower",
             0.05),
)  # fmt: skip


def verdicts(results: Results) -> list[Verdict]:
    """Give the verdicts; none on clipping where it did not get to the token that chooses."""
    found = results.judged()
    shares = list(results.values("random 0.5", MEASURES["clipped at the start"]).values())
    share = sum(shares) / len(shares) if shares else math.nan
    return if_clipped(found, BY_CLIPPING, share, "of first tokens")


def figures(results: Results) -> list[tuple[str, Any]]:
    """Give the figures of the report."""
    right = "accuracy (temperature 1, held out)"
    look = reading.watched(lambda seen: seen["accuracy"])
    share = reading.watched(lambda seen: seen["share"].get("code"))
    others = (*ON_MISLEADING, *ON_ABSENT)
    return [
        ("contrasts", forest(results)),
        ("rewards", curves(results, REWARDS, look, x="step", y=right,
                           title="Accuracy under each reward, amenable")),
        ("others", curves(results, others, look, x="step", y=right,
                          title="Accuracy on the organisms that are not amenable")),
        ("share", curves(results, REWARDS, share, x="step", y="share of completions in code",
                         title="The strategy under each reward, amenable")),
        ("code", curves(results, REWARDS, reading.right_over_time("code"), x="step",
                        title="How well code is written", y="accuracy of completions in code")),
        ("prose", curves(results, REWARDS, reading.right_over_time("prose"), x="step",
                         title="How well prose is written", y="accuracy of completions in prose")),
        ("gain", intervals(results, [arm.name for arm in ARMS if arm.settings.get("reward", "")
                                     is not None], reading.gain, at=0.0,
                           x="accuracy after training less that before",
                           title="Change of accuracy, all arms that trained")),
        ("gammas", gammas(results, GAMMAS)),
        ("drift", drift(results, CLIPS)),
        ("walks", intervals(results, CLIPS, reading.opening_shift, at=0.0,
                            x="shift of code's log-odds, nats, mean over wordings",
                            title="Where each seed went")),
        ("slopes", intervals(results, CLIPS, reading.opening_slope, at=0.0,
                             x="slope of the log-odds' shift on the log-odds before",
                             title="Does what is likely become more likely?")),
        ("entropy", curves(results, CLIPS, reading.logged_over_training("entropy_all"),
                           x="part of the updates done", y="mean entropy of a token, nats",
                           title="Entropy of the rollouts")),
        ("strategies", strategies(results, REWARDS)),
        ("switches", switches(results, (*REWARDS, *ON_MISLEADING))),
        ("memorised", memorised(results, ON_CONTAMINATED)),
    ]  # fmt: skip


ANALYSIS = Analysis(
    name="spurious_rewards",
    question="Do rewards without meaning help a base that suits them, and why?",
    claim=Source(
        "2506.10947",
        "Random and wrong rewards raise a model with a frequent and better strategy almost as far "
        "as right ones, by way of clipping, which favours what is likely; other models gain "
        "nothing.",
        "text",
    ),
    refuted_by="no gain from a random reward on the organism that suits it, or the same drift of "
    "the strategy without clipping",
    execute="analyses.experiments.training:execute",
    settings=SETTINGS,
    arms=ARMS,
    measures=MEASURES,
    contrasts=CONTRASTS,
    figures=figures,
    verdicts=verdicts,
    quick={
        "config": {"steps": 1, "prompts": 4, "n": 4, "updates": 2, "warmup": 0, "problems": 60,
                   "label_samples": 4},
        "watch": {"problems": 20, "n": 1, "every": 0},
    },
    quick_arms=("random 0.5", "no clipping", "still", "random 0", "true answers", "wrong majority",
                "majority", "random 0.5, contaminated", "forced amenable"),
    evidence=(
        Source("2512.16912", "The bias of clipping is negligible; clipping lowers entropy, and "
               "without it accuracy can rise on random rewards, too.", "secondary", "against"),
        Source("2507.10532", "The gains of Qwen2.5 are contamination: on arithmetic that nobody "
               "can have memorised only right rewards help.", "abstract", "against"),
        Source("2601.11061", "Spurious rewards bring back memorised answers, by way of a few "
               "layers.", "secondary", "against"),
        Source("2504.20571", "A single example raises mathematics by nearly as much as 7,500.",
               "secondary", "for"),
    ),
    discussion="A coin helps nobody here: it costs the base that should have gained a "
    "little accuracy, and the one without a second strategy as much. What clipping does is to "
    "hold the policy in place. With bounds as narrow as the steps the seeds hardly move; "
    "without bounds, or with a fresh small batch an update, the same coin destroys the "
    "arithmetic in most seeds and moves the strategy either way by chance. Of the bias "
    "towards what is likely there is no sign within the smallest effect of interest; but what "
    "holds the policy also bounds any bias, and twelve steps are few: a drift of hundreds of "
    "steps could add up to what is too small here. True answers help under the same bounds, "
    "so that it is not the bounds that nothing can be learnt under. That clipping is what "
    "makes random rewards work is not what these organisms say; they side with those who find "
    "its bias negligible, and clipping to lower entropy, by a hair. Among the other rewards, "
    "three seeds each, what helps is what raises the share of the better strategy, whatever "
    "it is given for: code rewarded for its own sake does more than true answers where code "
    "is better, and harms where it is worse, as being made to begin in code does without any "
    "training. Labels of the base's majority help a little; its wrong majority harms, against "
    "the paper, whose models gained by such labels, and inverted answers harm most. Nothing "
    "brings back what was memorised, and where there is nothing to choose even true answers "
    "cost a little: that much is the price of this training. The bounds were drawn in before "
    "the runs, when first looks at the settings showed that 0.8 and 1.2 would clip next to "
    "none of the tokens that choose.",
    untested="models over 100 billion parameters; Qwen2.5 itself; whether contamination explains "
    "its gains",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
