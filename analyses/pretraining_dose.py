"""How much of a habit must pretraining plant? ``python -m analyses.pretraining_dose``.

The pretraining of an organism that has never seen code goes on with a share of code in its corpus,
with every intermediate result written or with every second one; then three rewards are tried. Each
dose is pretrained twice, which is kept in runs/doses, and the seeds take the two in turn: intervals
are over reinforcement, and contrasts of one pretraining at a time say how much hangs on which.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from analyses.claims import CONTRADICTED, NOT_SHOWN, SHOWN, Contrast, Verdict, if_clipped
from analyses.experiments.analysis import Analysis, Arm, Source
from analyses.experiments.command import main
from analyses.experiments.pictures import add_band, forest, framed, over_seeds
from analyses.experiments.results import Results

DOSES = (0, 1, 10, 50)
"""Share of code in the corpus, in percent."""
WRITTEN, SKIPPED = "steps written", "steps skipped"
BLOCKS = {WRITTEN: 1, SKIPPED: 2}

RL = {
    "steps": 16, "prompts": 16, "n": 16, "max_new_tokens": 72, "optimizer": "sgd", "lr": 0.02,
    "warmup": 3, "decay": "linear", "rollouts_every": 0, "selection": {"select": "all"},
}  # fmt: skip
# Without several updates a batch there is nothing to clip, and a coin has no effect on average;
# nor has it where the bounds are wider than the steps.
COIN = RL | {"lr": 0.002, "updates": 8, "warmup": 8, "clip_low": 0.002, "clip_high": 0.002}

SETTINGS = {
    "task": "arithmetic",
    "start": "absent",
    "dose": 0.0,
    "block": 1,
    "max_new_tokens": 72,
    "pretraining": {"steps": 1200, "batch": 64, "rate": 2e-3, "warmup": 100},
    "pretrainings": 2,
    "keep": True,
    "rewards": {
        "true": {"reward": "correct", "config": RL},
        "random": {"reward": "random:0.5", "config": COIN},
        "inverted": {"reward": "inverted", "config": RL},
    },
    "watch": {"problems": 300, "n": 4},
}
REWARDS = tuple(SETTINGS["rewards"])


def dosed(percent: int, steps: str = WRITTEN, *, primary: bool = False) -> Arm:
    """Give the arm of a dose; its minutes have a share of its two pretrainings in them."""
    settings = {"dose": percent / 100, "block": BLOCKS[steps]}
    name = f"{percent}%, {steps}" if percent else f"{percent}%"
    seeds, role = (8, "primary") if primary else (4, "exploratory")
    minutes = round(2.0 + 11.0 * SETTINGS["pretrainings"] / seeds, 1)
    about = f"{percent}% of the corpus is code, {steps}"
    return Arm(name, about, settings, seeds=seeds, minutes=minutes, role=role)


ARMS = (
    dosed(0, primary=True),
    dosed(50, primary=True),
    dosed(50, SKIPPED, primary=True),
    dosed(1),
    dosed(10),
)
NONE, HALF, BARE, ONE, TEN = (arm.name for arm in ARMS)


def gain(reward: str) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads the gain in accuracy under a reward, on the same problems and noise."""

    def read(result: Mapping[str, Any]) -> float:
        after = result["after"].get(reward)
        return math.nan if after is None else after["accuracy"] - result["before"]["accuracy"]

    return read


def after(reward: str) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads the accuracy after a reward."""

    def read(result: Mapping[str, Any]) -> float:
        seen = result["after"].get(reward)
        return math.nan if seen is None else seen["accuracy"]

    return read


def of_pretraining(number: int, read: Callable) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads a number of the runs from one pretraining alone; NaN for others."""
    return lambda result: read(result) if result["pretraining"] == number else math.nan


def clipped(result: Mapping[str, Any]) -> float:
    """Give the share of first tokens that were clipped under the coin, over all updates."""
    found = [step["clip_first"] for step in result["steps"].get("random", ())]
    return float(np.mean(found)) if found else math.nan


def code(what: str, reward: str | None = None) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads the "share" of code, or how often it is "right", before or after a reward."""

    def read(result: Mapping[str, Any]) -> float:
        seen = result["after"].get(reward) if reward else result["before"]
        return math.nan if seen is None else seen[what].get("code", math.nan)

    return read


MEASURES = {
    "accuracy before": lambda result: result["before"]["accuracy"],
    "share of code before": code("share"),
    "right in code before": code("right"),
    "right in prose before": lambda result: result["before"]["right"].get("prose", math.nan),
    **{f"accuracy, {name}": after(name) for name in REWARDS},
    **{f"gain, {name}": gain(name) for name in REWARDS},
    **{f"share of code, {name}": code("share", name) for name in REWARDS},
    "clipped at the start, random": clipped,
    **{
        f"gain, true, pretraining {number + 1}": of_pretraining(number, gain("true"))
        for number in range(SETTINGS["pretrainings"])
    },
}

BEFORE = "accuracy before"
HELPS, MORE = "a coin helps where there is a habit", "a habit makes truth help more"
SELECTED = "written steps are what is selected"
CONTRASTS = (
    Contrast(HELPS, HALF, HALF, "accuracy, random", "higher", 0.02, "primary", against=BEFORE),
    Contrast(MORE, HALF, NONE, "gain, true", "higher", 0.05, "primary"),
    Contrast(SELECTED, HALF, BARE, "gain, true", "higher", 0.05, "primary"),
    Contrast("more than without a habit", HALF, NONE, "gain, random", "higher", 0.02),
    Contrast("a coin helps without a habit", NONE, NONE, "accuracy, random", "higher", 0.02,
             against=BEFORE),
    Contrast("a coin helps at 10%", TEN, TEN, "accuracy, random", "higher", 0.02, against=BEFORE),
    Contrast("inverted rewards help", HALF, HALF, "accuracy, inverted", "higher", 0.02,
             against=BEFORE),
    Contrast("truth helps where there is a habit", HALF, HALF, "accuracy, true", "higher", 0.05,
             against=BEFORE),
    Contrast("truth helps without a habit", NONE, NONE, "accuracy, true", "higher", 0.05,
             against=BEFORE),
    Contrast("truth helps more at 10%", TEN, NONE, "gain, true", "higher", 0.05),
    Contrast("1% is enough for truth", ONE, NONE, "gain, true", "higher", 0.05),
    Contrast("code is the better strategy", HALF, HALF, "right in code before", "higher", 0.05,
             against="right in prose before"),
    Contrast("code is better also without steps", BARE, BARE, "right in code before", "higher",
             0.05, against="right in prose before"),
    Contrast("the habit is learnt better at 50%", HALF, TEN, "right in code before", "higher", 0.1),
    *(
        Contrast(f"{name}, pretraining {number + 1}", HALF, other,
                 f"gain, true, pretraining {number + 1}", "higher", 0.05)
        for name, other in ((MORE, NONE), (SELECTED, BARE))
        for number in range(SETTINGS["pretrainings"])
    ),
)  # fmt: skip


def verdicts(results: Results) -> list[Verdict]:
    """Give the verdicts: of a coin none without clipping, of a habit those both pretrainings bear.

    Eight seeds stand on two pretrainings, which their interval knows nothing of.
    """
    shares = list(results.values(HALF, clipped).values())
    share = sum(shares) / len(shares) if shares else math.nan
    found = if_clipped(results.judged(), [HELPS], share, "of first tokens")
    alone = {v.contrast.name: v.difference for v in found if v.difference is not None}
    decided = []
    for verdict in found:
        name = verdict.contrast.name
        each = [alone.get(f"{name}, pretraining {n + 1}") for n in range(SETTINGS["pretrainings"])]
        if name in (MORE, SELECTED) and verdict.statement in (SHOWN, CONTRADICTED):
            enough = [one is not None and one.value >= verdict.contrast.least for one in each]
            same = all(enough) if verdict.statement == SHOWN else not any(enough)
            values = " and ".join("-" if one is None else f"{one.value:+.3g}" for one in each)
            why = f"{verdict.why}; by pretraining {values}"
            statement = verdict.statement if same and None not in each else NOT_SHOWN
            verdict = replace(verdict, statement=statement, why=why)
        decided.append(verdict)
    return decided


def figures(results: Results) -> list[tuple[str, Any]]:
    """Give the figures of the report."""
    gains = [(f"gain, {reward}", reward) for reward in REWARDS]
    shares = [("share of code before", "before"), *(
        (f"share of code, {reward}", f"after {reward}") for reward in REWARDS
    )]  # fmt: skip
    found = [("contrasts", forest(results))]
    for steps in BLOCKS:
        name = steps.replace(" ", "-")
        found.append((f"gain-{name}", by_dose(
            results, steps, gains, f"Gain in accuracy, each reward at its own rate, {steps}",
            "accuracy after less before"
        )))  # fmt: skip
        found.append((f"share-{name}", by_dose(
            results, steps, shares, f"Share of code, {steps}", "share of completions in code"
        )))  # fmt: skip
    before = [("accuracy before", "all"), ("right in code before", "in code")]
    title = f"Accuracy after pretraining, {WRITTEN}"
    found.append(("before", by_dose(results, WRITTEN, before, title, "accuracy")))
    return found


def by_dose(results: Results, steps: str, shown: list[tuple[str, str]], title: str, y: str) -> Any:
    """Draw some measures over the dose."""
    figure = framed(title, "share of code in the corpus", y)
    there = {arm.name for arm in ARMS}
    arms = {0: NONE} | {d: name for d in DOSES if (name := f"{d}%, {steps}") in there}
    for number, (measure, name) in enumerate(shown):
        found = {}
        for dose, arm in arms.items():
            values = results.values(arm, MEASURES[measure]).values()
            if known := [value for value in values if not math.isnan(value)]:
                found[f"{dose}%"] = over_seeds(known)
        if found:
            add_band(figure, list(found), list(found.values()), name, number)
    figure.update_xaxes(type="category", categoryarray=[f"{d}%" for d in arms])
    figure.add_hline(y=0, line={"color": "#000000", "dash": "dot", "width": 1})
    return figure


ANALYSIS = Analysis(
    name="pretraining_dose",
    question="How much of a habit must pretraining plant for a reward, even a random one, to help?",
    claim=Source(
        "2506.10947",
        "Random rewards help where pretraining planted a frequent and better strategy, and not "
        "elsewhere: the format of pretraining decides what reward can surface.",
        "text",
    ),
    refuted_by="a random reward that helps as little with the habit as without it; or a true one "
    "that helps as much without written steps in pretraining as with them",
    execute="analyses.experiments.doses:execute",
    settings=SETTINGS,
    arms=ARMS,
    measures=MEASURES,
    contrasts=CONTRASTS,
    figures=figures,
    verdicts=verdicts,
    quick={
        "pretraining": {"steps": 3, "batch": 8, "warmup": 1, "rate": 1e-4}, "keep": False,
        "rewards": {name: {"config": {"steps": 1, "prompts": 2, "n": 4, "updates": 1, "warmup": 0}}
                    for name in REWARDS},
        "watch": {"problems": 20, "n": 1},
    },
    quick_arms=(NONE, HALF, BARE),
    evidence=(
        Source("2512.07783", "Some hundredths of exposure in pretraining are needed before "
               "reinforcement can carry a skill over.", "secondary", "for"),
        Source("2507.10532", "On problems that no corpus contains, only true rewards help.",
               "abstract", "against"),
        Source("2510.01265", "Thoughts rewarded during pretraining itself raise later "
               "reasoning.", "text", "for"),
    ),
    discussion="A dose decides two things here: how well code is learnt, and how often it "
    "is drawn. At a hundredth of the corpus code is drawn and never right; at a tenth it is "
    "seldom right, and truth turns away from it. Only at half of the corpus is there a better "
    "strategy to select: there truth takes it nearly everywhere and gains, and without a "
    "habit the same training gains nothing. That is the part of the claim that holds. A coin "
    "does nothing at any dose, though at half of the corpus close to a third of the first "
    "tokens were clipped: no dose was found at which a meaningless reward begins to help. Its "
    "bounds are as narrow as its steps, and sixteen of these may be too few for a slow drift "
    "to show. Inverted rewards take the habit away, or plant it where code is mostly wrong, "
    "and ruin the arithmetic at every dose. With written steps truth gains more than with "
    "skipped ones, and the interval does not reach zero; but the difference is surely less "
    "than what was declared of interest beforehand, which the rules call contradicted, and "
    "neither pretraining alone settles it. Two pretrainings of a dose are few: a difference "
    "between doses is one between two models and two others, whatever the interval over "
    "seeds. Skipped steps were tried at 50% only, and 0.3% and 3% not.",
    untested="corpora of natural language, where a habit is not a first token",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
