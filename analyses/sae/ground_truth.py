"""Does the strategy score find what is planted? ``python -m analyses.sae.ground_truth FOLDER``.

On `organism:amenable` the share of code depends on the wording, which is a word, and on a relation
between two operands, which no token shows. For dictionaries of several layers, sizes and seeds:

1. Before the choice: a feature's activity at the last token of the prompt against the model's own
   probability of starting in code (exact, from its distribution there): Spearman, and partial
   Spearman given the wording. Beside it, what the wording alone predicts.
2. After the choice: AUROC of code against prose among states of one token at one position, the
   choice itself left out (and prose that goes step by step, which reads like code). Beside it, the
   AUROC of the token alone, and of the last two and three tokens.

Features are chosen on one set of problems and measured on another (the task's test split). A mean
difference of states, and small sums of features, stand beside the single ones. What is done is
kept in FOLDER; a second call goes on.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_probe import capture, load, score
from entropy_probe.models.organisms.tokenizer import VOCABULARY
from entropy_probe.rollout import Rollouts
from entropy_probe.tasks import language
from entropy_probe.tasks.generator import problems
from sae_steering import train_sae
from sae_steering.activities import Activities, activities
from sae_steering.auroc import auroc
from sae_steering.contrast import pairs
from sae_steering.dictionary import PlainDictionary
from sae_steering.evaluate import evaluate
from sae_steering.identity import token_prediction
from sae_steering.sae import SparseDictionary
from sae_steering.score import choice_selectivity, strategy_selectivity

ORGANISM = "organism:amenable"
LAYERS = (0, 1, 2, 3)
SIZES = ((64, 8), (512, 16))
SPLITS = {"train": ("train", 1, 2000), "choose": ("train", 2, 600), "report": ("test", 3, 600)}
"""Name -> split of the task, seed, and problems of each of three lengths."""
CODE, SWIFT = VOCABULARY[language.CODE], VOCABULARY[language.SWIFT]
_KEPT = (
    "feature", "spearman", "partial", "partial_low", "partial_high", "auroc", "token", "matched",
    "matched_low", "matched_high", "rate", "rate_other",
)  # fmt: skip
LATER = 2  # the first state after prose has said how careful it is


def main(argv: list[str] | None = None) -> int:
    """Capture, train, score; append a line of JSON for each dictionary, and print it."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(args.threads)
    runs = capture_runs(args.folder, args.scale)
    probability = {name: code_probability(runs[name]) for name in ("choose", "report")}
    results = args.folder / "results.jsonl"
    done = _keys(results)
    for layer in args.layers:
        key = {"layer": layer, "d_sae": None, "k": None, "seed": None}
        if json.dumps(key) not in done:
            _append(results, key | baselines(runs, probability, layer))
        for d_sae, k in args.sizes:
            for seed in args.seeds:
                key = {"layer": layer, "d_sae": d_sae, "k": k, "seed": seed}
                if json.dumps(key) in done:
                    continue
                sae = train_sae(
                    runs["train"], args.folder / f"sae-{layer}-{d_sae}-{k}-{seed}", layer=layer,
                    d_sae=d_sae, k=k, samples=args.samples, seed=seed, rate=2e-3, resume=True,
                )  # fmt: skip
                _append(results, key | measure(sae, runs, probability))
    return 0


def capture_runs(folder: Path, scale: float) -> dict[str, Any]:
    """Capture completions of problems, states of all layers with them."""
    model, tokenizer = load(ORGANISM)
    runs = {}
    for name, (split, seed, each) in SPLITS.items():
        found = [
            problem
            for subset in ("short", "default", "long")
            for problem in problems(subset, max(1, int(each * scale)), split=split, seed=seed)
        ]
        runs[name] = capture(
            model, tokenizer, found, folder / name, task="arithmetic", max_new_tokens=72,
            residual_layers=LAYERS, residual_positions="all", alternatives=0, seed=seed,
            batch_size=256, resume=True,
        )  # fmt: skip
    return runs


def code_probability(run: Any) -> tuple[Tensor, Tensor]:
    """Give the model's own probability of starting in code for each row, and its wording."""
    model, tokenizer = load(ORGANISM)
    record = run.rollouts(residuals=False)
    tokens = record.tokens.clone()
    first = torch.arange(tokens.shape[1])[None, :] == record.prompt_lengths[:, None]
    tokens[first] = CODE
    scored = score(model, tokenizer, tokens, first, alternatives=0, batch_size=256)
    return scored.logprobs[first].exp(), record.tokens[:, 1]


def strategies(record: Rollouts) -> Tensor:
    """Give 1 at every token of a completion in code, 0 in prose, -1 elsewhere."""
    rows = torch.arange(len(record))
    opening = record.tokens[rows, record.prompt_lengths]
    second = record.tokens[rows, record.prompt_lengths + 1]
    kind = torch.where(opening == CODE, 1, torch.where(second == SWIFT, 0, -1))
    return kind[:, None].expand(record.tokens.shape)


def measure(sae: SparseDictionary, runs: dict, probability: dict) -> dict[str, Any]:
    """Choose features on one run and measure them on the other."""
    fit = evaluate(sae, runs["report"])
    out: dict[str, Any] = {
        "explained_variance": _round(fit.fits["all"].explained_variance.value),
        "l0": _round(fit.fits["all"].l0.value),
        "dead": fit.dead,
    }
    found = {name: activities(sae, runs[name], mark=strategies) for name in ("choose", "report")}
    choice = {name: _choice(a, *probability[name]) for name, a in found.items()}
    later = {name: _later(a) for name, a in found.items()}
    strategy = {name: _strategy(a) for name, a in later.items()}
    before = choice["choose"].best(1, by="partial", around=0.0)[0]
    after = strategy["choose"].best(1, by="matched", around=0.5)[0]
    worst = torch.minimum(
        choice["choose"]["partial"].abs().nan_to_num(),
        2 * (strategy["choose"]["matched"] - 0.5).abs().nan_to_num(),
    )
    one = int(worst.argmax())
    for name, feature in (("before", before), ("after", after), ("both", one)):
        line = choice["report"].lines([feature])[0] | strategy["report"].lines([feature])[0]
        out[name] = {column: _round(line[column]) for column in _KEPT}
    out["after_by_token"] = _by_kind(later["choose"], later["report"])
    out["sums"] = _sums(later["choose"], later["report"], strategy["choose"]["matched"])
    for threshold, name in ((0.6, "before"), (0.95, "after")):
        table, column, middle = {
            "before": (choice["report"], "partial", 0.0),
            "after": (strategy["report"], "matched", 0.5),
        }[name]
        far = (table[column] - middle).abs() + middle
        out[f"{name}_features_over_{threshold}"] = int((far.nan_to_num() >= threshold).sum())
    return out


def baselines(runs: dict, probability: dict, layer: int) -> dict[str, Any]:
    """Measure words, tokens and the mean difference of states, without any dictionary."""
    plain = _identity(layer)
    found = {name: activities(plain, runs[name], mark=strategies) for name in ("choose", "report")}
    later = {name: _later(a) for name, a in found.items()}
    code = later["report"].marks == 1
    prompts = later["report"].prompts
    out: dict[str, Any] = {}
    for size, name in ((1, "token"), (2, "two tokens"), (3, "three tokens")):
        tokens = _grams(found["report"], later["report"], size)
        guess = token_prediction(code[:, None].float(), tokens, prompts)
        out[f"{name} alone, AUROC"] = _figure(auroc(guess, code, clusters=prompts))
        out[f"{name} alone, matched AUROC"] = _figure(_matched(guess, later["report"]))
    p, wording = probability["report"]
    table = _choice(found["report"], p, wording)
    out["wording alone, Spearman"] = _round(table.about["spearman of the kind alone"])
    out["states"] = len(later["report"])
    direction = _mean_difference(later["choose"])
    line = later["report"].acts @ direction
    matched = _matched(line[:, None], later["report"])
    out["mean difference, matched AUROC"] = _figure(matched)
    out["states compared"] = _round(matched.pairs)
    first = {name: a[a.places == 0] for name, a in found.items()}
    high = probability["choose"][0] > probability["choose"][0].median()
    direction = first["choose"].acts[high].mean(0) - first["choose"].acts[~high].mean(0)
    table = choice_selectivity((first["report"].acts @ direction)[:, None], p, given=wording)
    line = table.lines([0])[0]
    out["mean difference, partial"] = {
        name: _round(line[f"partial{suffix}"])
        for name, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    return out


def _identity(layer: int) -> SparseDictionary:
    """Give a dictionary whose features are the states' own numbers, of both signs kept apart."""

    class Itself(PlainDictionary):
        def encode(self, states: Tensor) -> Tensor:
            return states.float()

    eye = torch.eye(128)
    return SparseDictionary(
        Itself(eye, torch.zeros(128), eye, torch.zeros(128)), layer, "the states themselves"
    )


def _choice(found: Activities, probability: Tensor, wording: Tensor) -> Any:
    """Score features at the last token of the prompt."""
    first = found[found.places == 0]
    return choice_selectivity(first.acts, probability[first.rows], given=wording[first.rows])


def _later(found: Activities) -> Activities:
    """Give the states after the choice, of code and of swift prose."""
    return found[(found.places >= LATER) & (found.marks >= 0)]


def _strategy(later: Activities) -> Any:
    return strategy_selectivity(
        later.acts, later.marks == 1, tokens=later.read, positions=later.places,
        clusters=later.prompts,
    )  # fmt: skip


def _matched(acts: Tensor, later: Activities) -> Any:
    strata = pairs(later.read, later.places)
    return auroc(acts, later.marks == 1, clusters=later.prompts, strata=strata)


def _by_kind(choose: Activities, report: Activities) -> dict[str, Any]:
    """Choose and measure a feature for each kind of token that both strategies use."""
    found = {}
    for name, digits in (("one digit", 1), ("two digits", 2)):
        parts = {
            "choose": choose[_digits(choose) == digits],
            "report": report[_digits(report) == digits],
        }
        best = _matched(parts["choose"].acts, parts["choose"]).value
        feature = int((best - 0.5).abs().nan_to_num().argmax())
        result = _matched(parts["report"].acts[:, [feature]], parts["report"])
        found[name] = {"feature": feature} | _figure(result)
        found[name]["states compared"] = _round(result.pairs)
    return found


def _digits(found: Activities) -> Tensor:
    """Give how many digits each token read has, 0 for what is no number."""
    pieces = {index: piece for piece, index in VOCABULARY.items()}
    return torch.tensor([len(pieces[t]) * pieces[t].isdigit() for t in found.read.tolist()])


def _sums(choose: Activities, report: Activities, matched: Tensor) -> dict[str, Any]:
    """Give the matched AUROC of sums of a few features, chosen one after the other."""
    far = (matched - 0.5).abs().nan_to_num()
    candidates = far.argsort(descending=True)[:24].tolist()
    sign = torch.where(matched >= 0.5, 1.0, -1.0)
    spread = choose.acts.std(dim=0).clamp(min=1e-9)

    def line(part: Activities, features: Iterable[int]) -> Tensor:
        index = torch.tensor(list(features))
        return part.acts[:, index] @ (sign[index] / spread[index])

    chosen: list[int] = []
    out = {}
    for size in (1, 2, 3, 4):
        left = [c for c in candidates if c not in chosen]
        each = torch.stack([line(choose, [*chosen, c]) for c in left], dim=1)
        chosen.append(left[int(_matched(each, choose).value.argmax())])
        figure = _figure(_matched(line(report, chosen)[:, None], report))
        out[str(size)] = {"features": list(chosen)} | figure
    return out


def _mean_difference(later: Activities) -> Tensor:
    """Give the mean difference of states of code and of prose, within tokens and positions."""
    strata = pairs(later.read, later.places)
    total = torch.zeros(later.acts.shape[1])
    for code, sign in ((True, 1.0), (False, -1.0)):
        own = (later.marks == 1) == code
        counts = torch.bincount(strata[own], minlength=int(strata.max()) + 1)
        others = torch.bincount(strata[~own], minlength=int(strata.max()) + 1)
        weight = (others / (counts + others).clamp(min=1))[strata[own]]
        total += sign * (weight[:, None] * later.acts[own]).sum(dim=0)
    return total


def _grams(found: Activities, later: Activities, size: int) -> Tensor:
    """Number the last few tokens that each of the later states has read."""
    key = found.rows.long() * 10_000 + found.places
    order = key.argsort()
    wanted = later.rows.long() * 10_000 + later.places
    out = later.read
    for back in range(1, size):
        at = torch.searchsorted(key[order], wanted - back).clamp(max=len(key) - 1)
        there = key[order][at] == wanted - back
        out = pairs(out, torch.where(there, found.read[order][at], -1))
    return out


def _figure(found: Any) -> dict[str, float]:
    """Give an AUROC of one feature, turned so that it is at least 0.5."""
    value, low, high = (float(getattr(found, n)[0]) for n in ("value", "low", "high"))
    if value < 0.5:
        value, low, high = 1 - value, 1 - high, 1 - low
    return {"value": _round(value), "low": _round(low), "high": _round(high)}


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _keys(results: Path) -> set[str]:
    """Give which dictionaries have their line already."""
    lines = results.read_text().splitlines() if results.exists() else []
    names = ("layer", "d_sae", "k", "seed")
    return {json.dumps({n: v for n, v in json.loads(x).items() if n in names}) for x in lines}


def _append(results: Path, values: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(values) + "\n")
    print(json.dumps(values), flush=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where runs, dictionaries and results are kept")
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))
    parser.add_argument("--sizes", type=_size, nargs="+", default=list(SIZES), metavar="D:K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=300_000, help="states to train on")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the problems")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def _size(text: str) -> tuple[int, int]:
    d_sae, _, k = text.partition(":")
    return int(d_sae), int(k)


if __name__ == "__main__":
    sys.exit(main())
