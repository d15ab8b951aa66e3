"""Loading: folders, GGUF files and organisms; what cannot be loaded, in three lines."""

import json
import pickle
import shutil
import sys

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tokenizers import pre_tokenizers

from entropy_probe import load
from entropy_probe.models import LoadError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Give a folder that loads."""
    folder = tmp_path_factory.mktemp("models") / "good"
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """Give a copy of it to spoil."""
    return shutil.copytree(good, tmp_path / "copy")


def refused(reference, **options) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load(reference, **options)
    error = caught.value
    assert str(error) == f"{error.what}\nwhy: {error.why}\nfix: {error.fix}"
    assert all("\n" not in part and part for part in (error.what, error.why, error.fix))
    return error


def configure(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_gives_its_model_and_tokenizer_ready_to_sample_from(good):
    model, tokenizer = load(good)
    saved = tiny_model().to(torch.bfloat16).state_dict()
    assert all(torch.equal(v.bfloat16(), saved[k]) for k, v in model.state_dict().items())
    assert model.dtype == torch.float32
    assert not model.training
    assert model.name_or_path == str(good)
    assert tokenizer("w1 w2 ").input_ids == tiny_tokenizer()("w1 w2 ").input_ids


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bfloat16", torch.bfloat16), ("float64", torch.float64), ("auto", torch.bfloat16)],
)
def test_the_dtype_is_the_one_asked_for(good, name, dtype):
    assert load(str(good), dtype=name)[0].dtype == dtype


def test_organisms_load_by_name_without_a_download():
    model, tokenizer = load("organism:amenable")
    assert model.name_or_path == "organism:amenable"
    assert len(tokenizer) <= model.get_output_embeddings().weight.shape[0]


def test_the_home_directory_may_be_written_short(good, monkeypatch):
    monkeypatch.setenv("HOME", str(good.parent))
    assert load("~/good")[0].name_or_path == "~/good"


@pytest.mark.parametrize("shown", [True, False])
def test_no_bar_of_reading_weights_and_the_users_settings_come_back(good, capfd, shown):
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    hub.enable_progress_bars()
    try:
        load(good)
        refused(good.parent / "nothing")
        assert capfd.readouterr().err == ""
        assert logging.is_progress_bar_enabled() == shown
        assert not hub.are_progress_bars_disabled()
        hub.disable_progress_bars()
        load(good)
        assert logging.is_progress_bar_enabled() == shown
        assert hub.are_progress_bars_disabled()
    finally:
        logging.enable_progress_bar()


def test_bars_come_back_after_a_failure_inside_transformers(folder):
    from transformers.utils import logging

    (folder / "model.safetensors").write_bytes(b"no weights")
    refused(folder)
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("reference", ["./nothing", "/no/such/folder", "~/no-such", "a/b/c"])
def test_a_path_at_which_nothing_is_is_told_from_a_hub_id(reference):
    error = refused(reference)
    assert error.what == f"no folder {reference!r}"
    assert "organism:amenable" in error.fix


@pytest.mark.parametrize("reference", ["someone/some-model", "some-model", "not an id"])
def test_offline_the_error_says_so_where_it_looked_and_how_to_download(reference):
    error = refused(reference)
    assert error.what == f"model {reference!r} is not on this machine"
    assert error.why.startswith("offline mode (HF_HUB_OFFLINE=1); looked in /")
    assert f"hf download {reference}" in error.fix


def test_a_folder_without_config_is_no_model(tmp_path):
    error = refused(tmp_path)
    assert (error.what, error.why) == (
        f"{str(tmp_path)!r} is not a model",
        "the folder has no config.json",
    )


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f: (f / "config.json").write_text("{oops"), "not a valid JSON file"),
        (lambda f: (f / "config.json").write_text("[]"), "must be a mapping"),
        (lambda f: configure(f, model_type="vit"), "ViTConfig"),
        (lambda f: configure(f, model_type="none-such"), "none-such"),
        (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), "deserializing header"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "KeyError 'added_tokens'"),
    ],
    ids=["json", "list", "vision", "unknown", "weights", "damaged", "tokenizer"],
)
def test_what_is_no_language_model_says_why(folder, spoil, why):
    spoil(folder)
    error = refused(folder)
    assert error.what == f"{str(folder)!r} cannot be loaded as a causal language model"
    assert why in error.why


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "gpt_neox", "llama"])
def test_a_model_without_a_tokenizer_is_refused(tmp_path, family):
    """For some families transformers makes an empty one and goes on."""
    tiny_model(family).save_pretrained(tmp_path)
    assert "tokenizer" in str(refused(tmp_path)).replace(str(tmp_path), "")


def test_weights_that_would_be_random_are_refused(folder):
    """For them transformers prints a warning and goes on."""
    configure(folder, num_hidden_layers=4)
    error = refused(folder)
    assert error.what.startswith(f"{str(folder)!r} lacks weights")
    assert error.why.startswith("9 would be random, 0 of them for their shape: model.layers.3.")


def test_weights_of_another_shape_are_refused(folder):
    configure(folder, vocab_size=98)
    error = refused(folder)
    names = "lm_head.weight, model.embed_tokens.weight"
    assert error.why == f"2 would be random, 2 of them for their shape: {names}"


def test_an_unknown_dtype_names_the_known_ones(good):
    error = refused(good, dtype="fp8")
    assert error.what == "unknown dtype 'fp8'"
    assert error.why == "known: float32, bfloat16, float16, float64, auto"


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_named(good, device):
    error = refused(good, device=device)
    assert error.what.endswith(f"cannot be put on device {device!r}")
    assert "--device cpu" in error.fix


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("amenabel", "did you mean organism:amenable?"),
        ("zzz", "pass one of them"),
        ("", "pass one of them"),
    ],
)
def test_an_unknown_organism_names_the_known_ones_and_the_nearest(name, fix):
    error = refused(f"organism:{name}")
    assert error.what == f"no organism {name!r}"
    assert "amenable" in error.why
    assert error.fix == fix


def test_load_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(LoadError("what", "why", "fix")))
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")


def test_a_gguf_reference_must_be_a_file(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    for name in ("missing.gguf", "folder.gguf"):
        assert refused(tmp_path / name).why == "a .gguf reference must be a local file"


def test_gguf_files_need_an_extra_that_the_error_names(tmp_path, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    error = refused(tmp_path / "some.gguf")
    assert error.what == "GGUF files need the gguf package"
    assert error.fix == "pip install 'entropy-probe[gguf]'"


def write_gguf(model, path) -> None:
    """Write a Llama as llama.cpp would, with a byte-level tokenizer of one merge."""
    import gguf

    config = model.config
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:93], "ab"]
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(names)
    out.add_token_merges(["a b"])
    out.add_token_types([3] * 3 + [1] * 94)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        name = name.removesuffix(".weight")
        if (part := name.rpartition(".")[2]) in heads:  # rotary halves lie interleaved there
            value = value.unflatten(0, (heads[part], 2, -1)).transpose(1, 2).flatten(0, 2)
        out.add_tensor(f"{known.get_name(name)}.weight", value.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_gives_the_same_weights_and_its_tokenizer(tmp_path):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    saved = tiny_model()
    write_gguf(saved, tmp_path / "tiny.gguf")
    model, tokenizer = load(tmp_path / "tiny.gguf")
    assert model.name_or_path == str(tmp_path / "tiny.gguf")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.state_dict().items())
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab!").input_ids)[-2:] == ["ab", "!"]
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((tmp_path / "tiny.gguf").read_bytes()[:100])
    assert refused(damaged).what.startswith(repr(str(damaged)))
