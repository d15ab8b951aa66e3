"""What a small dictionary finds on an organism whose truth is known: its choice, and steering it.

The analyses of `analyses/sae` on a small scale: features are chosen on problems of the train split
and measured on the test split, beside the same choice with labels that mean nothing.
"""

import pytest
import torch
from wrapped import needs

from entropy_probe import capture, load
from entropy_probe.models.organisms.tokenizer import VOCABULARY
from entropy_probe.tasks import get_task, language
from sae_steering import train_sae
from sae_steering.activities import activities
from sae_steering.auroc import auroc
from sae_steering.contrast import pairs
from sae_steering.controls import opening_probabilities, permutation_p, random_directions
from sae_steering.edits import feature_directions
from sae_steering.interventions import Steering
from sae_steering.places import at_opening
from sae_steering.score import choice_selectivity

LAYER = 1
CODE, SWIFT = VOCABULARY[language.CODE], VOCABULARY[language.SWIFT]
TWO_DIGITS = torch.tensor([VOCABULARY[pair] for pair in language.PAIRS])
WORDINGS = list(language.WORDINGS)


def kinds(record):
    """Give 1 at the tokens of completions in code, 0 in swift prose, -1 elsewhere."""
    rows = torch.arange(len(record))
    first = record.tokens[rows, record.prompt_lengths]
    second = record.tokens[rows, record.prompt_lengths + 1]
    found = torch.where(first == CODE, 1, torch.where(second == SWIFT, 0, -1))
    return found[:, None].expand(record.tokens.shape)


class Study:
    """The organism, runs of both splits, and a dictionary trained on one of them."""

    def __init__(self, folder):
        self.model, self.tokenizer = load("organism:amenable")
        self.problems, self.found, self.code = {}, {}, {}
        runs = {}
        for name, split, seed, count in (
            ("train", "train", 1, 1800), ("choose", "train", 2, 700), ("report", "test", 3, 700),
        ):  # fmt: skip
            self.problems[name] = get_task("arithmetic").problems(count, split=split, seed=seed)
            runs[name] = capture(
                self.model, self.tokenizer, self.problems[name], folder / name, task="arithmetic",
                max_new_tokens=60, residual_layers=[LAYER], residual_positions="all", seed=seed,
                alternatives=0, batch_size=256,
            )  # fmt: skip
        self.sae = train_sae(
            runs["train"], folder / "sae", layer=LAYER, d_sae=256, k=8, samples=150_000, rate=2e-3
        )
        for name in ("choose", "report"):
            self.found[name] = activities(self.sae, runs[name], mark=kinds)
            self.code[name] = self.opening(name)

    def opening(self, name, steering=None):
        """Give the probability of code at the opening of each problem, exactly."""
        prompts = [problem.prompt for problem in self.problems[name]]
        if steering is None:
            return opening_probabilities(self.model, self.tokenizer, prompts)[:, CODE]
        with steering.on(self.model) as steered:
            return opening_probabilities(steered, self.tokenizer, prompts)[:, CODE]

    def choice(self, name, code=None):
        """Score the features at the opening, given the wording."""
        found = self.found[name]
        first = found[found.places == 0]
        code = self.code[name] if code is None else code
        given = torch.tensor([WORDINGS.index(p.facts["wording"]) for p in self.problems[name]])
        return choice_selectivity(first.acts, code[first.rows], given=given[first.rows])

    def later(self, name):
        """Give the states of two-digit tokens after the choice, of code and of swift prose."""
        found = self.found[name]
        return found[(found.places >= 2) & (found.marks >= 0) & torch.isin(found.read, TWO_DIGITS)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    needs("sae_lens")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that the same dictionary is trained everywhere
    yield Study(tmp_path_factory.mktemp("study"))
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_feature_knows_the_choice_beyond_the_wording(study):
    feature = study.choice("choose").best(1, by="partial", around=0.0)[0]
    table = study.choice("report")
    assert abs(float(table["partial"][feature])) > 0.6
    assert 0.6 < table.about["spearman of the kind alone"] < 0.95
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    nothing = study.choice("choose", study.code["choose"][order])
    chosen = nothing.best(1, by="partial", around=0.0)[0]
    assert abs(float(nothing["partial"][chosen])) < 0.2
    noise = study.choice("report", study.code["report"][order])
    assert abs(float(noise["partial"][chosen])) < 0.15


@pytest.mark.slow
def test_a_feature_tells_the_strategies_apart_on_equal_tokens(study):
    def matched(name, positive=None):
        later = study.later(name)
        positive = later.marks == 1 if positive is None else positive[later.rows]
        strata = pairs(later.read, later.places)
        return auroc(later.acts, positive, clusters=later.prompts, strata=strata).value

    feature = int((matched("choose") - 0.5).abs().nan_to_num().argmax())
    assert abs(float(matched("report")[feature]) - 0.5) > 0.45
    drawn = torch.rand(700, generator=torch.Generator().manual_seed(1)) < 0.5
    chosen = int((matched("choose", drawn) - 0.5).abs().nan_to_num().argmax())
    assert abs(float(matched("report", drawn)[chosen]) - 0.5) < 0.15


@pytest.mark.slow
def test_steering_a_feature_moves_the_share_of_code_and_random_directions_do_not(study):
    table = study.choice("choose")

    def along(feature, size):
        """Steer by a feature at the opening, by so much of its direction, towards code."""
        length = float(feature_directions(study.sae, [feature]).norm())
        sign = 1 if table["partial"][feature] > 0 else -1
        return Steering(study.sae, {feature: sign * size / length}, LAYER, where=at_opening)

    def moved(feature):
        return float(study.opening("choose", along(feature, 60)).mean())

    feature = max(table.best(5, by="partial", around=0.0), key=moved)

    def reach(way, share):
        """Give the smallest of some sizes at which the share of code is reached."""
        for size in range(10, 161, 10):
            found = float(study.opening("choose", along(feature, way * size)).mean())
            if way * found >= way * share:
                return way * size
        raise AssertionError(f"the share of code is {found} at the most")

    low, high = reach(-1, 0.08), reach(1, 0.92)
    doses = [low, low / 2, 0, high / 2, high]
    shares = [float(study.opening("report", along(feature, dose)).mean()) for dose in doses]
    assert shares == sorted(shares)
    assert shares[0] <= 0.1
    assert shares[-1] >= 0.9
    plain = float(study.code["report"].mean())
    assert shares[2] == pytest.approx(plain, abs=1e-6)
    for size, share, way in ((low, shares[0], -1), (high, shares[-1], 1)):
        like = torch.full((128,), abs(size) / 128**0.5)
        others = [
            float(study.opening("report", Steering(None, {d: 1.0}, LAYER, where=at_opening)).mean())
            for d in random_directions(like, 39, seed=2)
        ]
        assert permutation_p(way * share, [way * other for other in others]) <= 0.05
        assert way * (share - plain) > 2 * way * (sorted(others)[19] - plain)
