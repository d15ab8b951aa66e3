"""Does a feature steer the strategy, where random directions do not?

``python -m analyses.sae.steering FOLDER``: on `organism:amenable`, with the dictionary
``FOLDER/sae-1-512-16-0`` (trained, as by `analyses.sae.ground_truth`, where it is missing) and with
the mean difference of states as the baseline. The feature is the one with the highest partial
Spearman, given the wording, between its activity at the last token of the prompt and the
probability of code; it, the strengths and the best dose are chosen on the task's train split. On
the test split: share of code, accuracy of each strategy, divergence, entropy, length and repetition
by dose; the same strength elsewhere; and directions of equal length that mean nothing. Results are
kept in FOLDER/steering.jsonl, and a second call goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from analyses.lines import Lines
from analyses.sae import ground_truth
from entropy_probe import load, sample
from entropy_probe.models.organisms.tokenizer import VOCABULARY
from entropy_probe.tasks import get_task, language
from sae_steering import load_sae, train_sae
from sae_steering.controls import (
    elsewhere,
    mean_difference,
    opening_probabilities,
    permutation_p,
    random_directions,
    random_latents,
)
from sae_steering.edits import Direction, feature_directions
from sae_steering.interventions import Intervention, Steering
from sae_steering.outcomes import Drawing, measure
from sae_steering.places import at_opening
from sae_steering.score import choice_selectivity
from sae_steering.sweeps import dose_of

LAYER, SIZE = 1, (512, 16)
CODE = VOCABULARY[language.CODE]
GRID = torch.arange(8.0, 161.0, 8.0)
"""Lengths of what is added that are tried on the train split."""
LOW, HIGH = 0.08, 0.92
"""Shares of code, on the train split, at which the strengths end."""
STEPS = 4
"""Doses on either side of 0."""
RANDOM = 199


def main(argv: list[str] | None = None) -> int:
    """Choose on the train split, report on the test split."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(options.threads)
    study = Study(options.folder, options.problems, options.n)
    for name in ("feature", "mean difference"):
        chosen = study.lines.get(f"{name}: chosen", lambda name=name: study.choose(name))
        doses = torch.linspace(chosen["low"], 0, STEPS + 1).tolist()
        doses += torch.linspace(0, chosen["high"], STEPS + 1).tolist()[1:]
        for dose in doses:
            study.report(f"{name}: dose {dose:g}", study.steering(name, dose), dose)
        for end in ("low", "high"):
            study.lines.get(
                f"{name}: random, {end}", lambda n=name, c=chosen, e=end: study.random(n, c, e)
            )
    chosen = study.lines.found["feature: chosen"]
    for place in ("all", "prompt", "generated", "forks", "non-forks", "elsewhere"):
        steering = study.elsewhere(place, chosen["high"])
        study.report(f"feature: where={place}", steering, chosen["high"])
    study.lines.get("feature: random latents", lambda: study.latents(chosen))
    for prefix in (language.CODE, language.PROSE):
        arm = Intervention(f"forced {prefix}", "token injection", prefix=prefix)
        study.lines.get(f"forced: {prefix}", lambda arm=arm: study.answered(arm, 1.0))
    print(study.summary())
    return 0


class Study:
    """The organism, its dictionary, problems of both splits, and what was found so far."""

    def __init__(self, folder: Path, problems: int, n: int) -> None:
        """Load everything."""
        self.model, self.tokenizer = load("organism:amenable")
        self.task = get_task("arithmetic")
        self.sae = _dictionary(folder)
        self.train = self.task.problems(600, split="train", seed=11)
        self.test = self.task.problems(problems, split="test", seed=12)
        self.drawing = Drawing(n=n, max_new_tokens=72, seed=1, batch_size=512)
        self.lines = Lines(folder / "steering.jsonl")
        self._states: tuple | None = None

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the state at the last token of each train prompt, and the probability of code."""
        if self._states is None:
            prompts = [problem.prompt for problem in self.train]
            rows = sample(
                self.model, self.tokenizer, prompts, max_new_tokens=1, residual_layers=[LAYER],
                residual_positions="all", alternatives=0, batch_size=600,
            )  # fmt: skip
            code = opening_probabilities(self.model, self.tokenizer, prompts)[:, CODE]
            self._states = rows.residuals[LAYER], code
        return self._states

    def choose(self, name: str) -> dict[str, Any]:
        """Choose a direction, and the strengths between which it moves the share of code."""
        found: dict[str, Any] = {"feature": None}
        if name == "feature":
            states, code = self.states()
            wordings = [list(language.WORDINGS).index(p.facts["wording"]) for p in self.train]
            acts = self.sae.encode(states)
            table = choice_selectivity(acts, code, given=torch.tensor(wordings))
            found["feature"] = int(table["partial"].nan_to_num().argmax())
            line = table.lines([found["feature"]])[0]
            found |= {column: line[column] for column in ("partial", "spearman")}
            length = float(feature_directions(self.sae, [found["feature"]]).norm())
        else:
            length = float(self._mean_difference().vector.norm())
        for end, sign, reached in (("low", -1, LOW), ("high", 1, HIGH)):
            for size in GRID.tolist():
                strength = sign * size / length
                share = self.opening(self.along(found["feature"], strength), self.train)
                found |= {end: strength, f"at_{end}": share}
                if sign * share >= sign * reached:
                    break
        return found | {"length": length}

    def steering(self, name: str, strength: float) -> Steering:
        """Give the steering by the chosen feature, or along the mean difference."""
        return self.along(self.lines.found[f"{name}: chosen"]["feature"], strength)

    def along(self, feature: int | None, strength: float) -> Steering:
        """Give the steering by a feature, or along the mean difference where there is none."""
        if feature is None:
            return Steering(None, {self._mean_difference(): strength}, LAYER, where=at_opening)
        return Steering(self.sae, {feature: strength}, LAYER, where=at_opening)

    def elsewhere(self, place: str, strength: float) -> Steering:
        """Give the steering by the feature at other places."""
        features = self.steering("feature", strength).features
        nats = None
        if "fork" in place:
            base = self.lines.get("threshold", lambda: {"nats": self._threshold()})
            nats = base["nats"]
        where = elsewhere(at_opening) if place == "elsewhere" else place
        return Steering(self.sae, features, LAYER, where=where, threshold=nats)

    def opening(self, steering: Steering, problems: list) -> float:
        """Give the share of code among first tokens, exactly."""
        with steering.on(self.model) as steered:
            found = opening_probabilities(steered, self.tokenizer, [p.prompt for p in problems])
        return float(found[:, CODE].mean())

    def report(self, key: str, steering: Steering, strength: float) -> None:
        """Measure a steering on the test split."""
        arm = Intervention(key, "features", steering) if strength else None
        self.lines.get(key, lambda: self.answered(arm, strength))

    def answered(self, arm: Intervention | None, strength: float) -> dict[str, Any]:
        """Measure an intervention on the test split."""
        outcome = measure(self.model, self.tokenizer, self.task, self.test, arm, self.drawing)
        dose = dose_of(self.model, self.tokenizer, self.task, strength, outcome)
        return dose.to_dict() | {"cost": outcome.cost}

    def random(self, name: str, chosen: dict[str, Any], end: str) -> dict[str, Any]:
        """Give the share of code under directions as long as what is added at one end."""
        length = abs(chosen[end]) * chosen["length"]
        ours = self.opening(self.steering(name, chosen[end]), self.test)
        drawn = []
        for direction in random_directions(torch.full((128,), length / 128**0.5), RANDOM, seed=5):
            steering = Steering(None, {direction: 1.0}, LAYER, where=at_opening)
            drawn.append(self.opening(steering, self.test))
        sign = 1 if end == "high" else -1
        return {
            "length": length,
            "ours": ours,
            "least": min(drawn),
            "median": sorted(drawn)[RANDOM // 2],
            "most": max(drawn),
            "p": permutation_p(sign * ours, [sign * share for share in drawn]),
        }

    def latents(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Give the share of code under other features that are about as often active."""
        states, _ = self.states()
        density = (self.sae.encode(states) > 0).float().mean(dim=0)
        near = int(((density > density[chosen["feature"]] / 4)
                    & (density < density[chosen["feature"]] * 4)).sum()) - 1  # fmt: skip
        others = random_latents(density, chosen["feature"], min(near, 99), within=4.0)
        drawn = []
        for other in others:
            strength = chosen["high"] * chosen["length"]
            strength /= float(feature_directions(self.sae, [other]).norm())
            steering = Steering(self.sae, {other: strength}, LAYER, where=at_opening)
            drawn.append(self.opening(steering, self.test))
        return {
            "density": float(density[chosen["feature"]]),
            "others": len(drawn),
            "most": max(drawn),
            "p": permutation_p(
                self.opening(self.steering("feature", chosen["high"]), self.test), drawn
            ),
        }

    def summary(self) -> str:
        """Write the figures down in a table."""
        found, rows = self.lines.found, []
        for name in ("feature", "mean difference"):
            rows.append(f"{name}: strength, share of code, accuracy of code, of prose, "
                        "nats a token, entropy, tokens, repetition")  # fmt: skip
            rows += [
                "  " + _row(line) for key, line in found.items() if key.startswith(f"{name}: dose")
            ]
            for end in ("low", "high"):
                line = found[f"{name}: random, {end}"]
                rows.append(
                    f"  {RANDOM} random directions of length {line['length']:.0f}: "
                    f"{line['least']:.3f} to {line['most']:.3f}, p = {line['p']:.3g} ({end} end)"
                )
        rows += [f"{key}: {_row(line)}" for key, line in found.items() if "where=" in key]
        rows += [f"{key!r}: {_row(line)}" for key, line in found.items() if "forced" in key]
        return "\n".join(rows)

    def _mean_difference(self) -> Direction:
        states, code = self.states()
        noise = torch.Generator().manual_seed(3)
        return mean_difference(states, torch.rand(len(code), generator=noise) < code)

    def _threshold(self) -> float:
        """Give the 80th percentile of the entropy of an unsteered run on the train split."""
        from sae_steering.forks import fork_threshold

        prompts = [problem.prompt for problem in self.train[:200]]
        run = sample(self.model, self.tokenizer, prompts, max_new_tokens=72, batch_size=200)
        return fork_threshold(run).nats


def _row(line: dict[str, Any]) -> str:
    """Write what one dose did."""

    def figure(value: dict[str, Any] | None) -> str:
        if value is None:
            return "none"
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"

    parts = [f"{line['strength']:8.2f}", figure(line["shares"]["code"])]
    parts += [figure(line["accuracies"][way]) for way in ("code", "prose")]
    parts += [f"{line['divergence']['value']:.3f}"]
    parts += [f"{line['entropy']:.3f}", f"{line['length']:.1f}", f"{line['repetition']:.3f}"]
    return ", ".join(parts)


def _dictionary(folder: Path) -> Any:
    """Give the dictionary that the folder holds; train it where there is none."""
    d_sae, k = SIZE
    path = folder / f"sae-{LAYER}-{d_sae}-{k}-0"
    if (path / "cfg.json").exists():
        return load_sae(path)
    runs = ground_truth.capture_runs(folder, 1.0)
    return train_sae(runs["train"], path, layer=LAYER, d_sae=d_sae, k=k, samples=300_000,
                     rate=2e-3, resume=True)  # fmt: skip


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the dictionary and the results are kept")
    parser.add_argument("--problems", type=int, default=200, help="of the test split")
    parser.add_argument("--n", type=int, default=8, help="completions of each")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
