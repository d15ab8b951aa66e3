import copy

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import CONFIGS, VOCAB, tiny_model, tiny_tokenizer
from transformers import TopKLogitsWarper, TopPLogitsWarper
from unbatched import assert_true_of_each_row

from entropy_probe import forking_mask, sample

PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7], [1, 9, 9, 9, 9, 4], [3, 8]]
STOPS = list(range(2, VOCAB, 8))
EOS = 2


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def fields(rollouts) -> list[torch.Tensor]:
    return [
        rollouts.tokens, rollouts.valid, rollouts.ranks, rollouts.prompt_lengths,
        rollouts.captured, rollouts.controls,
    ]  # fmt: skip


def left_padded(prompts) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


# The same tokens and numbers as elsewhere


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_rows_and_their_entropies_are_those_of_generate(family, tokenizer):
    model = tiny_model(family)
    theirs = model.generate(
        **left_padded(PROMPTS), max_new_tokens=24, do_sample=False, pad_token_id=0,
        eos_token_id=STOPS, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    logp = torch.stack(theirs.logits, dim=1).double().log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    stops = [token for token in STOPS if token != EOS]
    ours = sample(model, tokenizer, PROMPTS, max_new_tokens=24, temperature=0.0, stop=stops)
    made = ours.valid.sum(1).tolist()
    assert min(made) < 24 or family == "qwen2"  # some rows end early; it repeats itself
    for row, count in enumerate(made):
        start, width = len(PROMPTS[row]), theirs.sequences.shape[1] - len(theirs.logits)
        completion = theirs.sequences[row, width:]
        assert ours.tokens[row, start : start + count].tolist() == completion[:count].tolist()
        assert (completion[count:] == 0).all()  # generate went on with padding, we did not
        found = ours.entropy[row, start : start + count].double()
        torch.testing.assert_close(found, entropy[row, :count], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 12, 1.0), (1.0, 0, 0.7), (1.5, 20, 0.8)],
)
def test_draws_follow_the_softmax_after_top_k_and_top_p(
    model, tokenizer, temperature, top_k, top_p
):
    prompt, count = [1, 5, 6, 7], 6000
    logits = model(torch.tensor([prompt])).logits[:, -1].double() / temperature
    if top_k:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    wanted = logits.softmax(-1)[0].detach().numpy() * count
    rollouts = sample(
        model, tokenizer, [prompt], n=count, max_new_tokens=1, batch_size=count,
        temperature=temperature, top_k=top_k, top_p=top_p, alternatives=1, seed=1,
    )  # fmt: skip
    seen = np.bincount(rollouts.tokens[:, 4], minlength=VOCAB)
    assert seen[wanted == 0].sum() == 0
    common = wanted > 8
    seen = np.append(seen[common], seen[~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    assert stats.chisquare(seen, wanted).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_float32_statistics(tokenizer, dtype):
    model = tiny_model("llama").to(dtype)
    rollouts = sample(model, tokenizer, PROMPTS, max_new_tokens=8, residual_layers=[1])
    assert rollouts.entropy.dtype == rollouts.logprobs.dtype == torch.float32
    assert rollouts.residuals[1].dtype == dtype
    assert rollouts.provenance.dtype == str(dtype).removeprefix("torch.")
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            # The first draw: its logits are bf16 numbers, whose entropy is not rounded to bf16.
            logits = model(torch.tensor([prompt])).logits[0, -1].double()
            entropy = torch.distributions.Categorical(logits=logits).entropy()
            assert rollouts.entropy[row, len(prompt)] == pytest.approx(entropy.item(), abs=0.03)
    on_bf16_grid = rollouts.entropy[rollouts.valid].bfloat16().float()
    assert (on_bf16_grid != rollouts.entropy[rollouts.valid]).any()


def test_the_entropy_is_of_the_raw_logits_whatever_top_k_and_top_p_keep(model, tokenizer):
    narrow = sample(
        model, tokenizer, PROMPTS, n=4, max_new_tokens=12, top_k=3, top_p=0.5, temperature=1.3
    )
    assert_true_of_each_row(narrow, model, temperature=1.3)
    assert narrow.entropy.max() > np.log(3)  # impossible among three candidates
    assert narrow.ranks.max() <= 2
    assert narrow.entropy.isfinite().all()
    about = narrow.provenance
    assert (about.temperature, about.top_p, about.top_k) == (1.3, 0.5, 3)
    assert about.entropy_temperature == 1.3
    assert about.entropy_basis.startswith("logits / temperature, full vocabulary, before top-k")


def test_greedy_decoding_records_the_entropy_at_temperature_one(model, tokenizer):
    rollouts = sample(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=0.0)
    assert_true_of_each_row(rollouts, model, temperature=1.0)
    assert (rollouts.ranks == 0).all()
    about = rollouts.provenance
    assert (about.temperature, about.entropy_temperature) == (0.0, 1.0)
    assert "greedy" in about.entropy_basis


# Reproducible


def test_tokens_do_not_depend_on_the_batch_whatever_rows_leave_and_join(model, tokenizer):
    arguments = {
        "n": 6, "max_new_tokens": 30, "seed": 5, "stop": STOPS, "top_p": 0.95,
        "residual_layers": [1], "residual_positions": "all",
    }  # fmt: skip
    whole = sample(model, tokenizer, PROMPTS, batch_size=64, **arguments)
    assert whole.provenance.near_ties == 0
    for batch_size in (1, 3, 8, 29):
        other = sample(model, tokenizer, PROMPTS, batch_size=batch_size, **arguments)
        for name in ("tokens", "valid", "ranks", "groups"):
            assert torch.equal(getattr(other, name), getattr(whole, name))
        torch.testing.assert_close(other.entropy, whole.entropy, atol=1e-4, rtol=0)
        close = {"atol": 1e-3, "rtol": 1e-4}
        torch.testing.assert_close(other.residuals[1], whole.residuals[1], **close)


def test_forks_and_controls_depend_on_the_batch_only_where_entropies_are_equal(model, tokenizer):
    # Rows of one prompt begin with one entropy, equal but for rounding that the batch decides.
    arguments = {"n": 6, "max_new_tokens": 30, "stop": STOPS, "residual_layers": [1]}
    one, other = (
        sample(model, tokenizer, PROMPTS, batch_size=size, **arguments) for size in (64, 3)
    )
    forks, others = (r.captured & ~r.controls for r in (one, other))
    lowest = one.entropy[forks].min()
    assert ((one.entropy[forks != others] - lowest).abs() < 1e-4).all()
    assert forks.sum() == others.sum()
    assert (one.controls != other.controls).sum() <= 2 * (forks != others).sum()


def test_near_ties_are_counted_on_running_rows_alone(tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():  # every token but the first has a twin
        model.lm_head.weight[49:] = model.lm_head.weight[1:49]
        model.lm_head.weight[0] = 0
    prompts = [[5 + i, 7] for i in range(40)]
    rollouts = sample(model, tokenizer, prompts, max_new_tokens=12, temperature=0.0, stop=STOPS)
    assert rollouts.valid.sum(1).unique().numel() > 1
    assert rollouts.provenance.near_ties == rollouts.valid.sum()


def test_the_seed_decides_and_repeats(model, tokenizer):
    one, again, other = (
        sample(model, tokenizer, PROMPTS, n=2, max_new_tokens=10, seed=seed, residual_layers=[0])
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(fields(one), fields(again), strict=True))
    assert torch.equal(one.entropy, again.entropy)
    assert torch.equal(one.residuals[0], again.residuals[0])
    assert not torch.equal(one.tokens, other.tokens)
    assert one.provenance.seed == 3


def test_rows_of_one_prompt_differ(model, tokenizer):
    rollouts = sample(model, tokenizer, [[1, 5], [1, 5]], n=8, max_new_tokens=10)
    assert len({tuple(row) for row in rollouts.tokens.tolist()}) == 16


def test_torch_random_numbers_are_neither_used_nor_moved(model, tokenizer):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = sample(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(sample(model, tokenizer, PROMPTS, max_new_tokens=6).tokens, one.tokens)


def test_an_offset_continues_a_longer_run(model, tokenizer):
    whole = sample(model, tokenizer, PROMPTS, n=3, max_new_tokens=9)
    part = sample(model, tokenizer, PROMPTS[2:], n=3, max_new_tokens=9, offset=2)
    assert part.groups.tolist() == whole.groups[6:].tolist()
    width = part.tokens.shape[1]
    assert torch.equal(part.tokens, whole.tokens[6:, :width])
    assert not torch.equal(
        part.tokens, sample(model, tokenizer, PROMPTS[2:], n=3, max_new_tokens=9).tokens
    )


# What a row is


def test_rows_come_prompt_by_prompt_and_prompts_are_not_valid(model, tokenizer):
    rollouts = sample(model, tokenizer, PROMPTS, n=2, max_new_tokens=5)
    assert rollouts.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert rollouts.prompt_lengths.tolist() == [3, 3, 23, 23, 1, 1, 6, 6, 2, 2]
    for row, start in enumerate(rollouts.prompt_lengths.tolist()):
        assert rollouts.tokens[row, :start].tolist() == PROMPTS[row // 2]
        assert not rollouts.valid[row, :start].any()
    outside = ~rollouts.valid
    for numbers in (rollouts.entropy, rollouts.logprobs, rollouts.ranks):
        assert (numbers[outside] == 0).all()
    assert (rollouts.alternatives.ids[outside] == 0).all()
    assert (rollouts.alternatives.logprobs[outside] == 0).all()


@pytest.mark.parametrize("pad", [0, EOS], ids=["pad", "pad is eos"])
def test_the_stop_token_is_valid_and_nothing_after_it(tokenizer, pad):
    model, tokenizer = tiny_model("gpt_neox"), tiny_tokenizer()  # it stops of itself
    tokenizer.pad_token_id = model.config.pad_token_id = pad
    rollouts = sample(model, tokenizer, PROMPTS, n=8, max_new_tokens=30)
    ended = 0
    for row, start in enumerate(rollouts.prompt_lengths.tolist()):
        completion = rollouts.tokens[row, start:].tolist()
        count = int(rollouts.valid[row].sum())
        assert rollouts.valid[row, start : start + count].all()
        if EOS in completion:
            ended += 1
            assert count == completion.index(EOS) + 1
            assert rollouts.entropy[row, start + count - 1] > 0  # the decision to stop is kept
        else:
            assert count == 30
        assert not any(completion[count:])
    assert 5 < ended < 40


@pytest.mark.parametrize("stops", [["w34 "], ["4 w6", "w72 w"], [40, "w49 "]])
def test_a_stop_text_or_id_ends_a_row_with_the_token_that_completes_it(model, tokenizer, stops):
    free = sample(model, tokenizer, PROMPTS, n=6, max_new_tokens=30, batch_size=7)
    ended = sample(model, tokenizer, PROMPTS, n=6, max_new_tokens=30, stop=stops, batch_size=7)
    early = 0
    for row, start in enumerate(free.prompt_lengths.tolist()):
        wanted, text = [], ""
        for token in free.tokens[row, start : start + int(free.valid[row].sum())].tolist():
            wanted.append(token)
            text += free.pieces[token].decode()
            if token in stops or any(isinstance(s, str) and s in text for s in stops):
                early += len(wanted) < 30
                break
        span = slice(start, start + len(wanted))
        assert ended.tokens[row, span].tolist() == wanted
        assert ended.valid[row].sum() == len(wanted)
        torch.testing.assert_close(ended.entropy[row, span], free.entropy[row, span])
    assert early >= 3


def test_a_stop_text_in_the_prompt_does_not_count(model, tokenizer):
    rollouts = sample(model, tokenizer, ["w50 w51 "], n=4, max_new_tokens=5, stop=["w51 "])
    assert rollouts.tokens[:, :2].tolist() == [[54, 55]] * 4
    assert rollouts.valid.sum() > 4


def test_alternatives_are_the_best_tokens_and_hold_the_drawn_one_at_its_rank(model, tokenizer):
    rollouts = sample(model, tokenizer, PROMPTS, n=3, max_new_tokens=10, alternatives=VOCAB)
    at = rollouts.valid
    values, ranks = rollouts.alternatives.logprobs[at], rollouts.ranks[at].long()
    assert (values.diff(dim=1) <= 0).all()
    torch.testing.assert_close(values.exp().sum(1), torch.ones(len(values)))
    own = rollouts.alternatives.ids[at].gather(1, ranks[:, None])[:, 0]
    assert torch.equal(own.long(), rollouts.tokens[at])
    torch.testing.assert_close(values.gather(1, ranks[:, None])[:, 0], rollouts.logprobs[at])
    entropy = -(values.exp() * values).sum(1)
    torch.testing.assert_close(entropy, rollouts.entropy[at], atol=1e-5, rtol=0)


def test_pieces_cover_every_token_and_name_control_tokens(model, tokenizer):
    rollouts = sample(model, tokenizer, [[1, 5]], n=4, max_new_tokens=10)
    ids = set(rollouts.tokens.unique().tolist()) | set(rollouts.alternatives.ids.unique().tolist())
    assert set(rollouts.pieces) == ids
    assert rollouts.special_ids == ids & {0, 1, 2, 3}
    assert rollouts.text(0).startswith("<bos>w1 ")


# What is kept


def test_forks_and_as_many_other_positions_are_kept(model, tokenizer):
    rollouts = sample(
        model, tokenizer, PROMPTS, n=20, max_new_tokens=20, stop=STOPS, residual_layers=[0, -2],
        fraction=0.15, batch_size=9,
    )  # fmt: skip
    forks = forking_mask(rollouts.entropy, rollouts.valid, fraction=0.15)
    assert torch.equal(rollouts.captured & ~rollouts.controls, forks)
    assert rollouts.controls.sum() == forks.sum()
    assert list(rollouts.residuals) == [0, 1]
    assert rollouts.provenance.capture.startswith("top 0.15 of the batch's valid tokens")
    assert_true_of_each_row(rollouts, model)  # the states among the rest


def test_what_is_not_asked_for_is_not_kept(model, tokenizer):
    plain = sample(model, tokenizer, PROMPTS, max_new_tokens=4)
    nothing = sample(
        model, tokenizer, PROMPTS, max_new_tokens=4, residual_layers=[1], residual_positions="none"
    )
    for rollouts in (plain, nothing):
        assert rollouts.residuals == {}
        assert not rollouts.captured.any()
        assert rollouts.provenance.capture == "none"
    every = sample(
        model, tokenizer, PROMPTS, max_new_tokens=4, residual_layers=[1], residual_positions="all"
    )
    assert torch.equal(every.captured, every.valid)
    assert every.provenance.capture == "all valid positions"
    assert torch.equal(every.tokens, plain.tokens)
    assert torch.equal(every.entropy, plain.entropy)


def test_no_number_of_a_rollout_carries_a_gradient(tokenizer):
    model = tiny_model("llama")
    assert all(parameter.requires_grad for parameter in model.parameters())
    rollouts = sample(model, tokenizer, PROMPTS, max_new_tokens=4, residual_layers=[0])
    tensors = [rollouts.entropy, rollouts.logprobs, rollouts.residuals[0]]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert not any(tensor.is_inference() for tensor in tensors)


# The model is left as it was


def state_of(model) -> tuple:
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    return modes, hooks, grads


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_also_after_an_error(tokenizer, fails):
    model = tiny_model("gpt2").train()  # dropout 0.1
    model.transformer.h[1].eval()
    next(model.parameters()).requires_grad_(False)
    before, weights = state_of(model), copy.deepcopy(model.state_dict())

    def progress(done: int) -> None:
        if fails and done:
            raise RuntimeError("stop here")

    arguments = {"n": 2, "max_new_tokens": 8, "residual_layers": [0, 1], "batch_size": 2}
    if fails:
        with pytest.raises(RuntimeError, match="stop here"):
            sample(model, tokenizer, PROMPTS, progress=progress, **arguments)
    else:
        rollouts = sample(model, tokenizer, PROMPTS, progress=progress, **arguments)
        assert_true_of_each_row(rollouts, copy.deepcopy(model).eval())  # without dropout
    assert state_of(model) == before
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


# What makes no sense


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be a whole number of 1 or more, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be .*, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens must be .*, got True"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"top_k": -1}, "top_k must be a whole number of 0 or more"),
        ({"alternatives": -1}, "alternatives must be"),
        ({"alternatives": VOCAB + 1}, rf"at most {VOCAB} \(the vocabulary\), got {VOCAB + 1}"),
        ({"temperature": -0.1}, r"temperature must be 0 \(greedy\) or more"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"fraction": 0.0}, r"fraction must be above 0 and at most 1 \(0.2 keeps 20%\)"),
        ({"fraction": 2.0}, "fraction must be"),
        ({"residual_positions": "some"}, "residual_positions must be one of .*, got 'some'"),
        ({"residual_layers": [3]}, "layer 3 is out of range: the model has layers 0 to 2"),
        ({"seed": True}, "seed must be a whole number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_runs(
    model, tokenizer, change, message
):
    with pytest.raises(ValueError, match=message):
        sample(model, tokenizer, PROMPTS, **change)


def test_prompts_that_do_not_fit_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="prompt 1 has 128 tokens, but the model's context is 128"):
        sample(model, tokenizer, [[5], [5] * 128])
    with pytest.raises(ValueError, match="there are no prompts"):
        sample(model, tokenizer, [])
    assert sample(model, tokenizer, [[5] * 127], max_new_tokens=9).valid.sum() == 1
