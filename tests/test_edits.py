"""Changes of states against their definitions, written out feature by feature."""

import pytest
import torch
from dictionaries import tiny_dictionary

from sae_steering.edits import MODES, Direction, feature_directions
from sae_steering.steering import edit_of

SAES = {
    "relu": tiny_dictionary(),
    "topk": tiny_dictionary(k=5),
    "scaled": tiny_dictionary(scale=0.25),
}
CHOSEN = {3: 2.0, 17: -0.5, 40: 0.75}


@pytest.fixture(params=SAES)
def sae(request):
    return SAES[request.param]


@pytest.fixture
def states():
    return 2.0 * torch.randn(50, 32)


def by_hand(sae, states, mode):
    """Give, in float64, what changed activations decode to, and the error added back."""
    sae, states = sae.double(), states.double()
    acts = sae.encode(states)
    changed, error = acts.clone(), states - sae.decode(acts)
    for feature, strength in CHOSEN.items():
        if mode == "add":
            changed[:, feature] += strength
        elif mode == "clamp":
            changed[:, feature] = strength
        else:
            changed[:, feature] *= 1 - strength
    return sae.decode(changed) + error


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_features_change_what_is_decoded_and_the_error_stays(sae, states, mode):
    edited = edit_of(sae, CHOSEN, mode)(states)
    assert (edited - by_hand(sae, states, mode)).abs().max() < 1e-6 / sae.scale
    assert (edited - states).abs().max() > 0.1


def test_replace_sets_the_components_and_moves_no_further(sae, states):
    edit = edit_of(sae, CHOSEN, "replace")
    edited = edit(states)
    units = torch.stack([sae.W_dec[f] / sae.W_dec[f].norm() for f in CHOSEN])
    wanted = torch.tensor(list(CHOSEN.values())).expand(50, 3)
    torch.testing.assert_close(edited @ units.T, wanted, rtol=0, atol=1e-5)
    # What moved lies in the span of the directions: nothing is left beside it.
    basis = torch.linalg.qr(units.T).Q
    moved = edited - states
    torch.testing.assert_close(moved @ basis @ basis.T, moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(edit(edited), edited, rtol=0, atol=1e-5)


def test_replacing_one_direction_is_the_formula_of_the_paper(states):
    vector, strength = torch.randn(32), 1.7
    unit = vector / vector.norm()
    wanted = states - (states @ unit)[:, None] * unit + strength * unit
    edited = edit_of(None, {Direction(vector): strength}, "replace")(states)
    torch.testing.assert_close(edited, wanted, rtol=0, atol=1e-5)


def test_ablating_directions_takes_them_out_of_the_stream(states):
    first, second = Direction(torch.randn(32)), Direction(torch.randn(32))
    edited = edit_of(None, {first: 1.0, second: 1.0}, "ablate")(states)
    for direction in (first, second):
        assert (edited @ direction.vector).abs().max() < 1e-4
    half = edit_of(None, {first: 0.5}, "ablate")(states)
    torch.testing.assert_close(half @ first.vector, 0.5 * states @ first.vector)


def test_adding_directions_counts_in_their_length(states):
    one, two = Direction(torch.randn(32)), Direction(torch.randn(32))
    edited = edit_of(None, {one: 2.0, two: -1.0}, "add")(states)
    torch.testing.assert_close(edited, states + 2 * one.vector - two.vector)


def test_feature_directions_undo_the_scale():
    wanted = SAES["scaled"].W_dec[[5, 2]] / 0.25
    torch.testing.assert_close(feature_directions(SAES["scaled"], [5, 2]), wanted)


def test_a_clamp_to_what_is_there_moves_nothing(states):
    sae = SAES["relu"]
    level = float(sae.encode(states)[0, 3])
    assert level > 0
    edited = edit_of(sae, {3: level}, "clamp")(states[:1])
    assert (edited - states[:1]).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept_and_the_arithmetic_is_wide(states, dtype):
    edit = edit_of(SAES["relu"], CHOSEN, "add")
    narrow = states.to(dtype)
    edited = edit(narrow)
    assert edited.dtype == dtype
    assert torch.equal(edited, edit(narrow.to(torch.promote_types(dtype, torch.float32))).to(dtype))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_nothing_is_known(mode):
    sae = SAES["relu"]
    assert edit_of(sae, {}, mode).is_nothing
    assert edit_of(sae, {3: 0.0}, mode).is_nothing == (mode in ("add", "ablate"))
    assert not edit_of(sae, {3: 0.0, 4: 1.0}, mode).is_nothing


def test_gradients_reach_a_direction(states):
    vector = torch.randn(32, requires_grad=True)
    edit_of(None, {Direction(vector): 2.0}, "add")(states).sum().backward()
    torch.testing.assert_close(vector.grad, torch.full((32,), 100.0))


@pytest.mark.parametrize(
    ("sae", "features", "mode", "message"),
    [
        (SAES["relu"], {80: 1.0}, "add", "features 0 to 79, got .80."),
        (SAES["relu"], {-1: 1.0}, "add", "features 0 to 79"),
        (SAES["relu"], {1: float("nan")}, "add", "finite"),
        (SAES["relu"], {1: 1.0}, "scale", "mode must be one of"),
        (SAES["relu"], {True: 1.0}, "add", "whole numbers"),
        (None, {1: 1.0}, "add", "there is none: pass sae"),
        (None, {Direction(torch.ones(32)): 1.0}, "clamp", "mode='replace'"),
        (None, {Direction(torch.zeros(32)): 1.0}, "ablate", "not zero"),
        (SAES["relu"], {1: 1.0, Direction(torch.ones(32)): 1.0}, "add", "nest two"),
    ],
)
def test_edits_that_make_no_sense_are_refused(sae, features, mode, message):
    with pytest.raises(ValueError, match=message):
        edit_of(sae, features, mode)
