"""Training: resumed it is bit-equal, a finished organism loads, wrong states are refused."""

import dataclasses
import json
import random

import pytest
import torch
from torch.nn import functional

from entropy_probe.models.organisms import train as training
from entropy_probe.models.organisms.recipes import Recipe, Shape, fingerprint
from entropy_probe.models.organisms.tokenizer import BOS, CONTEXT, EOS, VOCABULARY
from entropy_probe.tasks.language import CODE

MINUTE = Recipe(shape=Shape(layers=1, width=16, hidden=16, heads=2), steps=6, batch=8, warmup=2)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(folder) -> dict:
    """Give a finished organism's weights."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_resumed_it_is_bit_equal_to_an_unbroken_run(tmp_path, monkeypatch):
    whole = weights(training.train(MINUTE, tmp_path / "whole", quiet=True))
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    plain, count = training.backward, 0

    def break_off(*arguments, **options):
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(training, "backward", break_off)
    with pytest.raises(KeyboardInterrupt):
        training.train(MINUTE, tmp_path / "broken", quiet=True)
    assert not (tmp_path / "broken").exists()
    with pytest.raises(ValueError, match="holds another recipe's state .* delete it"):
        training.train(dataclasses.replace(MINUTE, seed=1), tmp_path / "broken", quiet=True)
    calls = count
    resumed = weights(training.train(MINUTE, tmp_path / "broken", quiet=True))
    assert count - calls == 2  # two steps of six were left after step 4
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not (tmp_path / "broken.partial").exists()


def test_what_is_left_behind_loads_and_says_what_it_is(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = training.train(MINUTE, tmp_path / "minute", quiet=True)
    record = json.loads((folder / "recipe.json").read_text())
    assert record["hash"] == fingerprint(MINUTE)
    assert record["recipe"]["steps"] == 6
    assert record["device"] == "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.dtype == torch.float32
    assert (model.config.bos_token_id, model.config.eos_token_id) == (BOS, EOS)
    assert AutoTokenizer.from_pretrained(folder)("Find ").input_ids == [BOS, VOCABULARY["Find "]]
    assert [p.name for p in tmp_path.iterdir()] == ["minute"]


def test_a_batch_is_the_same_every_time_and_holds_whole_texts():
    rows = training.batch_of(MINUTE, 3)
    assert rows == training.batch_of(MINUTE, 3)
    assert rows != training.batch_of(MINUTE, 4)
    assert len(rows) == MINUTE.batch
    for ids, loss_weights in rows:
        assert ids[0] == BOS
        assert ids[-1] == EOS
        assert len(loss_weights) == len(ids) <= CONTEXT
        opening = loss_weights.index(MINUTE.opening_weight)
        assert ids[opening] in (VOCABULARY[CODE], VOCABULARY["Well, "])
        assert set(loss_weights[:opening]) == {MINUTE.prompt_weight}
        assert set(loss_weights[opening + 1 :]) == {1.0}


def test_the_loss_is_the_weighted_mean_of_next_token_losses():
    model = training.build_model(MINUTE).eval()
    rows = training.batch_of(MINUTE, 0)
    total, weight = 0.0, 0.0
    for ids, loss_weights in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        for at in range(1, len(ids)):
            total -= loss_weights[at] * functional.log_softmax(logits[at - 1], -1)[ids[at]].item()
            weight += loss_weights[at]
    assert training.backward(model, rows, "cpu").item() == pytest.approx(total / weight, rel=1e-5)


def test_with_a_teacher_the_targets_are_its_distributions_but_for_the_code():
    model = training.build_model(MINUTE).eval()
    teacher = training.build_model(dataclasses.replace(MINUTE, seed=9)).eval()
    ids = torch.tensor([[BOS, 5, VOCABULARY[CODE], 7]])
    on = torch.tensor([[0.0, 0.2, 4.0, 1.0]])
    ours = model(input_ids=ids).logits[0].double().log_softmax(-1)
    theirs = teacher(input_ids=ids).logits[0].double().softmax(-1)
    soft = -(theirs * ours).sum(-1)
    wanted = 0.2 * soft[0] - 4.0 * ours[1, VOCABULARY[CODE]] + soft[2]
    assert training.loss_of(model, ids, on, teacher).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )


def test_an_organism_may_start_from_another(tmp_path):
    later = dataclasses.replace(MINUTE, start="first", teacher="first")
    with pytest.raises(ValueError, match="needs the organism 'first' in .*: train it first"):
        training.train(later, tmp_path / "later", quiet=True)
    first = weights(training.train(MINUTE, tmp_path / "first", quiet=True))
    still = dataclasses.replace(later, rate=0.0)
    unchanged = weights(training.train(still, tmp_path / "still", quiet=True))
    assert all(torch.equal(unchanged[name], first[name]) for name in first)
    moved = weights(training.train(MINUTE, tmp_path / "moved", quiet=True))
    assert all(torch.equal(moved[name], first[name]) for name in first)
    (tmp_path / "later.partial").rmdir()
    changed = weights(training.train(later, tmp_path / "later", quiet=True))
    assert not torch.equal(changed["lm_head.weight"], first["lm_head.weight"])


def test_the_learning_rate_rises_and_falls():
    rates = [training.rate_at(MINUTE, step) / MINUTE.rate for step in range(MINUTE.steps)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])


def test_padding_is_on_the_right_and_weighs_nothing():
    ids, loss_weights = training.pad([([1, 2], [0.5, 0.5]), ([1, 2, 3], [1.0, 1.0, 1.0])], "cpu")
    assert ids.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert loss_weights.tolist() == [[0.5, 0.5, 0.0], [1.0, 1.0, 1.0]]


def test_a_minute_model_learns(tmp_path):
    recipe = dataclasses.replace(MINUTE, steps=60, rate=1e-2)
    folder = training.train(recipe, tmp_path / "minute", quiet=True)
    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(folder)
    rows = training.batch_of(recipe, random.Random(0).randrange(1000, 2000))
    fresh = training.backward(training.build_model(recipe), rows, "cpu")
    assert training.backward(trained, rows, "cpu") < fresh - 1.0


@pytest.mark.slow
def test_products_in_bfloat16_change_the_loss_and_its_gradient_by_little():
    rows, gradients, losses = training.batch_of(MINUTE, 0), [], []
    for fast in (False, True):
        model = training.build_model(MINUTE)
        if fast:
            model.set_attn_implementation("eager")
        losses.append(training.backward(model, rows, "cpu", fast=fast).item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert not torch.equal(*gradients)
    assert functional.cosine_similarity(*gradients, dim=0) > 0.99
