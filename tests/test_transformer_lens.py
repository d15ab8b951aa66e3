import pytest
import torch
from tiny import VOCAB, tiny_model, tiny_tokenizer
from transformers import BioGptConfig, BioGptForCausalLM
from wrapped import needs, wrapped

from entropy_probe import load, sample
from entropy_probe.models import LoadError
from entropy_probe.models.engine import engine_of
from entropy_probe.models.transformer_lens import own_weights

pytestmark = pytest.mark.slow
SMALL = {"n_layers": 1, "d_model": 8, "n_ctx": 16, "d_head": 4, "n_heads": 2, "d_vocab": 9}


def test_what_is_not_a_bridge_is_refused_with_the_reason():
    library = needs("transformer_lens")
    config = library.HookedTransformerConfig(**SMALL, act_fn="relu")
    hooked = library.HookedTransformer(config)
    with pytest.raises(ValueError, match="deprecated and folds norms"):
        sample(hooked, tiny_tokenizer(), [[1]])
    with pytest.raises(ValueError, match="not a whole model"):
        engine_of(hooked.blocks[0])


def test_a_bridge_without_a_hugging_face_model_is_refused():
    library = needs("transformer_lens")
    bridge = library.model_bridge.TransformerBridge.boot_native(SMALL | {"act_fn": "relu"})
    with pytest.raises(ValueError, match="holds a NativeModel, not a Hugging Face model"):
        engine_of(bridge)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_weights_of_a_rewired_model_have_their_own_names(family):
    bridge, plain = wrapped("transformer_lens", family, tiny_tokenizer()), tiny_model(family)
    found, wanted = own_weights(engine_of(bridge).model), plain.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert own_weights(plain).keys() == wanted.keys()


def test_load_gives_a_bridge_and_leaves_the_tokenizer_alone(tmp_path):
    needs("transformer_lens")
    tiny_model("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    bridge, tokenizer = load(tmp_path, device="cpu", backend="transformer_lens")
    assert type(bridge).__name__ == "TransformerBridge"
    _, plain = load(tmp_path, device="cpu")
    assert (tokenizer.padding_side, tokenizer.pad_token) == (plain.padding_side, plain.pad_token)
    assert tokenizer("w1 w2 ").input_ids == plain("w1 w2 ").input_ids
    assert engine_of(bridge).model.name_or_path == str(tmp_path)


def test_a_model_that_the_library_does_not_know_cannot_be_loaded_into_it(tmp_path):
    needs("transformer_lens")
    config = BioGptConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BioGptForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="cannot be held by transformer_lens"):
        load(tmp_path, device="cpu", backend="transformer_lens")
