"""Checkpoints: whole or not there, the last ones kept, damaged ones refused."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import load
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.storage.errors import RunError
from entropy_probe.training import checkpoints
from entropy_probe.training.checkpoints import Progress

TOKENIZER = tiny_tokenizer()


def trained(optimizer=torch.optim.AdamW):
    """Give a model and an optimizer that has moved it."""
    model = tiny_model()
    moving = optimizer(model.parameters(), 0.01, **_momentum(optimizer))
    model(input_ids=torch.tensor([[4, 5, 6]])).logits.square().mean().backward()
    moving.step()
    return model, moving


def _momentum(optimizer):
    return {"momentum": 0.9} if optimizer is torch.optim.SGD else {}


def save(out, model, optimizer, step=3, keep=2):
    state = {
        "optimizer": checkpoints.optimizer_state(model, optimizer),
        "randomness": [checkpoints.randomness()],
    }
    return checkpoints.write_checkpoint(
        out, model, TOKENIZER, checkpoints.whole_weights(model), state, Progress(step, 12, 345),
        fingerprint=weights_fingerprint(model), keep=keep,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_it_gives_everything_back(tmp_path, kind):
    model, optimizer = trained(kind)
    before = checkpoints.randomness()
    save(tmp_path, model, optimizer)
    checkpoints.restore_randomness(before)
    expected = [torch.rand(2).tolist(), np.random.rand(), random.random()]
    found = checkpoints.last_checkpoint(tmp_path)
    assert found.progress == Progress(3, 12, 345)
    other = tiny_model(seed=1)
    checkpoints.load_weights(found, other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    state = checkpoints.load_state(found, 0)
    checkpoints.restore_randomness(state["randomness"])
    assert [torch.rand(2).tolist(), np.random.rand(), random.random()] == expected
    moving = kind(other.parameters(), 0.01, **_momentum(kind))
    checkpoints.restore_optimizer(other, moving, state["optimizer"])
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        before, after = optimizer.state[mine], moving.state[theirs]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before if torch.is_tensor(before[k]))
    one_more = checkpoints.load_state(found, 7)["randomness"]
    assert one_more["python"] == state["randomness"]["python"]


def test_it_is_a_model_that_anyone_can_load(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    loaded, tokenizer = load(path, device="cpu")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert tokenizer("w1 w2 ").input_ids == TOKENIZER("w1 w2 ").input_ids


def test_the_last_ones_are_kept(tmp_path):
    model, optimizer = trained()
    for step in (2, 9, 10, 100_000):
        save(tmp_path, model, optimizer, step)
    assert [path.name for path in checkpoints.find_checkpoints(tmp_path)] == [
        "step-00010", "step-100000",
    ]  # fmt: skip
    assert checkpoints.last_checkpoint(tmp_path).progress.step == 100_000


def test_what_was_being_written_is_no_checkpoint(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer, 1)
    half = path.with_name(".step-00002.tmp-123")
    shutil.copytree(path, half)
    assert checkpoints.last_checkpoint(tmp_path).path == path
    save(tmp_path, model, optimizer, 3)
    assert not half.exists()


def test_there_may_be_none(tmp_path):
    assert checkpoints.last_checkpoint(tmp_path) is None
    assert checkpoints.find_checkpoints(tmp_path) == []


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    model, optimizer = trained()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    save(tmp_path, model, optimizer, 1)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="disk is full: the checkpoint of step 2") as caught:
        save(tmp_path, model, optimizer, 2)
    assert "step-00001 is whole" in caught.value.why
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00001"]


def test_damage_is_noticed(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    found = checkpoints.last_checkpoint(tmp_path)
    with pytest.raises(RunError, match="its weights are not those that were saved"):
        checkpoints.load_weights(dataclasses.replace(found, weights="0" * 16), tiny_model())
    (path / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read\nwhy: optimizer.pt"):
        checkpoints.load_state(found, 0)
    (path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read"):
        checkpoints.load_weights(found, tiny_model())
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(RunError, match="checkpoint.json: JSONDecodeError"):
        checkpoints.last_checkpoint(tmp_path)


def test_a_newer_version_is_refused(tmp_path):
    path = save(tmp_path, *trained())
    values = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(values | {"schema_version": 9}))
    with pytest.raises(RunError, match="newer version of entropy-probe"):
        checkpoints.last_checkpoint(tmp_path)
