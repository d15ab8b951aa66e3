"""How much memory a run takes, by counting."""

import pytest
import torch
from tiny import tiny_model
from words import quick

from entropy_probe.kvcache import make_cache
from entropy_probe.training.estimate import estimate_memory
from entropy_probe.training.optimizing import make_optimizer

MODEL = tiny_model()
BYTES = sum(p.numel() * 4 for p in MODEL.parameters())


def test_weights_gradients_and_optimizer_are_exact():
    found = estimate_memory(MODEL, quick(optimizer="adamw"), longest_prompt=4)
    assert (found["weights"], found["gradients"], found["optimizer"]) == (BYTES, BYTES, 2 * BYTES)
    assert found["reference"] == 0
    assert estimate_memory(MODEL, quick(beta=0.1), longest_prompt=4)["reference"] == BYTES
    assert estimate_memory(MODEL, quick(momentum=0.0), longest_prompt=4)["optimizer"] == 0


@pytest.mark.parametrize(("name", "slots"), [("sgd", 1), ("adamw", 2)])
def test_the_optimizer_keeps_as_much(name, slots):
    model = tiny_model()
    optimizer = make_optimizer(model, quick(optimizer=name))
    model(input_ids=torch.tensor([[4, 5]])).logits.sum().backward()
    optimizer.step()
    kept = sum(
        value.numel() * 4
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim()
    )
    assert kept == slots * BYTES
    assert estimate_memory(model, quick(optimizer=name), longest_prompt=2)["optimizer"] == kept


def test_keys_and_values_are_those_of_rows_that_go_on():
    found = estimate_memory(MODEL, quick(prompts=3, n=2, max_new_tokens=5), longest_prompt=4)
    cache = make_cache(MODEL)
    with torch.no_grad():
        MODEL(input_ids=torch.ones(6, 9, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(
        part[:, :, -9:].numel() * 4 for layer in cache.layers for part in (layer.keys, layer.values)
    )
    assert found["rollout: keys and values"] == held


def test_processes_share():
    config = quick(prompts=4, n=2)
    alone = estimate_memory(MODEL, config, longest_prompt=4)
    shared = estimate_memory(MODEL, config, longest_prompt=4, processes=2)
    assert shared["weights"] == alone["weights"]
    assert shared["rollout: keys and values"] * 2 == alone["rollout: keys and values"]
    sharded = estimate_memory(MODEL, quick(shard=True), longest_prompt=4, processes=2)
    assert sharded["weights"] == alone["weights"] // 2


def test_fewer_tokens_a_pass_take_less():
    large, small = (
        estimate_memory(MODEL, quick(micro_batch_tokens=tokens), longest_prompt=4)
        for tokens in (64, 16)
    )
    assert small["update: states of a pass"] * 4 == large["update: states of a pass"]
