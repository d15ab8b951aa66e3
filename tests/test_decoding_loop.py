import functools

import pytest
import torch
from recurrent import CONFIGS as RECURRENT
from recurrent import RWKV, recurrent_model
from tiny import CONFIGS, VOCAB, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BloomConfig
from transformers.cache_utils import DynamicCache
from unbatched import assert_true_of_each_row

from entropy_probe import decoding_loop, describing, sample, score
from entropy_probe.decoding_loop import LEAVE
from entropy_probe.hooks import HooksSkipped

PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7], [1, 9, 9, 9, 9, 4], [3, 8]]
STOPS = list(range(2, VOCAB, 8))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def passes(monkeypatch):
    """Note the shape of the tokens of every pass through a model."""

    def watch(model) -> list[tuple[int, int]]:
        shapes, forward = [], model.forward

        @functools.wraps(forward)
        def noting(*args, **kwargs):
            shapes.append(tuple(kwargs["input_ids"].shape))
            return forward(*args, **kwargs)

        monkeypatch.setattr(model, "forward", noting)
        return shapes

    return watch


def sampled(model, tokenizer, **changes):
    """Sample rows of all lengths that end at all times, in few slots."""
    arguments = {
        "n": 4, "max_new_tokens": 40, "batch_size": 5, "stop": STOPS, "seed": 2,
        "residual_layers": [0, 1, 2], "residual_positions": "all",
    }  # fmt: skip
    return sample(model, tokenizer, PROMPTS, **(arguments | changes))


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_and_rows_that_come_and_go_change_no_number(family, tokenizer, passes):
    model = tiny_model(family)
    shapes = passes(model)
    rollouts = sampled(model, tokenizer, temperature=0.8)
    assert sum(width > 1 for _, width in shapes) >= 3  # rows did join others
    assert rollouts.valid.sum(1).unique().numel() > 3  # and leave at different times
    assert_true_of_each_row(rollouts, model, temperature=0.8)


def test_a_decoder_without_position_ids_is_padded_right_too(tokenizer):
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    assert_true_of_each_row(sampled(model, tokenizer), model)


def test_a_cache_whose_rows_cannot_join_gives_the_same(tokenizer, monkeypatch, passes):
    model = tiny_model("llama")
    wanted = sampled(model, tokenizer)
    monkeypatch.setattr(
        decoding_loop, "make_cache", lambda model: DynamicCache(config=model.config)
    )
    shapes = passes(model)
    found = sampled(model, tokenizer)
    assert sum(width > 1 for _, width in shapes) >= 3  # 20 rows, 5 at a time
    assert torch.equal(found.tokens, wanted.tokens)
    assert_true_of_each_row(found, model)


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_states_are_each_rows_own_whatever_the_padding(family, tokenizer):
    model = recurrent_model(RECURRENT[family])
    rollouts = sampled(
        model, tokenizer, n=2, max_new_tokens=6, residual_layers=[], residual_positions="none"
    )
    assert rollouts.valid.sum(1).unique().numel() > 2
    assert_true_of_each_row(rollouts, model)
    scored = score(
        model, tokenizer, rollouts.tokens, rollouts.valid, prompt_lengths=rollouts.prompt_lengths
    )
    torch.testing.assert_close(scored.logprobs, rollouts.logprobs, rtol=0, atol=1e-4)


def test_a_model_that_keeps_its_state_elsewhere_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"RwkvForCausalLM .* 2 of 2 layers .* score"):
        sampled(recurrent_model(RWKV), tokenizer, residual_layers=[])


def test_the_first_pass_is_the_prompt_and_the_last_token_never_runs(tokenizer, passes):
    model = tiny_model("llama")
    shapes = passes(model)
    rollouts = sampled(model, tokenizer, n=1, batch_size=1, max_new_tokens=6, stop=())
    assert rollouts.valid.sum(1).tolist() == [6] * 5
    wanted = [[(1, len(prompt))] + [(1, 1)] * 5 for prompt in PROMPTS]
    assert shapes == sum(wanted, [])
    # So N tokens have N states: the prompt's last one and those of all tokens but the last.
    assert len(rollouts.residuals[0]) == 5 * 6


def test_a_prompt_runs_once_for_all_its_rows(tokenizer, passes):
    model = tiny_model("llama")
    shapes = passes(model)
    sampled(model, tokenizer, n=16, batch_size=80, max_new_tokens=2, stop=())
    assert shapes == [(5, 23), (80, 1)]


@pytest.mark.parametrize("slots", [16, 100], ids=["others wait", "nobody waits"])
def test_rows_that_end_leave_and_their_slots_are_filled(tokenizer, passes, slots):
    model = tiny_model("llama")
    shapes = passes(model)
    rollouts = sampled(model, tokenizer, n=20, batch_size=slots, stop=[49, 72])
    steps = [rows for rows, width in shapes if width == 1]
    useful = int(rollouts.valid.sum()) - len(rollouts)
    assert max(steps) <= slots
    assert sum(steps) <= useful * LEAVE / (LEAVE - 1)
    if slots == 16:
        assert len(steps) <= 1.3 * useful / slots


def test_an_ended_row_that_waits_to_leave_stays_within_the_context(tokenizer):
    model = tiny_model("gpt2")  # its position embeddings end at 128
    prompts = [[5] * 120] + [[6, 7 + i] for i in range(2 * LEAVE)]
    together = sample(model, tokenizer, prompts, max_new_tokens=25, batch_size=len(prompts))
    assert together.valid[0].sum() == 8
    assert (together.lengths[1:] == 27).sum() > LEAVE  # others go on for long after
    alone = sample(model, tokenizer, prompts, max_new_tokens=25, batch_size=1)
    assert torch.equal(together.tokens, alone.tokens)


def test_a_context_filled_to_the_last_position_is_right_there_too(tokenizer):
    model = tiny_model("gpt2")
    rollouts = sample(model, tokenizer, [[5] * 126, [6] * 100], n=2, max_new_tokens=100)
    assert rollouts.lengths.tolist() == [128] * 4
    assert_true_of_each_row(rollouts, model)


def test_a_pass_that_skips_hooks_raises_instead_of_giving_old_states(tokenizer, monkeypatch):
    model = tiny_model("llama")
    forward, calls = model.forward, []

    @functools.wraps(forward)
    def replaying(**kwargs):  # as a captured graph does: from the second pass on, no hooks
        calls.append(1)
        block = model.model.layers[1]
        hooks = dict(block._forward_hooks)
        if len(calls) > 1:
            block._forward_hooks.clear()
        try:
            return forward(**kwargs)
        finally:
            block._forward_hooks.update(hooks)

    monkeypatch.setattr(model, "forward", replaying)
    with pytest.raises(HooksSkipped, match=r"layer 1 saw 0 tokens while the model ran \d"):
        sampled(model, tokenizer)
    assert len(calls) == 2
    assert not any(block._forward_hooks for block in model.model.layers)


def test_progress_counts_rows_that_ended(tokenizer):
    seen = []
    sampled(tiny_model("llama"), tokenizer, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert len(set(seen)) > 5


def test_tokens_drawn_row_by_row_are_those_drawn_together(tokenizer, monkeypatch):
    model = tiny_model("llama")
    together = sampled(model, tokenizer)
    drawn, seen = describing.draw, []

    def watched(weights, **where):
        seen.append(len(weights))
        return drawn(weights, **where)

    monkeypatch.setattr(describing, "draw", watched)
    monkeypatch.setitem(describing.DRAWN, "cpu", 2 * VOCAB)
    apart = sampled(model, tokenizer)
    assert set(seen) == {1, 2}
    assert torch.equal(apart.tokens, together.tokens)
    assert torch.allclose(apart.entropy, together.entropy, atol=1e-6)
