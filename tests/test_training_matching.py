import math

import pytest
import torch
from tiny import tiny_model

from entropy_probe.training.matching import gradient_norm, matched_scale, rescale_gradients


def with_gradients() -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,))]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def flat(parameters) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()


def test_the_gradient_gets_the_length_and_keeps_its_direction():
    for target in (0.01, 3.0, 700.0):
        parameters = with_gradients()
        before = flat(parameters)
        assert rescale_gradients(parameters, target) == pytest.approx(float(before.norm()))
        assert float(flat(parameters).norm()) == pytest.approx(target)
        cosine = torch.cosine_similarity(before, flat(parameters), dim=0)
        assert float(cosine) == pytest.approx(1.0)
        assert parameters[2].grad is None


def test_clipping_shortens_only():
    parameters = with_gradients()
    before = flat(parameters)
    rescale_gradients(parameters, float(before.norm()) * 2, lengthen=False)
    assert torch.equal(flat(parameters), before)
    rescale_gradients(parameters, float(before.norm()) / 2, lengthen=False)
    torch.nn.utils.clip_grad_norm_(other := with_gradients(), 1.0)
    assert float(flat(parameters).norm()) == pytest.approx(float(before.norm()) / 2)
    rescale_gradients(again := with_gradients(), 1.0, lengthen=False)
    assert float(flat(again).norm()) == pytest.approx(float(flat(other).norm()), rel=1e-5)


def test_arms_of_a_model_end_with_one_length():
    model = tiny_model()
    lengths = []
    for scale in (1.0, 0.2):
        model.zero_grad()
        (scale * model(torch.arange(6)[None]).logits.square().mean()).backward()
        lengths.append(rescale_gradients(model.parameters(), 0.5))
        assert gradient_norm(model.parameters()) == pytest.approx(0.5, rel=1e-5)
    assert lengths[0] == pytest.approx(5 * lengths[1], rel=1e-4)


def test_no_gradient_stays_none():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    assert rescale_gradients(parameters, 1.0) == 0.0
    assert parameters[0].grad is None
    parameters[0].grad = torch.zeros(3)
    assert rescale_gradients(parameters, 1.0) == 0.0
    assert not parameters[0].grad.any()
    assert matched_scale(4.0, 1.0) == 0.25


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_would_spoil_the_weights_is_refused(bad):
    parameters = with_gradients()
    parameters[0].grad[1, 1] = bad
    with pytest.raises(ValueError, match="gradient's length is (nan|inf).*weights are as they"):
        rescale_gradients(parameters, 1.0)
    assert parameters[1].grad.isfinite().all()


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_length_is_above_zero(target):
    with pytest.raises(ValueError, match="target length must be above 0 and finite"):
        rescale_gradients(with_gradients(), target)
