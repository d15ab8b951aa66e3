"""An organism's card: every number of its description, measured from the weights, with intervals.

``python -m entropy_probe.models.organisms.card NAME`` measures in full and writes ``card.json``
beside the weights.
"""

import argparse
import hashlib
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from entropy_probe import figures as fig
from entropy_probe.capability import guess_rate
from entropy_probe.figures import Figure, per_problem, ratio
from entropy_probe.models.organisms.observations import Samples, draw
from entropy_probe.models.organisms.targets import missed
from entropy_probe.tasks import generator, labeller
from entropy_probe.tasks.language import WORDINGS
from entropy_probe.tasks.verifier import final_answer, marked

PROBLEMS = 400
SAMPLES = 32
TRIES = 256


def accuracies(samples: Samples, name: str) -> dict[str, Figure | None]:
    """Give the accuracy overall, by strategy and by whether the wrong rule misleads prose."""
    right, opening, owner = samples.right(), samples.openings(), samples.owner
    strategy = np.where(opening == "careful", "prose", opening)
    misled = np.array([p.facts["misled"] for p in samples.problems])[owner]
    groups = {
        f"accuracy, {name}": np.ones(len(right), bool),
        f"accuracy, code, {name}": strategy == "code",
        f"accuracy, prose, {name}": strategy == "prose",
        f"accuracy, careful prose, {name}": opening == "careful",
        f"accuracy, prose misled by the wrong rule, {name}": (opening == "prose") & misled,
        f"accuracy, prose not misled, {name}": (opening == "prose") & ~misled,
    }
    count = len(samples.problems)
    return {key: ratio(*per_problem(owner, right, g, count)) for key, g in groups.items()}


def shares(samples: Samples) -> dict[str, Figure | None]:
    """Give the share of code by wording and relation, and how many answers lack the marker."""
    code, owner = samples.openings() == "code", samples.owner
    wording = np.array([p.facts["wording"] for p in samples.problems])[owner]
    kin = np.array([p.facts["kin"] for p in samples.problems])[owner]
    groups = {"share of code": np.ones(len(code), bool)}
    for name in WORDINGS:
        groups[f"share of code, {name}"] = wording == name
        groups[f"share of code, {name}, related"] = (wording == name) & kin
        groups[f"share of code, {name}, unrelated"] = (wording == name) & ~kin
    count = len(samples.problems)
    found = {key: ratio(*per_problem(owner, code, g, count)) for key, g in groups.items()}
    found["effect of the relation on the share of code"] = _difference(owner, code, kin, count)
    opening = samples.openings()
    found["share of careful prose among prose"] = ratio(
        *per_problem(owner, opening == "careful", np.isin(opening, ("careful", "prose")), count)
    )
    unmarked = np.array([not marked(text) for text in samples.texts()])
    for key, group in (("", opening == opening), (", code", code), (", prose", ~code)):
        found[f"unmarked{key}"] = ratio(*per_problem(owner, unmarked, group, count))
    return found


def _difference(
    owner: np.ndarray, hits: np.ndarray, group: np.ndarray, problems: int
) -> Figure | None:
    """Give the rate of hits in a group minus that outside it, intervals combined as normal."""
    inside = ratio(*per_problem(owner, hits, group, problems))
    outside = ratio(*per_problem(owner, hits, ~group, problems))
    if inside is None or outside is None:
        return None
    value = inside.value - outside.value
    half = float(np.hypot(inside.high - inside.low, outside.high - outside.low) / 2)
    return Figure(value, value - half, value + half, len(hits))


def majorities(samples: Samples, name: str) -> dict[str, Figure | None]:
    """Give the share of problems whose most frequent answer is wrong, and the guesses' rate."""
    texts, n = samples.texts(), samples.n
    answers = [[final_answer(t) for t in texts[i : i + n]] for i in range(0, len(texts), n)]
    tops = [Counter(group).most_common(1)[0][0] for group in answers]
    wrong = [top != p.answer for top, p in zip(tops, samples.problems, strict=True)]
    found: dict[str, Figure | None] = {f"majority wrong, {name}": fig.mean(wrong)}
    if n > 1:
        found["guessed right"] = guess_rate(answers, [p.answer for p in samples.problems])
    return found


def token_figures(samples: Samples) -> dict[str, Figure | None]:
    """Give the entropy profile, and how the roles of tokens stand to the top 20%."""
    rows = zip(samples.owner, samples.pieces, samples.ended, strict=True)
    labels = [labeller.label(samples.problems[i], ps, ended=e) for i, ps, e in rows]
    role = np.array([label.role for row in labels for label in row])
    entropy, top = np.concatenate(samples.entropy), np.concatenate(samples.top)
    owner = np.repeat(samples.owner, [len(row) for row in labels])
    count = len(samples.problems)
    every = np.ones(len(role), bool)
    found: dict[str, Figure | None] = {
        "tokens under 0.01 nats": ratio(*per_problem(owner, entropy < 0.01, every, count)),
        "tokens a completion": ratio(
            np.bincount(owner, minlength=count), np.full(count, samples.n)
        ),
    }
    for q in (50, 80, 90, 95):
        found[f"{q}th percentile of entropy"] = fig.quantile(entropy, owner, q / 100)
    ranks = np.searchsorted(np.sort(entropy), entropy) / len(entropy)
    forks, decoys = np.isin(role, list(labeller.FORKS)), np.isin(role, list(labeller.DECOYS))
    groups = {"planted forks": forks, "decoys": decoys}
    groups |= {name: role == name for name in labeller.ROLES}
    for name, group in groups.items():
        if not group.any():
            continue
        found[f"share of the top 20%, {name}"] = ratio(*per_problem(owner, group, top, count))
        found[f"recall of the top 20%, {name}"] = ratio(*per_problem(owner, top, group, count))
        found[f"median entropy rank, {name}"] = fig.quantile(ranks[group], owner[group], 0.5)
        found[f"mean entropy, {name}"] = ratio(
            np.bincount(owner, weights=entropy * group, minlength=count),
            np.bincount(owner, weights=group, minlength=count),
        )
    return found


def error_figures(samples: Samples) -> dict[str, Figure | None]:
    """Give the share of completions with each kind of error, by the step checker."""
    from entropy_probe.tasks.checker import ERRORS, check

    rows = zip(samples.owner, samples.pieces, strict=True)
    kinds = [{f.error for f in check(samples.problems[i], ps).errors} for i, ps in rows]
    owner, count = samples.owner, len(samples.problems)
    every = np.ones(len(kinds), bool)
    return {
        f"completions with an error of kind {kind}": ratio(
            *per_problem(owner, np.array([kind in k for k in kinds]), every, count)
        )
        for kind in ERRORS
    }


def measure(
    model: Any, tokenizer: Any, *, limit: int = PROBLEMS, n: int = SAMPLES, tries: int = TRIES
) -> dict[str, Any]:
    """Give every figure of a card, name -> value, low, high, n.

    Args:
        model: the organism.
        tokenizer: its tokenizer.
        limit: problems of the default subset; the other subsets get a quarter as many.
        n: completions a problem.
        tries: completions a problem for pass@k, which is given for k up to it.
    """
    problems = generator.problems("default", limit, split="test", seed=0)
    few = max(limit // 4, 8)
    found: dict[str, Figure | None] = {}
    for temperature, name, count in ((1.0, "T=1", n), (0.3, "T=0.3", n), (0.0, "greedy", 1)):
        samples = draw(model, tokenizer, problems, count, temperature)
        found |= accuracies(samples, name) | majorities(samples, name)
        if temperature == 1.0:
            found |= shares(samples) | token_figures(samples) | error_figures(samples)
            code, prose = found["accuracy, code, T=1"], found["accuracy, prose, T=1"]
            if code is not None and prose is not None:
                strategy = np.where(samples.openings() == "code", "code", "prose")
                found["advantage of code, T=1"] = _difference(
                    samples.owner, samples.right(), strategy == "code", limit
                )
    for subset in ("default", "hard"):
        chosen = generator.problems(subset, few, split="test", seed=1)
        right = draw(model, tokenizer, chosen, tries, 1.0, seed=1).right().reshape(few, tries)
        for k in (k for k in (1, 4, 16, 64, 256) if k <= tries):
            found[f"pass@{k}, {subset}"] = fig.pass_at(k, right.sum(axis=1).tolist(), tries)
    for subset in ("short", "middle", "long", "memorised"):
        found |= _subset(model, tokenizer, subset, few, n)
    return fig.plain(found)


def _subset(
    model: Any, tokenizer: Any, subset: str, limit: int, n: int
) -> dict[str, Figure | None]:
    """Give the accuracy at temperature 1 on another subset."""
    if subset == "memorised":
        chosen = generator.memorised_problems(min(limit, 64))
    else:
        chosen = generator.problems(subset, limit, split="test", seed=2)
    samples = draw(model, tokenizer, chosen, n, 1.0, seed=2)
    key = f"accuracy, {subset}, T=1"
    every = np.ones(len(samples.pieces), bool)
    return {key: ratio(*per_problem(samples.owner, samples.right(), every, len(chosen)))}


def constant_guess() -> float:
    """Give the accuracy of the best constant answer, over 20,000 default problems."""
    rng = random.Random("constant guess")
    lengths = generator.SUBSETS["default"].lengths
    drawn = Counter(generator.draw_chain(rng, rng.choice(lengths)).answer for _ in range(20_000))
    return drawn.most_common(1)[0][1] / 20_000


def weights_hash(folder: Path) -> str:
    """Give the SHA-256 of an organism's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def make_card(folder: Path, *, limit: int = PROBLEMS, device: str = "cpu") -> dict[str, Any]:
    """Measure the organism in a folder and give its card."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = json.loads((folder / "recipe.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    found = measure(model, AutoTokenizer.from_pretrained(folder), limit=limit)
    return {
        "schema": 1,
        "organism": recipe["name"],
        "recipe": recipe["hash"],
        "parameters": recipe["parameters"],
        "weights": weights_hash(folder),
        "problems": limit,
        "interval": fig.INTERVAL,
        "constant guess": round(constant_guess(), 4),
        "missed": missed(recipe["name"], found),
        "figures": found,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure the organisms in some folders and write ``card.json`` into each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="folder of an organism")
    parser.add_argument("--limit", type=int, default=PROBLEMS, help="problems")
    parser.add_argument("--device", default="cpu", help="torch device")
    options = parser.parse_args(argv)
    for folder in options.folder:
        card = make_card(folder, limit=options.limit, device=options.device)
        text = json.dumps(card, indent=1) + "\n"
        new = folder / "card.json.new"
        new.write_text(text)
        new.replace(folder / "card.json")
        sys.stdout.write(f"{folder / 'card.json'}\n")


if __name__ == "__main__":
    main()
