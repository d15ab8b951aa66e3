import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import nn
from wrapped import needs, wrapped

from entropy_probe import load, sample
from entropy_probe.models.engine import engine_of

pytestmark = pytest.mark.slow
IDS = torch.tensor([[1, 5, 6, 7], [1, 9, 9, 4]])


def test_a_step_is_the_model_and_what_was_edited():
    model, plain = wrapped("nnsight", "llama", tiny_tokenizer()), tiny_model()
    engine = engine_of(model)
    assert engine.arguments >= {"input_ids", "position_ids", "logits_to_keep"}
    assert torch.equal(engine.run(input_ids=IDS), plain(input_ids=IDS).logits)
    with model.edit(inplace=True):
        model.lm_head.output[:] += 1
    assert torch.equal(engine.run(input_ids=IDS), plain(input_ids=IDS).logits + 1)


def test_a_root_that_is_not_a_hugging_face_model_is_refused():
    nnsight = needs("nnsight")
    with pytest.raises(ValueError, match="got NNsight around Linear"):
        engine_of(nnsight.NNsight(nn.Linear(2, 2)))


def test_a_step_of_a_loop_that_never_comes_is_warned_about():
    model = wrapped("nnsight", "llama", tiny_tokenizer())
    with model.edit(inplace=True) as tracer:
        for _ in tracer.iter[2]:
            model.lm_head.output[:] += 1
    with pytest.warns(UserWarning, match="never reached"):
        sample(model, tiny_tokenizer(), [[1]], max_new_tokens=2)


def test_load_gives_a_model_and_weights_are_read_where_they_are_not_yet(tmp_path):
    nnsight = needs("nnsight")
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path, device="cpu", backend="nnsight")
    assert type(model).__name__ == "TransformersModel"
    lazy = nnsight.TransformersModel(str(tmp_path), task="text-generation", tokenizer=tokenizer)
    assert not lazy.dispatched
    found, wanted = (
        sample(m, tokenizer, [[1, 5]], max_new_tokens=8, temperature=0.0) for m in (lazy, model)
    )
    assert torch.equal(found.tokens, wanted.tokens)
