"""Steering at forks: the steps whose unedited entropy passes are edited, and no others."""

import inspect

import pytest
import torch
from dictionaries import tiny_dictionary
from tiny import VOCAB, tiny_model, tiny_tokenizer

from entropy_probe import capture, forking_mask, sample, score
from entropy_probe.hooks import edit_residuals
from entropy_probe.kvcache import drop_newest, make_cache
from sae_steering.edits import Direction
from sae_steering.forks import Threshold, fork_threshold
from sae_steering.places import at_opening, replaying
from sae_steering.steering import edit_of, steer

PROMPTS = [[1, 5, 6], [1, *range(10, 22)], [7], [1, 9, 9, 9, 4]]
STOPS = list(range(2, VOCAB, 9))
DRAWN = {"n": 2, "max_new_tokens": 10, "seed": 3, "stop": STOPS, "batch_size": 3}
KEPT = {"residual_layers": [2], "residual_positions": "all"}
PUSH = Direction(torch.linspace(-1.5, 1.5, 32), "push")
SAE, FEATURES = tiny_dictionary(), {3: 4.0, 11: -3.0}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def base(model, tokenizer):
    return sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT)


def entropy_after(model, ids, temperature):
    """Give the entropy of what follows, at temperature 1 where decoding is greedy."""
    scores = (model(ids).logits[0, -1].double() / (temperature or 1.0)).log_softmax(-1)
    return float(-(scores.exp() * scores).sum())


@torch.no_grad()
def replayed(model, edit, row, prompt_length, nats, temperature):
    """Decide about a row's tokens one after the other, with whole passes and no cache."""
    edited, before, after = [], [], []
    for place in range(prompt_length, len(row)):
        chosen = torch.zeros(1, place, dtype=torch.bool)
        chosen[0, [at for at in edited]] = True

        def change(stream, chosen=chosen):
            out = stream.clone()
            out[chosen] = edit(stream[chosen])
            return out

        with edit_residuals(model, 1, change):
            before.append(entropy_after(model, row[None, :place], temperature))
        if before[-1] >= nats:
            edited.append(place - 1)
            chosen[0, place - 1] = True
        with edit_residuals(model, 1, change):
            after.append(entropy_after(model, row[None, :place], temperature))
    return [at + 1 for at in edited], before, after


@pytest.mark.parametrize("temperature", [1.0, 0.0, 0.6])
def test_a_replay_edits_the_same_places_and_finds_the_same_entropies(
    model, tokenizer, base, temperature
):
    nats = fork_threshold(base, fraction=0.4).nats - 0.002
    edit = edit_of(SAE, FEATURES, "add")
    drawn = DRAWN | {"temperature": temperature, "seed": 5}
    with steer(model, SAE, FEATURES, where="forks", threshold=nats) as steered:
        rollouts = sample(steered, tokenizer, PROMPTS, **drawn)
    edited = steered.steps.edited(rollouts)
    unedited = steered.steps.unedited_entropy(rollouts)
    assert torch.equal(edited, rollouts.valid & (unedited >= nats))
    assert 0 < int(edited.sum()) < int(rollouts.valid.sum())
    for row in range(len(rollouts)):
        start, end = int(rollouts.prompt_lengths[row]), int(rollouts.lengths[row])
        tokens = rollouts.tokens[row, :end]
        places, before, after = replayed(model, edit, tokens, start, nats, temperature)
        near = min(abs(entropy - nats) for entropy in before)
        assert near > 1e-4  # rounding decides about none of them
        assert edited[row].nonzero()[:, 0].tolist() == places
        assert (unedited[row, start:end] - torch.tensor(before)).abs().max() < 1e-4
        assert (rollouts.entropy[row, start:end] - torch.tensor(after)).abs().max() < 1e-4


def test_what_was_edited_can_be_scored_again(model, tokenizer, base):
    with steer(model, SAE, FEATURES, where="forks", threshold=base) as steered:
        drawn = sample(steered, tokenizer, PROMPTS, **DRAWN, **KEPT)
        with pytest.raises(ValueError, match="where=replaying"):
            score(steered, tokenizer, drawn.tokens, drawn.valid)
    where = replaying(steered.steps.edited(drawn))
    with steer(model, SAE, FEATURES, where=where) as again:
        scored = score(
            again, tokenizer, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths,
            **KEPT, batch_size=5,
        )  # fmt: skip
        with pytest.raises(ValueError, match="pass what steer gives to score"):
            model(drawn.tokens)
    assert (scored.entropy - drawn.entropy).abs().max() < 1e-4
    assert (scored.residuals[2] - drawn.residuals[2]).abs().max() < 1e-4


def test_a_threshold_that_none_reaches_changes_no_bit_and_costs_nothing(model, tokenizer, base):
    with steer(model, SAE, FEATURES, where="forks", threshold=99.0) as steered:
        found = sample(steered, tokenizer, PROMPTS, **DRAWN, **KEPT)
    assert torch.equal(found.tokens, base.tokens)
    assert torch.equal(found.entropy, base.entropy)
    assert torch.equal(found.residuals[2], base.residuals[2])
    assert steered.steps.passes == steered.steps.recomputed == 0
    assert not bool(steered.steps.edited(found).any())


def test_a_threshold_that_all_reach_edits_what_decides_each_token(model, tokenizer):
    def deciding(places):
        return at_opening(places) | places.generated

    with steer(model, SAE, FEATURES, where=deciding) as steered:
        wanted = sample(steered, tokenizer, PROMPTS, **DRAWN, **KEPT)
    with steer(model, SAE, FEATURES, where="forks", threshold=-1.0) as steered:
        found = sample(steered, tokenizer, PROMPTS, **DRAWN, **KEPT)
    assert torch.equal(found.tokens, wanted.tokens)
    assert (found.entropy - wanted.entropy).abs().max() < 1e-4
    assert (found.residuals[2] - wanted.residuals[2]).abs().max() < 1e-4
    assert torch.equal(steered.steps.edited(found), found.valid)
    # One prefilled position a prompt decides for all its rows; ended rows wait for others.
    assert steered.steps.recomputed >= int(found.valid.sum()) - len(found) + len(PROMPTS)


def test_the_other_steps_are_those_below_the_threshold(model, tokenizer, base):
    nats = fork_threshold(base).nats
    with steer(model, SAE, FEATURES, where="non-forks", threshold=nats) as steered:
        found = sample(steered, tokenizer, PROMPTS, **DRAWN)
    unedited = steered.steps.unedited_entropy(found)
    assert torch.equal(steered.steps.edited(found), found.valid & (unedited < nats))
    assert "where=non-forks" in found.provenance.edit


def test_the_cost_is_counted(model, tokenizer):
    with steer(model, None, {PUSH: 1.0}, layer=1, where="forks", threshold=-1.0) as steered:
        sample(steered, tokenizer, PROMPTS[:1], max_new_tokens=3, stop=STOPS[:0])
        first = (steered.steps.passes, steered.steps.recomputed)
        sample(steered, tokenizer, PROMPTS[:1], max_new_tokens=1)
    assert first == (3, 3)
    assert (steered.steps.passes, steered.steps.recomputed) == (4, 4)


def test_the_cost_is_what_enters_the_model_twice(model, tokenizer, base):
    entered = []

    def look(module, args, kwargs):
        entered.append(kwargs["input_ids"].numel())

    with steer(model, None, {PUSH: 1e-9}, layer=1, where="forks", threshold=base) as steered:
        hook = model.model.register_forward_pre_hook(look, with_kwargs=True)
        sample(steered, tokenizer, PROMPTS, **DRAWN)
        counted, again = sum(entered), len(entered)
        hook.remove()
    entered.clear()
    hook = model.model.register_forward_pre_hook(look, with_kwargs=True)
    sample(model, tokenizer, PROMPTS, **DRAWN)  # so small a push changes no token
    hook.remove()
    assert counted - sum(entered) == steered.steps.recomputed > 0
    assert again - len(entered) == steered.steps.passes > 0


def test_forks_are_refused_where_a_cache_is_not_rolled_back(model, tokenizer):
    ids = torch.tensor([PROMPTS[0]])
    with steer(model, None, {PUSH: 1.0}, layer=1, where="forks", threshold=1.0) as steered:
        for run in (
            lambda: model.generate(ids, max_new_tokens=2, pad_token_id=0),
            lambda: model(ids),
            lambda: sample(model, tokenizer, PROMPTS),
            lambda: steered.run(input_ids=ids),
        ):
            with pytest.raises(ValueError, match="`sample` does that on what steer gives"):
                run()
        sample(steered, tokenizer, PROMPTS, max_new_tokens=1)


def test_what_was_edited_belongs_to_the_last_sampling(model, tokenizer, base):
    with steer(model, None, {PUSH: 1.0}, layer=1, where="forks", threshold=1.0) as steered:
        with pytest.raises(ValueError, match="had 0 rows, these are 8"):
            steered.steps.edited(base)
        sample(steered, tokenizer, PROMPTS[:1], max_new_tokens=1)
        with pytest.raises(ValueError, match="had 1 rows, these are 8"):
            steered.steps.edited(base)


def test_a_threshold_is_the_least_uncertain_fork_of_an_unsteered_run(
    model, tokenizer, base, tmp_path
):
    forks = forking_mask(base.entropy, base.valid, fraction=0.2)
    found = fork_threshold(base)
    assert found.nats == float(base.entropy[forks].min())
    assert "percentile 80" in found.describe()
    capture(model, tokenizer, PROMPTS, tmp_path / "named", **DRAWN)
    named = fork_threshold(tmp_path / "named")
    assert named.nats == found.nats
    assert "run named" in named.origin
    assert fork_threshold(named) is named
    assert fork_threshold(0.5) == Threshold(0.5, "given")
    with steer(model, None, {PUSH: 1.0}, layer=1, where="forks", threshold=named) as steered:
        assert "run named" in sample(steered, tokenizer, PROMPTS, max_new_tokens=1).provenance.edit


def test_thresholds_that_make_no_sense_are_refused(model, tokenizer, base):
    with pytest.raises(ValueError, match="finite"):
        fork_threshold(float("inf"))
    with pytest.raises(ValueError, match="no valid tokens"):
        fork_threshold(base[:0])
    with steer(model, None, {PUSH: 1.0}, layer=1) as steered:
        edited = sample(steered, tokenizer, PROMPTS, max_new_tokens=1)
    with pytest.raises(ValueError, match="sampled under: add push 1 after layer 1"):
        fork_threshold(edited)


def test_a_replay_needs_a_mask():
    with pytest.raises(ValueError, match="bool mask"):
        inspect.unwrap(replaying)(torch.ones(1, 3))  # without the tests' own check of types


def test_a_cache_without_room_cannot_be_rolled_back(model):
    from transformers import DynamicCache

    ids = torch.tensor([[1, 5, 6, 7]])
    roomy, plain = make_cache(model), DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(ids).logits[0, -1]
        model(ids, past_key_values=roomy)
        drop_newest(roomy)
        assert roomy.get_seq_length() == 3
        again = model(ids[:, -1:], past_key_values=roomy).logits[0, -1]
        model(ids, past_key_values=plain)
    assert (again - whole).abs().max() < 1e-4
    with pytest.raises(ValueError, match="cannot be rolled back by a step: its layers are Dynamic"):
        drop_newest(plain)
