"""Fingerprints: equal for equal weights, other after an update, cheap to take, no overflow."""

import copy
from importlib import metadata

import huggingface_hub
import pytest
import torch
from commands import write_hub
from tiny import tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from entropy_probe.models import load
from entropy_probe.models.fingerprint import (
    library_versions,
    model_name,
    model_revision,
    weights_fingerprint,
)


def with_buffer(value: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("values", value)
    return module


def test_equal_weights_have_equal_fingerprints(tmp_path):
    model = tiny_model()
    mark = weights_fingerprint(model)
    assert len(mark) == 16
    assert int(mark, 16) >= 0
    assert weights_fingerprint(copy.deepcopy(model)) == mark
    model.save_pretrained(tmp_path)
    assert weights_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == mark
    assert weights_fingerprint(tiny_model(seed=1)) != mark


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_an_update_of_one_tensor_changes_the_fingerprint(name):
    model = tiny_model()
    before, parameter = weights_fingerprint(model), model.get_parameter(name)
    with torch.no_grad():
        parameter.add_(1e-6 * parameter.sign())
    assert weights_fingerprint(model) != before


def test_the_first_and_the_last_element_are_read():
    values = torch.zeros(1000)
    plain = weights_fingerprint(with_buffer(values))
    for index in (0, 999):
        assert (
            weights_fingerprint(with_buffer(values.index_fill(0, torch.tensor(index), 1))) != plain
        )


def test_names_shapes_and_dtypes_count_and_memory_layout_does_not():
    values = torch.arange(12.0).reshape(3, 4)
    mark = weights_fingerprint(with_buffer(values))
    assert weights_fingerprint(with_buffer(values.T.contiguous().T)) == mark
    assert weights_fingerprint(with_buffer(values.reshape(4, 3))) != mark
    assert weights_fingerprint(with_buffer(values.bfloat16())) != mark
    assert weights_fingerprint(nn.ModuleDict({"inner": with_buffer(values)})) != mark


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65])
def test_tensors_of_any_size_and_kind_are_read(count):
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        value = torch.ones(count, dtype=dtype)
        assert len(weights_fingerprint(with_buffer(value))) == 16


def test_more_elements_than_float32_can_count_are_read_within_bounds():
    huge = torch.ones(1).expand(136_134_656)  # the embedding of a 0.5B model, in no memory
    assert len(weights_fingerprint(with_buffer(huge))) == 16


def test_versions_are_those_installed(monkeypatch):
    found = library_versions()
    assert found["torch"] == metadata.version("torch")
    assert set(found) == {"entropy-probe", "torch", "transformers", "tokenizers", "numpy"}

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert set(library_versions().values()) == {"not installed"}


def test_name_and_revision_say_where_a_model_came_from(tmp_path):
    model = tiny_model()
    assert model_name(model) == "LlamaForCausalLM"
    assert model_revision(model) is None
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model_name(loaded) == str(tmp_path)
    loaded.config._commit_hash = "c0ffee"
    assert model_revision(loaded) == "c0ffee"


def test_a_hub_models_revision_is_the_commit_that_was_loaded(tmp_path, monkeypatch):
    commits = write_hub(tmp_path, "some/model", main=1.0, second=1.1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in ("main", "second"):
        asked = None if revision == "main" else revision
        for again in (asked, commits[revision]):
            model, _ = load("some/model", revision=again)
            assert model_revision(model) == commits[revision]
            scale = model.model.norm.weight[0].item() / tiny_model().model.norm.weight[0].item()
            assert scale == pytest.approx({"main": 1.0, "second": 1.1}[revision])
    model.save_pretrained(tmp_path / "mine")
    tiny_tokenizer().save_pretrained(tmp_path / "mine")
    assert model_revision(load(tmp_path / "mine")[0]) is None
