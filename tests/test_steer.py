"""Steering: nothing is nothing, a batch is its rows, decoding is what teacher forcing gives."""

import copy

import pytest
import torch
from dictionaries import tiny_dictionary
from tiny import VOCAB, tiny_model, tiny_tokenizer

from entropy_probe import sample, score
from entropy_probe.hooks import HooksSkipped, edit_residuals, read_residuals
from entropy_probe.tempering import TwoTemperatures, tempered
from sae_steering.edits import Direction
from sae_steering.forks import fork_threshold
from sae_steering.places import Places, at_opening
from sae_steering.steering import steer

PROMPTS = [[1, 5, 6], [1, *range(10, 32)], [7], [1, 9, 9, 9, 4]]
STOPS = list(range(2, VOCAB, 5))
DRAWN = {"n": 2, "max_new_tokens": 10, "seed": 3, "stop": STOPS}
KEPT = {"residual_layers": [1, 2], "residual_positions": "all"}
PUSH = Direction(torch.linspace(-1.5, 1.5, 32), "push")
CASES = {
    "add": (tiny_dictionary(), {3: 4.0, 11: -3.0}),
    "clamp": (tiny_dictionary(k=6), {3: 4.0}),
    "ablate": (tiny_dictionary(scale=0.3), {f: 1.0 for f in range(20)}),
    "replace": (None, {PUSH: 3.0}),
}
WHERE = ("all", "prompt", "generated", at_opening)
PAIRS = [("add", "all"), ("clamp", "generated"), ("ablate", "prompt"), ("replace", at_opening)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def same(found, wanted):
    return torch.equal(found.tokens, wanted.tokens) and torch.equal(found.entropy, wanted.entropy)


@pytest.mark.parametrize(
    ("where", "mode", "features"),
    [
        ("all", "add", {3: 0.0}),
        ("prompt", "ablate", {3: 0.0, 4: 0.0}),
        ("generated", "ablate", {3: 0.0}),
        (at_opening, "add", {3: 0.0}),
        ("forks", "add", {3: 0.0, 4: 0.0}),
    ],
)
def test_strength_zero_is_bit_identical(model, tokenizer, mode, features, where):
    sae, options = tiny_dictionary(), {"threshold": 0.1} if where == "forks" else {}
    base = sample(model, tokenizer, PROMPTS, **DRAWN, **KEPT)
    with steer(model, sae, features, mode=mode, where=where, **options) as steered:
        for what in (steered, model):
            found = sample(what, tokenizer, PROMPTS, **DRAWN, **KEPT)
            assert same(found, base)
            assert all(torch.equal(found.residuals[i], base.residuals[i]) for i in (1, 2))
    with steer(model, sae, {3: 4.0}, where=where, **options) as steered:
        assert not same(sample(steered, tokenizer, PROMPTS, **DRAWN), base)


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate", "replace"])
def test_an_empty_set_is_nothing_in_every_mode(model, mode):
    ids = torch.tensor([PROMPTS[1]])
    with steer(model, tiny_dictionary(), {}, mode=mode) as steered:
        assert steered.edit == "nothing"
        edited = model(ids).logits
    assert torch.equal(edited, model(ids).logits)


@pytest.mark.parametrize(("mode", "where"), [*PAIRS, ("ablate", "generated")])
def test_a_steered_decode_is_the_steered_score_of_its_tokens(model, tokenizer, mode, where):
    sae, features = CASES[mode]
    with steer(model, sae, features, layer=1, mode=mode, where=where) as steered:
        drawn = sample(steered, tokenizer, PROMPTS, **DRAWN, **KEPT, batch_size=3)
        again = score(
            steered, tokenizer, drawn.tokens, drawn.valid, prompt_lengths=drawn.prompt_lengths,
            **KEPT, batch_size=5,
        )  # fmt: skip
    assert drawn.valid.sum(1).unique().numel() > 1  # rows left and joined
    assert (again.entropy - drawn.entropy).abs().max() < 1e-4
    assert (again.logprobs - drawn.logprobs).abs().max() < 1e-4
    for layer, states in drawn.residuals.items():
        assert (again.residuals[layer] - states).abs().max() < 1e-4
    plain = score(model, tokenizer, drawn.tokens, drawn.valid)
    assert (plain.entropy - drawn.entropy).abs().max() > 1e-2


@pytest.mark.parametrize(("mode", "where"), [*PAIRS, ("add", "forks")])
def test_a_batch_is_its_rows(model, tokenizer, mode, where):
    sae, features = CASES[mode]
    options = {"threshold": 2.0} if where == "forks" else {}
    with steer(model, sae, features, layer=1, mode=mode, where=where, **options) as steered:
        together = sample(steered, tokenizer, PROMPTS, **DRAWN, batch_size=64)
        for size in (1, 3):
            apart = sample(steered, tokenizer, PROMPTS, **DRAWN, batch_size=size)
            assert torch.equal(apart.tokens, together.tokens)
            assert (apart.entropy - together.entropy).abs().max() < 1e-4


@pytest.mark.parametrize("where", WHERE)
def test_generate_of_a_padded_batch_is_what_sample_gives(model, tokenizer, where):
    sae, features = CASES["clamp"]
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, attention_mask=mask, **options)
    with steer(model, sae, features, mode="clamp", where=where) as steered:
        found = model.generate(ids, attention_mask=mask, **options)
        model.generation_config.eos_token_id, before = None, model.generation_config.eos_token_id
        wanted = sample(steered, tokenizer, PROMPTS, max_new_tokens=12, temperature=0.0)
        model.generation_config.eos_token_id = before
    for row, prompt in enumerate(PROMPTS):
        tokens = wanted.tokens[row, len(prompt) : int(wanted.lengths[row])]
        assert torch.equal(found[row, width : width + len(tokens)], tokens)
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("means", ["static cache", "embeddings", "no cache"])
def test_generate_by_other_means_is_steered_the_same(model, where, means):
    ids = torch.tensor([PROMPTS[1]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    other = {"static cache": {"cache_implementation": "static"}, "no cache": {"use_cache": False}}
    given = {"inputs": ids} | other.get(means, {})
    if means == "embeddings":
        given = {"inputs_embeds": model.get_input_embeddings()(ids)}
    plain = model.generate(ids, **options)
    with steer(model, tiny_dictionary(), {3: 6.0, 11: -5.0}, where=where):
        wanted = model.generate(ids, **options)
        if means == "no cache" and where != "all":
            with pytest.raises(ValueError, match="leave use_cache on"):
                model.generate(**given, **options)
            return
        found = model.generate(**given, **options)
    assert torch.equal(found[:, -6:], wanted[:, -6:])
    assert not torch.equal(wanted, plain)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", CASES)
def test_a_padded_batch_in_one_pass_is_its_rows(model, mode, side):
    sae, features = CASES[mode]
    width = max(map(len, PROMPTS))
    pads = [[0] * (width - len(p)) for p in PROMPTS]
    ones = [[1] * len(p) for p in PROMPTS]
    ids, mask = (
        torch.tensor([a + b if side == "left" else b + a for a, b in zip(pads, rows, strict=True)])
        for rows in (PROMPTS, ones)
    )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with steer(model, sae, features, layer=1, mode=mode), torch.no_grad():
        together = model(ids, attention_mask=mask, position_ids=positions).logits
        for row, prompt in enumerate(PROMPTS):
            alone = model(torch.tensor([prompt])).logits[0]
            assert (together[row][mask[row] > 0] - alone).abs().max() < 1e-4
    with torch.no_grad():
        plain = model(ids, attention_mask=mask, position_ids=positions).logits
    assert (plain - together)[mask > 0].abs().max() > 0.1


@pytest.mark.parametrize("where", ["prompt", "generated", at_opening])
def test_places_are_those_that_are_named(model, where):
    prompt, rest = torch.tensor([PROMPTS[1]]), torch.tensor([[40], [41], [42]])
    with read_residuals(model, [1]) as plain, torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values
        for token in rest:
            model(token[None], past_key_values=cache)
    with steer(model, None, {PUSH: 1.0}, layer=1, where=where), torch.no_grad():
        with read_residuals(model, [1]) as edited:
            cache = model(prompt, use_cache=True).past_key_values
            for token in rest:
                model(token[None], past_key_values=cache)
    moved = (edited[1] - plain[1]).abs().sum(-1)[0] > 1e-6
    count = prompt.shape[1]
    positions = torch.arange(count + 3)
    wanted = {"prompt": positions < count, "generated": positions >= count}
    assert torch.equal(moved, wanted.get(where, positions == count - 1))


def test_the_readers_of_a_sampling_see_the_edited_stream(model, tokenizer):
    with steer(model, None, {PUSH: 2.0}, layer=1, mode="replace", where="generated") as steered:
        drawn = sample(steered, tokenizer, PROMPTS, **DRAWN, **KEPT)
    unit = PUSH.vector / PUSH.vector.norm()
    along = drawn.residuals[1] @ unit
    rows, places = drawn.captured.nonzero(as_tuple=True)
    first = places == drawn.prompt_lengths[rows]  # decided by the prompt's last state
    torch.testing.assert_close(along[~first], torch.full_like(along[~first], 2.0))
    assert (along[first] - 2.0).abs().max() > 0.1


def test_a_function_chooses_places_by_what_stands_there(model, tokenizer):
    seen = []

    def after_nines(places):
        assert isinstance(places, Places)
        seen.append(places)
        return places.real & (places.tokens == 9)

    ids, mask = torch.tensor([[0, 9, 4], [9, 9, 4]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    with read_residuals(model, [1]) as plain:
        model(ids, attention_mask=mask)
    with steer(model, None, {PUSH: 1.0}, layer=1, where=after_nines) as steered:
        with read_residuals(model, [1]) as edited:
            model(ids, attention_mask=mask)
    moved = (edited[1] - plain[1]).abs().sum(-1) > 1e-6
    assert torch.equal(moved, torch.tensor([[False, True, False], [True, True, False]]))
    assert seen[0].positions.tolist() == [[-1, 0, 1], [0, 1, 2]]
    assert torch.equal(seen[0].real, mask > 0)
    assert steered.edit == "add push 1 after layer 1, where=after_nines"


def test_the_record_says_what_was_edited(model, tokenizer):
    sae, features = CASES["add"]
    with steer(model, sae, features) as steered:
        drawn = sample(steered, tokenizer, PROMPTS, max_new_tokens=2)
    assert drawn.provenance.edit == "add feature 3 4, feature 11 -3 after layer 1, where=all"
    assert sample(model, tokenizer, PROMPTS, max_new_tokens=2).provenance.edit is None


def test_after_the_context_nothing_runs_as_if_it_were_steered(model, tokenizer):
    with steer(model, None, {PUSH: 5.0}, layer=1) as steered:
        drawn = sample(steered, tokenizer, PROMPTS, max_new_tokens=2)
    with pytest.raises(ValueError, match="has ended that steered the model .add push 5"):
        sample(steered, tokenizer, PROMPTS, max_new_tokens=2)
    with pytest.raises(ValueError, match="has ended"):
        score(steered, tokenizer, drawn.tokens, drawn.valid)
    with steer(model, None, {PUSH: 0.0}, layer=1) as idle:
        pass
    assert sample(idle, tokenizer, PROMPTS, max_new_tokens=2).provenance.edit == "nothing"


def test_the_record_names_all_edits_under_way_whatever_was_passed(model, tokenizer):
    other = Direction(torch.ones(32), "other")
    one, two = "add push 5 after layer 1, where=all", "add other 0.1 after layer 2, where=all"
    with steer(model, None, {PUSH: 5.0}, layer=1) as outer:
        with steer(model, None, {other: 0.1}, layer=2) as inner, steer(model, None, {}, layer=1):
            for what in (inner, outer, model):
                drawn = sample(what, tokenizer, PROMPTS, max_new_tokens=2)
                assert drawn.provenance.edit == f"{one}; {two}"
                again = score(what, tokenizer, drawn.tokens, drawn.valid)
                assert again.provenance.edit == f"{one}; {two}"
        drawn = sample(model, tokenizer, PROMPTS, max_new_tokens=2)
        assert drawn.provenance.edit == one
        other_model = sample(tiny_model(), tokenizer, PROMPTS, max_new_tokens=2)
        assert other_model.provenance.edit is None
        with pytest.raises(ValueError, match="from an unsteered run, .* under: add push 5"):
            fork_threshold(drawn)
        cooler = tempered(model, TwoTemperatures(threshold=0.3, at_forks=0.5, elsewhere=1.0))
        drawn = sample(cooler, tokenizer, PROMPTS, max_new_tokens=2)
        assert drawn.provenance.edit.startswith(f"{one}; temperature 0.5 at steps of 0.3 nats")
    plain = sample(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert fork_threshold(plain).origin.startswith("percentile 80")


def test_the_model_is_left_as_it_was_also_after_an_error(tokenizer):
    model = tiny_model().train()
    before = copy.deepcopy(model.state_dict())

    def wrong(places):
        raise RuntimeError("a choice that fails")

    with pytest.raises(RuntimeError, match="a choice that fails"):
        with steer(model, None, {PUSH: 1.0}, layer=1, where=wrong) as steered:
            sample(steered, tokenizer, PROMPTS)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_contexts_nest_in_the_order_in_which_they_are_entered(model):
    ids = torch.tensor([PROMPTS[0]])
    other = Direction(torch.ones(32))
    with steer(model, None, {PUSH: 1.0}, layer=1):
        with steer(model, None, {other: 0.5}, layer=1, mode="replace"):
            found = model(ids).logits

    def both(stream):
        stream, unit = stream + PUSH.vector, torch.ones(32) / 32**0.5
        return stream - (stream @ unit)[..., None] * unit + 0.5 * unit

    with edit_residuals(model, 1, both):
        wanted = model(ids).logits
    assert (found - wanted).abs().max() < 1e-4


def test_a_narrow_model_is_steered_in_its_own_dtype(tokenizer):
    model = tiny_model().bfloat16()
    sae, features = CASES["clamp"]
    with steer(model, sae, features, mode="clamp") as steered:
        drawn = sample(steered, tokenizer, PROMPTS, max_new_tokens=4, **KEPT)
    assert drawn.residuals[1].dtype == torch.bfloat16
    assert bool(drawn.entropy[drawn.valid].isfinite().all())


def test_a_model_that_skips_its_hooks_is_noticed():
    model = tiny_model()
    model.model.forward = lambda **inputs: None
    with pytest.raises(HooksSkipped, match="none passed the edit"):
        with steer(model, None, {PUSH: 1.0}, layer=1):
            model.model(input_ids=torch.tensor([[1, 2]]))


@pytest.mark.parametrize("where", ["prompt", "generated", at_opening])
def test_passes_that_do_not_tell_prompt_from_generated_are_refused(model, tokenizer, where):
    ids = torch.tensor([PROMPTS[1]])
    with steer(model, None, {PUSH: 1.0}, layer=1, where=where):
        with pytest.raises(ValueError, match="pass what steer gives"):
            model(ids)
        with pytest.raises(ValueError, match="pass what steer gives"):
            score(model, tokenizer, ids, torch.arange(ids.shape[1])[None] > 3)
        with pytest.raises(ValueError, match="in chunks, or guesses"):
            model.generate(ids, max_new_tokens=3, prefill_chunk_size=4, pad_token_id=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sae": None, "features": {PUSH: 1.0}}, "layer is missing"),
        ({"features": {3: 1.0}, "layer": 3}, "layer 3 is out of range"),
        ({"features": {3: 1.0}, "where": "everywhere"}, "where must be one of"),
        ({"features": {3: 1.0}, "where": "forks"}, "needs threshold="),
        ({"features": {3: 1.0}, "threshold": 1.0}, "belongs to where='forks'"),
        ({"sae": None, "features": {Direction(torch.ones(7)): 1.0}, "layer": 1}, "7 numbers"),
        ({"sae": tiny_dictionary(d_model=16), "features": {1: 1.0}}, "16 numbers"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        with steer(model, **{"sae": tiny_dictionary(), **arguments}):
            pass


@pytest.mark.parametrize("given", [torch.ones(1, 23), torch.ones(1, 3, dtype=torch.bool)])
def test_a_choice_that_is_no_mask_is_refused(model, given):
    with steer(model, None, {PUSH: 1.0}, layer=1, where=lambda places: given):
        with pytest.raises(ValueError, match="where must give a bool mask of .1, 23."):
            model(torch.tensor([PROMPTS[1]]))


def test_a_steered_model_is_not_steered_again(model):
    with steer(model, None, {PUSH: 1.0}, layer=1) as steered:
        with pytest.raises(ValueError, match="pass the model itself"):
            with steer(steered, None, {PUSH: 1.0}, layer=1):
                pass
