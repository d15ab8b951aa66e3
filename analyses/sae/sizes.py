"""Which layer, size and kind of dictionary shows it? ``python -m analyses.sae.sizes FOLDER``.

The runs of `analyses.sae.ground_truth` in FOLDER (captured where they are missing), and its scores,
on many small dictionaries: the best feature before the choice (partial Spearman given the wording),
the best one after it (AUROC on equal tokens at equal positions; also within each kind of token, and
for sums of up to four features), all chosen on one set of problems and measured on another. Beside
them the mean difference of states. Results are kept in FOLDER/sizes.jsonl; a second call goes on.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from analyses.lines import Lines
from analyses.sae import ground_truth as truth
from sae_steering import train_sae
from sae_steering.activities import activities

KINDS = (
    ("topk", 16, 3), ("topk", 32, 4), ("topk", 64, 4), ("topk", 64, 8), ("topk", 64, 16),
    ("topk", 256, 8), ("topk", 512, 16), ("batchtopk", 64, 8), ("standard", 64, 8),
)  # fmt: skip
"""Architecture, features, and active ones (which a standard dictionary does not fix)."""


def main(argv: list[str] | None = None) -> int:
    """Train and score; print a line of JSON for what is new, and a table of all."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(args.threads)
    lines = Lines(args.folder / "sizes.jsonl")
    wanted = [f"{layer} mean difference" for layer in args.layers]
    wanted += [
        f"{layer} {kind} {d_sae}:{k} seed {seed}"
        for layer in args.layers
        for kind, d_sae, k in KINDS
        for seed in args.seeds
    ]
    if unknown := sorted(set(args.only or ()) - set(wanted)):
        raise SystemExit(f"--only names lines of the table, such as {wanted[-1]!r}, not {unknown}")
    wanted = [key for key in wanted if key in (args.only or wanted)]
    if any(key not in lines.found for key in wanted):
        _compute(args, lines, wanted)
    print(
        f"{'layer, kind, size':26}{'partial':>9}{'AUROC':>7}   sums of 2, 3, 4     digits: one, two"
    )
    for key in wanted:
        print(_row(key, lines.found[key]))
    return 0


def _compute(args: argparse.Namespace, lines: Lines, wanted: list[str]) -> None:
    """Compute what is wanted and not there."""
    runs = truth.capture_runs(args.folder, 1.0)
    names = ("choose", "report")
    probability = {name: truth.code_probability(runs[name]) for name in names}
    for layer in args.layers:
        plain = truth._identity(layer)
        found = {name: activities(plain, runs[name], mark=truth.strategies) for name in names}
        if (key := f"{layer} mean difference") in wanted:
            lines.get(key, lambda f=found: _difference(f))
        for kind, d_sae, k in KINDS:
            for seed in args.seeds:

                def make(layer=layer, found=found, kind=kind, d_sae=d_sae, k=k, seed=seed):
                    sae = train_sae(
                        runs["train"], args.folder / f"sizes-{layer}-{kind}-{d_sae}-{k}-{seed}",
                        layer=layer, architecture=kind, d_sae=d_sae, k=k, samples=300_000,
                        seed=seed, rate=2e-3, resume=True,
                    )  # fmt: skip
                    return _measure(sae, found, probability)

                if (key := f"{layer} {kind} {d_sae}:{k} seed {seed}") in wanted:
                    lines.get(key, make)


def _difference(found: dict) -> dict[str, Any]:
    """Measure the mean difference of states after the choice."""
    later = {name: truth._later(part) for name, part in found.items()}
    line = later["report"].acts @ truth._mean_difference(later["choose"])
    return {"after": truth._figure(truth._matched(line[:, None], later["report"]))}


def _measure(sae, states: dict, probability: dict) -> dict[str, Any]:
    """Choose features on one run and measure them on the other."""
    found = {n: dataclasses.replace(a, acts=sae.encode(a.acts)) for n, a in states.items()}
    later = {name: truth._later(part) for name, part in found.items()}
    choice = {name: truth._choice(part, *probability[name]) for name, part in found.items()}
    before = choice["choose"].best(1, by="partial", around=0.0)[0]
    matched = truth._matched(later["choose"].acts, later["choose"]).value
    after = int((matched - 0.5).abs().nan_to_num().argmax())
    kinds = truth._by_kind(later["choose"], later["report"])
    one = truth._matched(later["report"].acts[:, [after]], later["report"])
    return {
        "partial": round(float(choice["report"]["partial"][before]), 3),
        "feature before": before,
        "feature after": after,
        "after": truth._figure(one),
        "sums": truth._sums(later["choose"], later["report"], matched),
        "kinds": kinds,
        "l0": round(float((later["choose"].acts > 0).float().sum(dim=1).mean()), 2),
    }


def _row(key: str, line: dict[str, Any]) -> str:
    """Write one line of the table."""
    if "partial" not in line:
        return f"{key:26}{'':9}{line['after']['value']:7.3f}"
    sums = " ".join(f"{line['sums'][size]['value']:.3f}" for size in ("2", "3", "4"))
    kinds = " ".join(f"{line['kinds'][name]['value']:.3f}" for name in ("one digit", "two digits"))
    return f"{key:26}{line['partial']:9.3f}{line['after']['value']:7.3f}   {sums}   {kinds}"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where runs, dictionaries and results are kept")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="LINE", help="lines of the table, not all")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
