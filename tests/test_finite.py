"""Logits that are no numbers: sampling and scoring stop where they begin, and say what to do."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture, sample, score
from entropy_probe.hooks import edit_residuals

TOKENIZER = tiny_tokenizer()
PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7]]
IDS, VALID = torch.tensor([[1, 5, 6, 7]]), torch.tensor([[False, True, True, True]])


def scored(model, **options):
    return score(model, TOKENIZER, IDS, VALID, **options)


def sampled(model, **options):
    return sample(model, TOKENIZER, PROMPTS, max_new_tokens=4, **options)


@pytest.fixture
def broken():
    """Give a model with a token whose row of the unembedding is NaN."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    return model


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_nan_in_the_weights_stops_the_first_token(broken, temperature):
    said = "row 6, generated token 0: the model computed NaN .* in float32: .* its weights"
    with pytest.raises(ValueError, match=said):
        sampled(broken, n=2, offset=3, temperature=temperature)


def test_scores_say_it_too_and_not_that_the_head_is_unknown(broken):
    with pytest.raises(ValueError, match="the model computed NaN .* in float32: .* its weights"):
        scored(broken)


def test_nothing_is_committed_of_what_is_no_number(broken, tmp_path):
    with pytest.raises(ValueError, match="the model computed NaN"):
        capture(broken, TOKENIZER, PROMPTS, tmp_path / "run", max_new_tokens=4)
    assert not list(tmp_path.rglob("*chunk*"))
    capture(tiny_model(), TOKENIZER, PROMPTS, tmp_path / "good", max_new_tokens=4)
    assert list(tmp_path.rglob("*chunk*"))


def test_a_row_that_breaks_later_is_named_with_its_token():
    model, passes = tiny_model(), []

    def breaking(stream):
        passes.append(len(stream))
        if len(passes) < 3:
            return None
        return stream.index_fill(0, torch.tensor([1]), torch.nan)

    said = "row 1, generated token 2: .* float32"
    with edit_residuals(model, 1, breaking), pytest.raises(ValueError, match=said):
        sampled(model)


@pytest.mark.parametrize("run", [sampled, scored])
def test_float16_that_overflows_is_told_what_holds_more(run):
    model = tiny_model(spread=1e6).half()
    said = r"(row \d|longest row).* in float16: load it in float32 or bfloat16"
    with pytest.raises(ValueError, match=said):
        run(model)


@pytest.mark.parametrize("run", [sampled, scored])
def test_a_temperature_that_divides_beyond_float32_names_one_that_does_not(run):
    with pytest.raises(ValueError, match="temperature 1e-39 divides .* above") as caught:
        run(tiny_model(), temperature=1e-39)
    least = float(str(caught.value).partition("above ")[2].partition(" ")[0])
    assert run(tiny_model(), temperature=least).entropy.isfinite().all()
    with pytest.raises(ValueError, match="beyond float32"):
        run(tiny_model(), temperature=least / 4)


def test_probability_zero_is_a_number():
    model = tiny_model()
    model.lm_head.bias = torch.nn.Parameter(torch.full((97,), -torch.inf))
    with torch.no_grad():
        model.lm_head.bias[40:50] = 0
    assert (sampled(model).entropy <= torch.tensor(10.0).log() + 1e-5).all()
