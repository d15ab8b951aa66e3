"""Do the verdicts come out both ways? ``python -m analyses.sae.verdicts``.

Pairs of models of which it is known what their gain is:

- ``amenable``: `organism:amenable` and what reinforcement makes of it. Code is in the base,
  frequent and better: an elicitation.
- ``taught``: `organism:absent` and `organism:taught`, distilled into code that no text of the base
  had: a large gain, and nothing to elicit.
- ``absent``: `organism:absent` and what the same reinforcement makes of it.
- ``random weights``: a model that was never trained, and `organism:amenable`; the interventions are
  those of ``amenable``.
- ``shuffled``: ``amenable`` again, but feature and mean difference are chosen with labels in an
  order that means nothing, and their strengths by rewards that were dealt out anew; several orders.

Features, strengths and controls are chosen on the train split and reported on the test split.
Completions that begin as code does are among the controls, also where the features promote
another word.
Reinforcement is `entropy_probe.training.train` at the forks: SGD, rate 0.02 after 5 steps and
falling to 0, 24 steps of 16 problems with 8 completions. Models, dictionaries and pages are kept in
a folder, results in analyses/results/verdicts.jsonl; a second call goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from analyses.lines import Lines
from entropy_probe import capture, load
from entropy_probe.tasks import get_task, language
from entropy_probe.training import Selection
from entropy_probe.training.config import TrainConfig
from entropy_probe.training.trainer import train
from sae_steering import gather_evidence, load_sae, train_sae
from sae_steering.arms import Arms, Plan, make_arms
from sae_steering.evidence import Evidence, write_evidence
from sae_steering.interventions import Intervention
from sae_steering.outcomes import Drawing
from sae_steering.sae import CONFIG
from sae_steering.verdicts import ELICITING

RESULTS = Path(__file__).parents[1] / "results" / "verdicts.jsonl"
LAYER, FEATURES, ACTIVE = 1, 512, 16
SHUFFLES = (1, 2, 3, 4, 5)
TASK = get_task("arithmetic")
LABELLED = ("features", "mean difference")
"""Kinds of interventions that labels decide on."""


def main(argv: list[str] | None = None) -> int:
    """Judge every pair, append a line of JSON for each, and print a table."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(options.threads)
    study = Study(options.folder, options.problems, options.n, options.randoms, options.orders)
    lines = Lines(options.results)
    for name in options.only or (*PAIRS, *(f"shuffled {seed}" for seed in SHUFFLES)):
        lines.get(name, lambda name=name: study.judge(name))
    print("\n".join(row(name, line) for name, line in lines.found.items()))
    return 0


PAIRS = ("amenable", "taught", "absent", "random weights")


class Study:
    """The models, their dictionaries, and problems of both splits."""

    def __init__(self, folder: Path, problems: int, n: int, randoms: int, orders: int) -> None:
        """Draw the problems."""
        self.folder, self.randoms, self.orders = folder, randoms, orders
        self.choosing = Drawing(max(1, n // 2), max_new_tokens=72, seed=21, batch_size=512)
        self.reporting = Drawing(n, max_new_tokens=72, seed=22, batch_size=512)
        self.choose_on = TASK.problems(problems, split="train", seed=21)
        self.report_on = TASK.problems(problems, split="test", seed=22)
        self._arms: dict[tuple[str, int | None], Arms] = {}

    def judge(self, name: str) -> dict[str, Any]:
        """Judge one pair, and leave its page in the folder."""
        if name.startswith("shuffled"):
            arms = self.arms("amenable", shuffle=int(name.split()[1]))
            kept = [arm for arm in arms.interventions if arm.kind in LABELLED]
            found = self.gather(base(name), self.sibling("amenable"), kept, (), arms)
        elif name == "random weights":
            arms = self.arms("amenable")
            kept = [arm for arm in arms.interventions if arm.kind in ELICITING]
            found = self.gather(base(name), load("organism:amenable")[0], kept, (), arms)
        elif name == "amenable":
            arms = self.arms("amenable")
            found = self.gather(
                base(name), self.sibling("amenable"), with_code(arms), arms.randoms, arms
            )
        else:
            arms = self.arms("absent")
            trained = load("organism:taught")[0] if name == "taught" else self.sibling("absent")
            found = self.gather(base(name), trained, with_code(arms), (), arms)
        write_evidence(found, self.folder / "evidence" / name.replace(" ", "-"))
        return summary(found)

    def gather(
        self, model: Any, trained: Any, arms: Sequence[Intervention],
        randoms: Sequence[Intervention], made: Arms,
    ) -> Evidence:  # fmt: skip
        """Measure on the test split."""
        _, tokenizer = load("organism:amenable")
        return gather_evidence(
            model, tokenizer, TASK, self.report_on, arms, trained=trained, randoms=randoms,
            blind=made.blind, ablations=made.ablations, drawing=self.reporting,
            random_drawing=replace(self.reporting, n=1),
            chosen=made.about, progress=lambda found: print(_told(found), file=sys.stderr),
        )  # fmt: skip

    def arms(self, organism: str, shuffle: int | None = None) -> Arms:
        """Choose features, strengths and controls on the train split."""
        if (organism, shuffle) not in self._arms:
            model, tokenizer = load(f"organism:{organism}")
            self._arms[organism, shuffle] = make_arms(
                model, tokenizer, TASK, self.choose_on, self.dictionary(organism),
                Plan(shuffle=shuffle, randoms=self.randoms, orders=self.orders),
                drawing=self.choosing,
                progress=lambda words: print(words, file=sys.stderr),
            )  # fmt: skip
        return self._arms[organism, shuffle]

    def sibling(self, organism: str) -> Any:
        """Give what reinforcement makes of an organism."""
        model, tokenizer = load(f"organism:{organism}")
        config = TrainConfig(
            steps=24, prompts=16, n=8, max_new_tokens=72, optimizer="sgd", lr=0.02, warmup=5,
            decay="linear", selection=Selection(fraction=0.2), evaluate_every=0,
            rollouts_every=0,
        )  # fmt: skip
        out = self.folder / f"{organism}-reinforced"
        train(model, tokenizer, TASK, config=config, out=out, resume=out.exists())
        model.name_or_path = f"{organism}, reinforced"
        return model

    def dictionary(self, organism: str) -> Any:
        """Give a dictionary of an organism's states, trained where there is none."""
        out = self.folder / f"sae-{organism}"
        if (out / CONFIG).exists():
            return load_sae(out)
        model, tokenizer = load(f"organism:{organism}")
        run = capture(
            model, tokenizer, TASK.problems(2000, split="train", seed=23),
            self.folder / f"states-{organism}", task="arithmetic", max_new_tokens=72,
            residual_layers=[LAYER], residual_positions="all", alternatives=0, batch_size=256,
            resume=True,
        )  # fmt: skip
        return train_sae(
            run, out, layer=LAYER, d_sae=FEATURES, k=ACTIVE, samples=150_000, rate=2e-3,
            resume=True,
        )  # fmt: skip


def with_code(arms: Arms) -> list[Intervention]:
    """Give the interventions, one among them by which completions begin as code does."""
    code = Intervention("begin with code", "token injection", prefix=language.CODE)
    there = any(arm.prefix == language.CODE for arm in arms.interventions)
    return [*arms.interventions, *([] if there else [code])]


def base(name: str) -> Any:
    """Give the base of a pair."""
    if name == "random weights":
        from transformers import AutoModelForCausalLM

        config = load("organism:amenable")[0].config
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        model.name_or_path = "random weights"
        return model
    return load("organism:absent" if name in ("taught", "absent") else "organism:amenable")[0]


def summary(found: Evidence) -> dict[str, Any]:
    """Give the figures and the verdicts as JSON values."""
    verdicts = found.verdicts
    return {
        "base": found.outcomes["base"].accuracy.to_dict(),
        "trained": found.outcomes["trained"].accuracy.to_dict(),
        "gain": verdicts.gain.to_dict(),
        "shares": {n: None if s is None else s.to_dict() for n, s in verdicts.shares.items()},
        "code": {n: o.share("code").to_dict() for n, o in found.outcomes.items()},
        "ahead": {n: f.to_dict() for n, f in verdicts.ahead.items()},
        "chance": verdicts.chance,
        "reached": found.trial.reached,
        "random": [round(value, 4) for value in found.trial.random],
        "blind": {
            name: {"reached": blind.reached, "others": list(blind.others), "chance": blind.chance}
            for name, blind in found.trial.blind.items()
        },
        "removed": {n: None if s is None else s.to_dict() for n, s in found.removed.items()},
        "capability": verdicts.capability.statement,
        "carried": verdicts.carried.statement,
        "would change": [*verdicts.capability.would_change, *verdicts.carried.would_change],
        "interventions": found.about["interventions"],
        "chosen": found.about["chosen"],
        "models": {
            side: {key: found.about[side][key] for key in ("model", "weights")}
            for side in ("base", "trained")
        },
    }


def row(name: str, line: dict[str, Any]) -> str:
    """Write what came out for one pair."""
    text = [
        f"{name}: base {_figure(line['base'])}, trained {_figure(line['trained'])}, "
        f"gain {_figure(line['gain'])}",
        *(f"  {name}, {_strength(line['chosen'][name])}" for name in LABELLED),
    ]
    for arm, share in line["shares"].items():
        told = f"  {arm}: {'no share' if share is None else _figure(share) + ' of the gain'}"
        code = line.get("code", {}).get(arm)  # lines of before do not have it
        text.append(told if code is None else f"{told}, {code['value']:.3f} in code")
    if line["random"]:
        text.append(
            f"  {len(line['random'])} random directions: {min(line['random']):.3f} to "
            f"{max(line['random']):.3f} right, the features {line['reached']:.3f}, "
            f"p = {line['chance']:.3g}"
        )
    for arm, blind in line.get("blind", {}).items():
        text.append(
            f"  {arm} of {len(blind['others'])} orders of labels: {min(blind['others']):.3f} to "
            f"{max(blind['others']):.3f} right, {arm} {blind['reached']:.3f}, "
            f"p = {blind['chance']:.3g}"
        )
    for arm, share in line["removed"].items():
        text.append(f"  {arm}: {'no share' if share is None else _figure(share) + ' lost'}")
    text.append(f"  capability {line['capability']}; features {line['carried']}")
    return "\n".join(text)


def _strength(chosen: dict[str, Any]) -> str:
    """Write which strength was chosen, and what it gave where it was."""
    (tried,) = (each for each in chosen["tried"] if each["length"] == chosen["length"])
    text = f"length {chosen['length']:.1f}: {tried['right']['value']:.3f} right on the train split"
    blind = tried.get("dealt out")
    return text if blind is None else f"{text}, chosen for {blind['value']:.3f} dealt out to it"


def _figure(values: dict[str, float]) -> str:
    return f"{values['value']:.3f} ({values['low']:.3f} to {values['high']:.3f})"


def _told(found: Any) -> str:
    return f"{found.name}: {found.accuracy.value:.3f} right"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/verdicts"), help="of what is kept"
    )
    parser.add_argument("--only", nargs="+", metavar="PAIR", help="pairs to judge, not all")
    parser.add_argument("--problems", type=int, default=150, help="of each split")
    parser.add_argument("--n", type=int, default=8, help="completions of each")
    parser.add_argument("--randoms", type=int, default=100, help="random directions")
    parser.add_argument("--orders", type=int, default=100, help="of shuffled labels, a direction")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
