"""Scores of tokens that exist: against float64, against sampling, and what is refused."""

import copy
import inspect

import pytest
import torch
from odd_heads import FAMILIES, Sharpened, model_of
from tiny import CONFIGS, VOCAB, tiny_model, tiny_tokenizer

from entropy_probe import sample, score
from entropy_probe.hooks import HooksSkipped, edit_residuals, find_blocks, read_output

TOKENIZER = tiny_tokenizer()
PROMPTS = [[1, 30, 31, 32, 33, 34, 35, 36], [1, 40], [1, 50, 51, 52, 53]]


def rows(lengths=(9, 4, 7), *, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Give random rows, right-padded, and the mask of all their tokens but the first."""
    width, generator = max(lengths), torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB, (len(lengths), width), generator=generator)
    place = torch.arange(width)[None, :]
    ends = torch.tensor(lengths)[:, None]
    return tokens.where(place < ends, 0), (place > 0) & (place < ends)


def scored(model, tokens, valid, **options):
    return score(model, TOKENIZER, tokens, valid, **options)


@torch.no_grad()
def in_float64(model, row: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    """Give entropy, log-probability and all log-probabilities of a row's tokens after the first."""
    logits = model(input_ids=row[None]).logits[0, :-1]
    assert logits.dtype == torch.float64
    spread = torch.distributions.Categorical(logits=logits / temperature)
    return spread.entropy(), spread.log_prob(row[1:]), spread.logits


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_full_logits_in_float64(family, temperature):
    model = model_of(family)
    tokens, valid = rows()
    found = scored(model, tokens, valid, temperature=temperature, alternatives=4, batch_size=2)
    exact = copy.deepcopy(model).double()
    for i, length in enumerate((9, 4, 7)):
        entropy, logprobs, every = in_float64(exact, tokens[i, :length], temperature)
        span = slice(1, length)
        torch.testing.assert_close(found.entropy[i, span].double(), entropy, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.logprobs[i, span].double(), logprobs, rtol=0, atol=2e-4)
        top = every.topk(4)
        own = every.gather(1, tokens[i, span, None])
        assert torch.equal(found.ranks[i, span].long(), (every > own).sum(dim=1))
        assert torch.equal(found.alternatives.ids[i, span].long(), top.indices)
        torch.testing.assert_close(
            found.alternatives.logprobs[i, span].double(), top.values, rtol=0, atol=2e-4
        )
        for value in (found.entropy, found.logprobs, found.ranks, found.alternatives.ids):
            assert not value[i, 0].any()
            assert not value[i, length:].any()
    assert found.entropy[valid].std() > 0.04


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_agree_with_what_was_captured_while_sampling(family):
    """Mixed lengths, left-padded there and right-padded here; rows stop early and others join."""
    model = model_of(family)
    options = {"temperature": 0.8, "residual_layers": [0, 2], "residual_positions": "all"}
    drawn = sample(
        model, TOKENIZER, PROMPTS, n=3, max_new_tokens=12, batch_size=4, stop=[*range(2, 25)],
        seed=5, **options,
    )  # fmt: skip
    made = drawn.valid.sum(dim=1)
    assert made.min() < 12, "no row stopped early"
    assert made.max() > made.min()
    again = scored(
        model, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths, batch_size=4,
        **options,
    )  # fmt: skip
    for name in ("tokens", "valid", "prompt_lengths", "groups", "captured"):
        assert torch.equal(getattr(again, name), getattr(drawn, name)), name
    torch.testing.assert_close(again.entropy, drawn.entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(again.logprobs, drawn.logprobs, rtol=0, atol=5e-4)
    torch.testing.assert_close(
        again.alternatives.logprobs, drawn.alternatives.logprobs, rtol=0, atol=5e-4
    )
    for layer in (0, 2):
        states, told = again.residuals[layer], drawn.residuals[layer]
        assert states.shape == (int(drawn.valid.sum()), 32)
        assert ((states - told).norm(dim=1) < 1e-4 * told.norm(dim=1)).all()
    assert again.pieces == drawn.pieces
    assert again.special_ids == drawn.special_ids


def test_scores_keep_the_forks_and_the_controls_that_sampling_kept():
    model = tiny_model()
    drawn = sample(model, TOKENIZER, PROMPTS, n=4, max_new_tokens=9, residual_layers=[1], seed=4)
    again = scored(model, drawn.tokens, drawn.valid, residual_layers=[-2], seed=4)
    assert torch.equal(again.captured, drawn.captured)
    assert torch.equal(again.controls, drawn.controls)
    assert 0 < again.controls.sum() < drawn.valid.sum()
    torch.testing.assert_close(again.residuals[1], drawn.residuals[1], rtol=1e-4, atol=1e-4)
    assert (
        scored(
            model, drawn.tokens, drawn.valid, residual_layers=[1], residual_positions="none"
        ).residuals
        == {}
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_both_passes_see_an_edit_that_is_in_force(family):
    model = tiny_model(family)
    plain = sample(model, TOKENIZER, PROMPTS, max_new_tokens=6, residual_layers=[2], seed=1)
    with edit_residuals(model, 1, lambda stream: -stream):
        drawn = sample(
            model, TOKENIZER, PROMPTS, max_new_tokens=6, seed=1,
            residual_layers=[2], residual_positions="all",
        )  # fmt: skip
        again = scored(
            model, drawn.tokens, drawn.valid, residual_layers=[2], residual_positions="all"
        )
    torch.testing.assert_close(again.entropy, drawn.entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(again.residuals[2], drawn.residuals[2], rtol=1e-4, atol=1e-4)
    unedited = scored(model, drawn.tokens, drawn.valid)
    assert not torch.allclose(unedited.entropy, drawn.entropy, atol=1e-2)
    assert plain.provenance.weights == drawn.provenance.weights


def test_prompt_tokens_are_scored_on_request():
    model = tiny_model()
    tokens, everything = rows()
    completion = everything & (torch.arange(9) >= 3)
    part = scored(model, tokens, completion)
    whole = scored(model, tokens, everything, prompt_lengths=[3, 3, 3])
    assert part.prompt_lengths.tolist() == [3, 3, 3]
    torch.testing.assert_close(whole.entropy.where(completion, 0), part.entropy)
    assert (whole.entropy[:, 1:3] > 0).all()
    assert not part.entropy[:, :3].any()


def test_logits_of_every_position_never_exist():
    """[batch seq vocab] in float32 is 0.6 MB a token at 150,000 tokens of vocabulary."""
    model = tiny_model()
    with read_output(model.lm_head) as outputs:
        scored(model, *rows((40, 40, 30)))
    assert sum(logits.shape[:-1].numel() for logits in outputs) <= 8


def test_neither_batching_nor_padding_changes_a_score():
    model = tiny_model()
    tokens, valid = rows((9, 4, 7, 4, 2))
    plain = scored(model, tokens, valid, residual_layers=[1], residual_positions="all")
    garbage = tokens.where(torch.arange(9) < torch.tensor([9, 4, 7, 4, 2])[:, None], -100)
    for size in (1, 2, 99):
        other = scored(
            model, garbage, valid, batch_size=size, residual_layers=[1], residual_positions="all"
        )
        assert torch.equal(other.tokens, tokens)
        torch.testing.assert_close(other.entropy, plain.entropy, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.residuals[1], plain.residuals[1], rtol=1e-4, atol=1e-5)


def test_rows_without_tokens_to_score_and_empty_batches_are_empty():
    model = tiny_model()
    tokens, valid = rows()
    valid[0] = False
    found = scored(
        model, tokens.index_fill(0, torch.tensor(0), -1), valid, residual_layers=[0],
        residual_positions="all",
    )  # fmt: skip
    assert not found.entropy[0].any()
    assert found.prompt_lengths.tolist() == [0, 1, 1]
    assert found.residuals[0].shape == (3 + 6, 32)
    kept = scored(model, tokens, valid, prompt_lengths=[2, 1, 1])
    assert torch.equal(kept.tokens[0, :2], tokens[0, :2])
    assert kept.lengths.tolist() == [2, 4, 7]
    for shape in ((0, 5), (0, 0), (2, 0)):
        nothing = torch.zeros(shape, dtype=torch.long)
        empty = scored(model, nothing, nothing.bool(), residual_layers=[1])
        assert empty.entropy.shape == shape
        assert empty.residuals[1].shape == (0, 32)


def test_groups_number_equal_prompts_in_order_of_appearance():
    model = tiny_model()
    tokens = torch.tensor([[1, 9, 5, 6], [1, 8, 5, 6], [1, 9, 7, 6], [1, 9, 5, 6]])
    valid = torch.tensor([[False, False, True, True]] * 3 + [[False, False, False, True]])
    assert scored(model, tokens, valid).groups.tolist() == [0, 1, 0, 2]
    assert scored(model, tokens, valid, groups=[7, 7, 3, 0]).groups.tolist() == [7, 7, 3, 0]


def test_the_model_is_left_as_it_was_and_its_dropout_is_off():
    model = tiny_model("gpt2")
    weights = copy.deepcopy(model.state_dict())
    tokens, valid = rows()
    quiet = scored(model, tokens, valid)
    model.train()
    assert model.config.resid_pdrop > 0
    found = scored(model, tokens, valid, residual_layers=[0])
    assert torch.equal(found.entropy, quiet.entropy)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in find_blocks(model))
    assert torch.is_grad_enabled()
    assert not found.residuals[0].requires_grad


@torch.no_grad()
def test_statistics_of_a_low_precision_model_are_computed_in_float32():
    model = tiny_model().to(torch.bfloat16)
    tokens, valid = rows((40,))
    found = scored(model, tokens, valid)
    hidden = model.model(input_ids=tokens).last_hidden_state[0, :-1]
    exact = torch.distributions.Categorical(
        logits=hidden.double() @ model.lm_head.weight.double().T
    ).entropy()
    rounded = torch.distributions.Categorical(logits=model(input_ids=tokens).logits[0, :-1])
    torch.testing.assert_close(found.entropy[0, 1:].double(), exact, rtol=0, atol=1e-5)
    assert (rounded.entropy().double() - exact).abs().max() > 1e-3
    assert found.provenance.dtype == "bfloat16"


def test_the_record_says_what_it_is_of():
    model = tiny_model()
    found = scored(model, *rows(), temperature=0.5, residual_layers=[1], seed=9).provenance
    assert (found.source, found.temperature, found.entropy_temperature) == ("score", 0.5, 0.5)
    assert (found.seed, found.dtype, found.near_ties) == (9, "float32", 0)
    assert found.capture.startswith("top 0.2 of the batch's valid tokens")
    assert scored(model, *rows()).provenance.capture == "none"


@pytest.mark.parametrize(
    "run",
    [
        lambda model: sample(model, TOKENIZER, PROMPTS, max_new_tokens=3, residual_layers=[0]),
        lambda model: scored(model, *rows(), residual_layers=[0]),
    ],
    ids=["sample", "score"],
)
def test_hooks_that_a_wrapper_skips_raise_instead_of_keeping_nothing(run, monkeypatch):
    model = tiny_model()
    block = type(find_blocks(model)[0])
    monkeypatch.setattr(block, "__call__", block.forward)
    with pytest.raises(HooksSkipped, match="saw 0 tokens"):
        run(model)
    assert scored(model, *rows()).entropy.any()  # nothing to skip without residuals


def test_heads_that_are_not_understood_are_refused():
    with pytest.raises(ValueError, match="Sharpened .*scoring does not know"):
        scored(Sharpened(CONFIGS["llama"]).eval(), *rows())


TOKENS, VALID = rows()
WRONG = {
    r"valid must be a bool mask, got torch.int64: pass valid\.bool\(\)": {"valid": VALID.long()},
    "position 0 is valid in some row, but nothing produced the first": {"valid": VALID | True},
    r"both be \[batch seq\], got \(3, 9\) and \(3, 8\)": {"valid": VALID[:, :8]},
    "prompt_lengths must have one number a row, 3, got 2": {"prompt_lengths": [1, 2]},
    r"prompt_lengths must be 0 to 9, .*got \[1, 2, 10\]": {"prompt_lengths": [1, 2, 10]},
    "groups must have one number a row, 3, got 4": {"groups": [0, 1, 2, 3]},
    "token ids must be 0 to 96, got 0 to 97": {"tokens": TOKENS.clamp(min=3).where(VALID, 97)},
    "token ids must be 0 to 96, got -1 to": {"tokens": TOKENS.where(~VALID, -1)},
    r"temperature must be above 0, got 0\.0": {"temperature": 0.0},
    r"temperature must be .*got -1\.0": {"temperature": -1.0},
    "batch_size must be a whole number of 1 or more, got 0": {"batch_size": 0},
    r"fraction must be above 0 and at most 1 .*got 0\.0": {"fraction": 0.0},
    r"fraction must be above 0 and at most 1 .*got 2\.0": {"fraction": 2.0},
    "residual_positions must be one of": {"residual_positions": "some"},
    "layer 3 is out of range: the model has layers 0 to 2": {"residual_layers": [3]},
    r"alternatives must be at most 97 \(the vocabulary\), got 98": {"alternatives": 98},
    "alternatives must be a whole number of 0 or more, got -1": {"alternatives": -1},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_makes_no_sense_is_refused_in_a_sentence(said):
    given = {"tokens": TOKENS, "valid": VALID} | WRONG[said]
    unchecked = inspect.unwrap(score)  # users have no run-time check of annotations
    with pytest.raises(ValueError, match=said):
        unchecked(tiny_model(), TOKENIZER, **given)


def test_rows_longer_than_the_context_are_refused():
    tokens, valid = rows((129,))
    with pytest.raises(ValueError, match="a row has 129 tokens, but the model's context is 128"):
        scored(tiny_model(), tokens, valid)
    assert scored(tiny_model(), tokens[:, :128], valid[:, :128]).valid.sum() == 127


@pytest.mark.gpu
@pytest.mark.parametrize("family", CONFIGS)
def test_a_gpu_gives_the_scores_and_states_of_the_cpu(family):
    model, (tokens, valid) = tiny_model(family), rows()
    options = {"residual_layers": [0, -1], "residual_positions": "all", "temperature": 0.8}
    wanted = scored(model, tokens, valid, **options)
    found = scored(model.cuda(), tokens, valid, **options)
    torch.testing.assert_close(found.entropy, wanted.entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=0, atol=1e-4)
    for layer, states in wanted.residuals.items():
        off = (found.residuals[layer].cpu() - states).norm(dim=1)
        assert (off <= 1e-4 * states.norm(dim=1)).all()
