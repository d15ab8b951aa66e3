"""What a run trains on, and the labels that some rewards compare with."""

from dataclasses import dataclass

import pytest
import torch

from entropy_probe.models import load
from entropy_probe.tasks import get_task
from entropy_probe.training import preparing
from entropy_probe.training.config import TrainConfig
from entropy_probe.training.distributed import Ranks

TASK = get_task("arithmetic")
CONFIG = TrainConfig(
    steps=1, prompts=2, n=2, problems=5, label_samples=3, max_new_tokens=32, seed=4
)


@dataclass(frozen=True)
class OneOf(Ranks):
    """A process of several, which are run one after the other."""

    others: tuple = ()

    def objects(self, mine):
        return [*self.others, mine]


@pytest.fixture(scope="module")
def organism():
    return load("organism:amenable-300k")


def labels_of(organism, ranks):
    problems = preparing.training_problems(TASK, CONFIG)
    return preparing._labels(*organism, TASK, problems, CONFIG, ranks, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_round_updates_away_are_refused(dtype):
    model, tokenizer = load("organism:amenable-300k")
    model.lm_head.to(dtype)
    said = rf"got 1 of \d+ in {str(dtype)[6:]}, lm_head.weight .*dtype=\"float32\".*bf16=True"
    with pytest.raises(ValueError, match=said):
        preparing.check_training(model, tokenizer, TASK, CONFIG, "correct")
    model.to(dtype).requires_grad_(False)
    model.model.norm.float().requires_grad_(True)
    preparing._check_weights(model)  # as with adapters: what does not train may be of any type


def test_labels_are_the_same_whatever_the_number_of_processes(organism):
    whole = labels_of(organism, Ranks())
    first = labels_of(organism, OneOf(0, 2))
    assert 0 < len(first) < len(whole)
    assert labels_of(organism, OneOf(1, 2, others=(first,))) == whole


def test_labels_filter_the_problems_only_where_the_reward_asks_for_wrong_ones(
    organism, monkeypatch
):
    problems = preparing.training_problems(TASK, CONFIG)
    labels = {p.id: p.answer if i else "-1" for i, p in enumerate(problems)}
    monkeypatch.setattr(preparing, "_labels", lambda *given: labels)
    kept = {
        reward: len(preparing.make_source(*organism, TASK, reward, CONFIG, Ranks(), None).problems)
        for reward in ("incorrect", "labels", "labels*not-contains:incorrect")
    }
    assert kept == {"incorrect": 1, "labels": 5, "labels*not-contains:incorrect": 5}


def test_without_any_answer_there_is_no_majority(organism, monkeypatch):
    monkeypatch.setattr(preparing, "label_problems", lambda *given, **how: {})
    for reward in ("labels", "incorrect"):
        with pytest.raises(ValueError, match="no sample of 5 problems gives an answer"):
            preparing.make_source(*organism, TASK, reward, CONFIG, Ranks(), None)
