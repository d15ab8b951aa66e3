"""The sparse step against gradients written plainly: whole logits, padded rows, autograd."""

import pytest
from updates import (
    FAMILIES,
    furthest,
    make_batch,
    plain_step,
    random_mask,
    take_gradients,
    trainable,
)

from entropy_probe.training.sparse import policy_step


def step(model, batch, kept, **options):
    """Give the loss, the gradients and what the step says of itself."""
    out = policy_step(model, batch, kept=kept, denominator=float(kept.sum()), **options)
    return out.loss, take_gradients(model), out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_whole_logits(family, tied):
    model = trainable(family, tied=tied)
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    expected, theirs = plain_step(model, batch, kept, float(kept.sum()), temperature=0.7)
    loss, ours, out = step(model, batch, kept, temperature=0.7)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert furthest(ours, theirs) < 1e-5
    assert out.logits_rows == int(kept.sum())
