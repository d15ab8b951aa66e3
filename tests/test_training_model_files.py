"""A model's files: generation configurations that transformers does not save, or nobody can."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from words import Words, quick

from entropy_probe import load
from entropy_probe.training.model_files import check_configuration, save_model
from entropy_probe.training.trainer import train


def test_a_generation_configuration_is_written_as_it_is(tmp_path):
    model = tiny_model()
    model.generation_config.update(do_sample=False, temperature=0.6, top_k=7, eos_token_id=[2, 5])
    kept = model.generation_config
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "theirs")
    save_model(model, tiny_tokenizer(), tmp_path / "ours", model.state_dict())
    assert model.generation_config is kept
    loaded, _ = load(tmp_path / "ours", device="cpu")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    found, before = loaded.generation_config.to_dict(), kept.to_dict()
    assert {name: found[name] for name in before} == before


def test_an_ordinary_configuration_is_written_as_transformers_does(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "theirs")
    save_model(model, tiny_tokenizer(), tmp_path / "ours", model.state_dict())
    for file in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes()


def test_steps_are_not_lost_to_a_temperature_that_is_not_read(tmp_path):
    model = tiny_model()
    model.generation_config.update(do_sample=False, temperature=0.6)
    done = train(model, tiny_tokenizer(), Words(), config=quick(steps=1), out=tmp_path / "run")
    loaded, _ = load(done.checkpoint, device="cpu")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert loaded.generation_config.temperature == 0.6


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    check_configuration(tiny_model())
    several, misplaced = tiny_model(), tiny_model()
    several.generation_config.num_return_sequences = 2
    misplaced.config.temperature = 0.6
    for model, why in ((several, "num_return_sequences"), (misplaced, "Some generation param")):
        with pytest.raises(ValueError, match=f"cannot be saved, and so no checkpoint .*{why}"):
            train(model, tiny_tokenizer(), Words(), config=quick(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
