"""Dictionaries on plain tensors against their formulas, and what loading refuses."""

import inspect
import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from wrapped import needs

from entropy_probe.models import LoadError
from sae_steering import load_sae
from sae_steering.dictionary import PlainDictionary
from sae_steering.sae import SparseDictionary, dictionary, layer_of

D, F = 8, 24


def tensors(seed=0):
    noise = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}


def write(folder, config, parts):
    folder.mkdir(exist_ok=True)
    base = {"architecture": "standard", "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu",
            "sae_lens_version": "6.0.0"}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(base | config))
    save_file(parts, folder / "sae_weights.safetensors")
    return folder


def test_each_kind_activates_what_its_formula_says():
    parts, state = tensors(), torch.randn(D)
    pre = [
        sum((state[i] - parts["b_dec"][i]) * parts["W_enc"][i, j] for i in range(D))
        + parts["b_enc"][j]
        for j in range(F)
    ]
    pre = torch.stack(pre)
    standard = dictionary(*parts.values(), layer=0)
    torch.testing.assert_close(standard.encode(state), pre.clamp(min=0))
    topk = dictionary(*parts.values(), layer=0, k=5)
    fifth = pre.sort(descending=True).values[4]
    torch.testing.assert_close(topk.encode(state), pre.clamp(min=0) * (pre >= fifth))
    jump = dictionary(*parts.values(), layer=0, threshold=torch.full((F,), 0.7))
    torch.testing.assert_close(jump.encode(state), torch.where(pre > 0.7, pre, 0.0))
    assert {int((d.encode(state) > 0).sum()) for d in (standard, topk, jump)} != {0}
    decoded = sum(a * row for a, row in zip(pre.clamp(min=0), parts["W_dec"], strict=True))
    torch.testing.assert_close(standard.reconstruct(state), decoded + parts["b_dec"])


def test_rescaled_activations_count_in_lengths_and_decode_to_the_same():
    parts = tensors()
    plain = PlainDictionary(*parts.values())
    rescaled = PlainDictionary(*parts.values(), rescaled=True)
    states = torch.randn(6, D)
    lengths = parts["W_dec"].norm(dim=1)
    torch.testing.assert_close(rescaled.encode(states), plain.encode(states) * lengths)
    torch.testing.assert_close(
        rescaled.decode(rescaled.encode(states)), plain.decode(plain.encode(states))
    )


def test_top_k_never_gives_negative_activations():
    parts = tensors()
    parts["b_enc"] -= 100
    assert torch.equal(
        dictionary(*parts.values(), layer=0, k=4).encode(torch.randn(D)), torch.zeros(F)
    )


def test_types_and_devices_move_without_touching_the_original():
    one = dictionary(*tensors().values(), layer=2, k=3)
    double = one.to(torch.float64)
    assert (one.W_dec.dtype, double.W_dec.dtype) == (torch.float32, torch.float64)
    states = torch.randn(4, D, dtype=torch.bfloat16)
    assert one.reconstruct(states).dtype == torch.bfloat16
    assert (double.layer, double.d_model, double.d_sae) == (2, D, F)
    assert repr(one).startswith("SparseDictionary(topk, 24 features of 8 after block 2")


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.3.hook_resid_post", 3),
        ("blocks.3.hook_resid_pre", 2),
        ("blocks.0.hook_resid_pre", None),
        ("model.layers.11", 11),
        ("transformer.h.5", 5),
        ("blocks.3.hook_mlp_out", None),
        ("blocks.3.attn.hook_z", None),
        ("", None),
    ],
)
def test_hooks_name_layers(hook, layer):
    assert layer_of(hook) == layer


def test_a_folder_is_read_with_all_that_it_says(tmp_path):
    parts = tensors()
    metadata = {"hook_name": "blocks.2.hook_resid_post", "model_name": "m", "model_weights": "w"}
    config = {"architecture": "topk", "k": 4, "metadata": metadata | {"activation_scale": 0.5}}
    loaded = load_sae(write(tmp_path / "a", config, parts))
    assert isinstance(loaded.body, PlainDictionary)
    assert (loaded.layer, loaded.architecture, loaded.scale) == (2, "topk", 0.5)
    assert (loaded.model, loaded.weights) == ("m", "w")
    states = torch.randn(3, D)
    same = dictionary(*parts.values(), layer=2, k=4)
    assert torch.equal(loaded.encode(states), same.encode(states))
    jump = {"architecture": "jumprelu", "metadata": metadata | {"layer": 7}}
    threshold = {"threshold": torch.full((F,), 0.3)}
    loaded = load_sae(write(tmp_path / "b", jump, parts | threshold))
    assert loaded.layer == 7
    same = dictionary(*parts.values(), layer=7, **threshold)
    assert torch.equal(loaded.encode(states), same.encode(states))


# How SAELens wrote a top-k autoencoder before its version 6.
OLD = {
    "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "model_name": "gpt2",
    "hook_name": "blocks.3.hook_resid_post",
}  # fmt: skip


@pytest.mark.parametrize("version", [None, "5.9.1"])
def test_what_is_older_than_saelens_6_is_never_read_as_what_came_later(
    tmp_path, monkeypatch, version
):
    folder = write(tmp_path / "old", OLD | {"sae_lens_version": version}, tensors())
    monkeypatch.setitem(sys.modules, "sae_lens", None)  # not installed
    with pytest.raises(LoadError, match="kind 'standard' in the format before SAELens 6 needs"):
        load_sae(folder)
    for version in ("6.0.0", "6.0.0-rc.3", "12.1.0"):
        later = {"sae_lens_version": None, "metadata": {"sae_lens_version": version}}
        assert isinstance(load_sae(write(folder, later, tensors())).body, PlainDictionary)


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, "5.9.1"])
def test_older_top_k_folders_are_what_saelens_makes_of_them(tmp_path, version):
    lens = needs("sae_lens")
    folder = write(tmp_path / "old", OLD | {"sae_lens_version": version}, tensors())
    found, states = load_sae(folder), tensors(1)["W_dec"][:5]
    assert (found.encode(states) > 0).sum(dim=1).tolist() == [4] * 5
    theirs = lens.SAE.load_from_disk(folder)
    assert torch.equal(found.encode(states), theirs.encode(states).to_dense())
    assert (found.architecture, found.layer, found.model) == ("topk", 3, "gpt2")
    (folder / "sae_weights.safetensors").write_bytes(b"broken")
    with pytest.raises(LoadError, match="SAELens cannot load .* before SAELens 6"):
        load_sae(folder)


def test_what_cannot_be_a_dictionary_is_refused():
    parts = tensors()
    with pytest.raises(ValueError, match=r"b_enc must be \(24,\) beside W_dec of \(24, 8\)"):
        inspect.unwrap(dictionary)(  # without the tests' own check of shapes
            parts["W_enc"], torch.zeros(3), parts["W_dec"], parts["b_dec"], layer=0
        )
    with pytest.raises(ValueError, match="k must be 1 to 24"):
        dictionary(*parts.values(), layer=0, k=25)
    with pytest.raises(ValueError, match="pass one"):
        dictionary(*parts.values(), layer=0, k=2, threshold=torch.zeros(F))
    with pytest.raises(ValueError, match="states of width 8, got 9"):
        dictionary(*parts.values(), layer=0).encode(torch.zeros(2, 9))


def test_a_normalisation_of_each_state_has_no_decoding_of_its_own():
    body = PlainDictionary(*tensors().values())
    odd = SparseDictionary(body, 0, "standard", normalisation="layer_norm")
    with pytest.raises(ValueError, match="normalises each state by itself"):
        odd.decode(torch.zeros(F))
    assert odd.reconstruct(torch.zeros(D)).shape == (D,)


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(LoadError, match="there is no cfg.json in such a folder"):
        load_sae(tmp_path / "nothing")
    with pytest.raises(LoadError, match="there is no cfg.json in such a folder"):
        load_sae(tmp_path)
    parts = tensors()
    missing = {name: tensor for name, tensor in parts.items() if name != "b_enc"}
    with pytest.raises(LoadError, match=r"\['b_enc'\] are not there"):
        load_sae(write(tmp_path / "missing", {}, missing))
    folder = write(tmp_path / "broken", {}, parts)
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:100])
    with pytest.raises(LoadError, match="holds no whole sparse autoencoder"):
        load_sae(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(LoadError, match="holds no whole sparse autoencoder"):
        load_sae(folder)
