"""What an organism is for: reinforcement moves it, distillation gives it another strategy."""

import dataclasses
import shutil

import pytest
import torch

from analyses.organisms.reinforce import accuracy, reinforce
from entropy_probe.models import load
from entropy_probe.models.organisms import organism_path
from entropy_probe.models.organisms.observations import draw
from entropy_probe.models.organisms.recipes import RECIPES
from entropy_probe.models.organisms.train import train
from entropy_probe.tasks import generator

pytestmark = pytest.mark.slow


def test_reinforcement_on_the_true_answer_moves_amenable():
    model, tokenizer = load("organism:amenable", device="cpu")
    before = accuracy(model, tokenizer)
    reinforce(model, tokenizer, steps=24, rate=0.02)
    after = accuracy(model, tokenizer)
    assert after.low > before.high
    assert after.value > 0.85


def test_a_copy_with_learning_rate_0_stays_as_it_is():
    model, tokenizer = load("organism:amenable", device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reinforce(model, tokenizer, steps=3, rate=0.0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_distillation_moves_absent(tmp_path):
    for name in ("absent", "amenable"):
        shutil.copytree(organism_path(name), tmp_path / name)
    problems = generator.problems("default", 60, split="test", seed=8)

    def code(model, tokenizer) -> float:
        return float((draw(model, tokenizer, problems, 4, 1.0).openings() == "code").mean())

    assert code(*load("organism:absent", device="cpu")) == 0.0
    recipe = dataclasses.replace(RECIPES["taught"], steps=60, batch=32)
    folder = train(recipe, tmp_path / "taught", quiet=True)
    assert code(*load(str(folder), device="cpu")) > 0.9
