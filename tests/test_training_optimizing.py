"""Optimizers and learning rates."""

import pytest
import torch
from torch import nn
from words import quick

from entropy_probe.training.optimizing import make_optimizer, rate_at


def test_the_rate_rises_and_falls():
    config = quick(steps=10, lr=0.5, warmup=4, decay="linear")
    rates = [rate_at(config, update) for update in range(10)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.35])
    assert rates[4:] == pytest.approx([0.5 * (1 - i / 10) for i in range(4, 10)])


def test_the_rate_counts_updates_and_stays_without_decay():
    config = quick(steps=2, updates=2, epochs=3, lr=1.0, decay="linear")
    assert config.total_updates == 12
    assert rate_at(config, 11) == pytest.approx(1 / 12)
    assert {rate_at(quick(lr=0.3), update) for update in (0, 100)} == {0.3}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_has_what_trains(name, kind):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    config = quick(optimizer=name, momentum=0.5, weight_decay=0.25)
    optimizer = make_optimizer(model, config)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["params"] == [*model[1].parameters()]
    assert group["weight_decay"] == 0.25
    assert group.get("momentum", group.get("betas", (None,))[0]) == 0.5


def test_a_model_that_is_frozen_is_refused():
    with pytest.raises(ValueError, match="no parameter of the model trains"):
        make_optimizer(nn.Linear(1, 1).requires_grad_(False), quick())
