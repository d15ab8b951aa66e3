"""What does a small dictionary find at the forks of SmolLM2?

``python -m analyses.sae.smollm2 FOLDER``: completions of our own, of questions, beginnings of texts
and simple arithmetic, with the states of one middle layer at every generated token. A dictionary is
trained on two thirds of the prompts. On the last third, which shares no topic with them:

1. how well it reconstructs, at forks and elsewhere, and what the model loses when it is put in;
2. the features that are more active at forks, chosen on the training prompts and measured here:
   what each gives, what the token just read gives, and what is left among equal tokens. Beside
   them the token alone, the mean difference of states, and a choice by shuffled labels;
3. ReasonScore (arXiv 2503.18878), beside lists of random words of like frequency.

Feature cards are written to FOLDER/features.html, the figures to analyses/results/smollm2.json.
What was done is kept in FOLDER, and a second call goes on.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from analyses.benchmarks.workloads import QUESTIONS, TEXTS
from analyses.lines import Lines
from entropy_probe import capture, load
from entropy_probe.storage.files import replacing
from entropy_probe.storage.run import Run
from sae_steering import train_sae
from sae_steering.activities import Activities, activities
from sae_steering.auroc import auroc
from sae_steering.card_page import cards_page
from sae_steering.cards import feature_cards
from sae_steering.controls import mean_difference, shuffled
from sae_steering.evaluate import evaluate
from sae_steering.identity import token_prediction
from sae_steering.reason import WORDS, reason_score, word_tokens
from sae_steering.sae import SparseDictionary
from sae_steering.score import fork_selectivity

RESULTS = Path(__file__).parents[1] / "results" / "smollm2.json"
LAYER = 15
TRAINING = {"architecture": "topk", "d_sae": 2048, "k": 32, "samples": 300_000}
SPLICED = 16
"""Prompts, a completion each, that the model runs with the dictionary put in."""
CHOSEN = 12
"""Features to choose, by each score."""
DENSE = 0.002
"""Share of the states at which a feature must be active to be chosen."""
TOPICS = (
    "rain", "bread", "the Moon", "chess", "bees", "rivers", "glass", "music", "trees", "money",
    "maps", "sleep",
)  # fmt: skip
ASKED = ("Explain {} to a child.", "Why do people care about {}?")
BEGUN = ("I had never thought much about {} until", "The first thing to know about {} is")
SUMS = (
    "A box holds {} pens. How many pens are in {} boxes? Think step by step.",
    "What is {} plus {}? Explain how you get there.",
    "I had {} coins and lost {} of them. How many are left?",
    "Which is more: {} or {} times 3?",
)
DRAWN = {"n": 4, "max_new_tokens": 128, "temperature": 0.8}


def prompts() -> dict[str, list[object]]:
    """Give the prompts of both parts; one topic, or one pair of numbers, is in one part only."""
    noise = random.Random(0)
    pairs = [sorted((noise.randint(2, 40), noise.randint(2, 40)), reverse=True) for _ in range(32)]
    groups = [[form.format(topic) for form in (*ASKED, *BEGUN)] for topic in TOPICS]
    groups += [[text] for text in (*TEXTS, *QUESTIONS)]
    groups += [[SUMS[i % len(SUMS)].format(*pair)] for i, pair in enumerate(pairs)]
    found: dict[str, list[object]] = {"train": [], "report": []}
    for i, group in enumerate(groups):
        found["report" if i % 3 == 2 else "train"] += group
    for part in found.values():
        noise.shuffle(part)
        part[:] = [text if _is_begun(text) else _asked(text) for text in part]
    return found


def _is_begun(text: str) -> bool:
    """Tell whether a text is to be gone on with as it is, not answered."""
    return text in TEXTS or any(text.startswith(form.partition("{")[0]) for form in BEGUN)


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def capture_runs(folder: Path, held: tuple) -> dict[str, Run]:
    """Sample completions of both parts, the states of one layer with them."""
    return {
        name: capture(
            *held, part, folder / name, **DRAWN, residual_layers=[LAYER],
            residual_positions="all", seed=seed, chunk_prompts=16, resume=True,
            progress=lambda done, total, name=name: _say(f"{name}: {done} of {total} rows"),
        )
        for seed, (name, part) in enumerate(prompts().items())
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Capture, train, measure; write the figures and the page, and print a summary."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(1)
    held = load("smollm2")
    runs = capture_runs(options.folder, held)
    sae = train_sae(
        runs["train"], options.folder / "sae", layer=LAYER, **TRAINING, checkpoint_every=50,
        resume=True, progress=lambda *now: _say("states {} of {}, {}".format(*now)),
    )  # fmt: skip
    lines = Lines(options.folder / "results.jsonl")
    fits = {
        name: lines.get(name, lambda run=run: evaluate(sae, run).to_dict())
        for name, run in runs.items()
    }
    some = runs["report"].rollouts()[: DRAWN["n"] * SPLICED : DRAWN["n"]]
    losses = lines.get("losses", lambda: evaluate(sae, some, model=held[0]).to_dict()["losses"])
    results = {
        "schema_version": 1,
        "model": sae.model,
        "weights": sae.weights,
        "layer": LAYER,
        "drawn": DRAWN,
        "training": TRAINING,
        "runs": {name: _counts(run) for name, run in runs.items()},
        "evaluation": fits | {"losses": losses},
    }
    if not {"forks", "reason"} <= lines.found.keys():
        found = {name: _activities(sae, run) for name, run in runs.items()}
        lines.get("forks", lambda: forks(found, runs))
        lines.get("reason", lambda: reason(found))
    results |= {name: lines.found[name] for name in ("forks", "reason")}
    with replacing(options.results) as path:
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    with replacing(options.folder / "features.html") as path:
        path.write_text(page(sae, runs["report"], held, results), encoding="utf-8")
    print(summary(results))
    return 0


def forks(found: dict[str, Activities], runs: dict[str, Run]) -> dict[str, Any]:
    """Choose fork-selective features on the training prompts, and measure them on the others."""
    train, report = found["train"], found["report"]
    dense = (train.acts != 0).float().mean(dim=0) >= DENSE
    numbers = torch.where(dense)[0]
    out: dict[str, Any] = {"candidates": len(numbers)}
    for name, labels in (("chosen", train.forks), ("by shuffled labels", _shuffled(train))):
        among = auroc(
            train.acts[:, numbers], labels, clusters=train.prompts, strata=train.read
        ).value  # fmt: skip
        best = numbers[among.nan_to_num().argsort(descending=True)[:CHOSEN]]
        table = fork_selectivity(
            report.acts[:, best], report.forks, tokens=report.read, clusters=report.prompts
        )
        lines = table.lines()
        for line, number in zip(lines, best.tolist(), strict=True):
            line |= {"feature": number, "matched_train": float(among[numbers == number])}
        out[name] = lines
    token = token_prediction(report.forks[:, None].float(), report.read, report.prompts)
    states = {name: torch.cat([r.residuals[LAYER] for r in run.records()]).float()
              for name, run in runs.items()}  # fmt: skip
    line = states["report"] @ mean_difference(states["train"], train.forks).vector
    for name, values in (("token alone", token), ("mean difference", line[:, None])):
        out[name] = {
            kind: _figure(auroc(values, report.forks, clusters=report.prompts, strata=strata))
            for kind, strata in (("auroc", None), ("matched", report.read))
        }
    return out


def reason(found: dict[str, Activities]) -> dict[str, Any]:
    """Choose features by ReasonScore on the training prompts, and measure them on the others."""
    tables = {
        name: reason_score(
            a.acts, a.marks, rows=a.rows, places=a.places, tokens=a.read, clusters=a.prompts
        )
        for name, a in found.items()
    }
    best = tables["train"].best(CHOSEN, by="score")
    above = {name: int((t["score"] > t["null_high"]).sum()) for name, t in tables.items()}
    return {
        "words": tables["report"].about["words"],
        "words_train": tables["train"].about["words"],
        "chosen": tables["report"].lines(best),
        "above_95_percent_of_random_words": above,
    }


def page(sae: SparseDictionary, run: Run, held: tuple, results: dict[str, Any]) -> str:
    """Write the cards of the chosen features, from the prompts that did not choose them."""
    lines = {line["feature"]: line for line in results["reason"]["chosen"][:4]}
    lines = {line["feature"]: line for line in results["forks"]["chosen"]} | lines
    cards = feature_cards(sae, run, list(lines), model=held[0], tokenizer=held[1])
    cards = [replace(card, scores=lines[card.feature]) for card in cards]
    facts = [
        ("dictionary", repr(sae)),
        ("shown", f"{CHOSEN} features chosen by fork selectivity among equal tokens, then 4 by "
                  "ReasonScore, on other prompts than these"),
    ]  # fmt: skip
    columns = {
        "auroc": "AUROC", "matched": "on equal tokens", "token": "token alone",
        "token_share": "token's share", "effect": "effect", "rate": "active at forks",
        "rate_other": "elsewhere", "score": "ReasonScore", "null_high": "random words", "p": "p",
    }  # fmt: skip
    return cards_page(cards, title="Features of SmolLM2 at its forks", facts=facts, columns=columns)


def summary(results: dict[str, Any]) -> str:
    """Write the main figures down."""
    rows = [f"{name}: {counts}" for name, counts in results["runs"].items()]
    for name in ("train", "report"):
        found = results["evaluation"][name]
        rows.append(f"{name}: {found['dead']} of {found['d_sae']} features active nowhere")
        for place, fit in found["fits"].items():
            rows.append(f"  {place}: explained variance {_text(fit['explained_variance'])}, "
                        f"active features {_text(fit['l0'])}")  # fmt: skip
    for place in ("all", "forks", "elsewhere"):
        loss = results["evaluation"]["losses"][place]
        parts = (f"{kind} {_text(loss[kind])}" for kind in ("clean", "spliced", "ablated"))
        rows.append(f"  {place}: loss {', '.join(parts)}; recovered {_text(loss['recovered'])}")
    for name in ("token alone", "mean difference"):
        parts = (f"{kind} {_text(f)}" for kind, f in results["forks"][name].items())
        rows.append(f"forks, {name}: {', '.join(parts)}")
    for name in ("chosen", "by shuffled labels"):
        rows.append(f"forks, features {name}: AUROC; token alone; on equal tokens; token's share")
        for line in results["forks"][name]:
            rows.append(f"  {line['feature']}: {_ends(line, 'auroc')}; {line['token']:.3f}; "
                        f"{_ends(line, 'matched')}; {line['token_share']:.2f}")  # fmt: skip
    rows.append(
        f"reason: {results['reason']['words']}, "
        f"above random words: {results['reason']['above_95_percent_of_random_words']}"
    )
    for line in results["reason"]["chosen"]:
        rows.append(f"  {line['feature']}: {_ends(line, 'score')}, 95% of random words below "
                    f"{line['null_high']:.4f}, p = {line['p']:.3f}")  # fmt: skip
    return "\n".join(rows)


def _activities(sae: SparseDictionary, run: Run) -> Activities:
    """Encode every state, in the run's order, marked by the reasoning words."""
    return activities(
        sae, run, states=10**9, mark=lambda record: word_tokens(record, WORDS), whole=True
    )


def _shuffled(found: Activities) -> torch.Tensor:
    return shuffled(found.forks, seed=0)


def _counts(run: Run) -> dict[str, int]:
    record = run.rollouts(residuals=False)
    prompts = int(record.groups.max()) + 1
    return {"prompts": prompts, "rows": len(record), "states": int(record.captured.sum())}


def _figure(found: Any) -> dict[str, float]:
    return {name: float(getattr(found, name)[0]) for name in ("value", "low", "high")}


def _text(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "none: ablation does not hurt"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _ends(line: dict[str, Any], name: str) -> str:
    value, low, high = (line[name + end] for end in ("", "_low", "_high"))
    return "none" if None in (value, low, high) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _say(text: str) -> None:
    """Print over what was said before."""
    print(text, end="\r", flush=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where runs and the dictionary are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
