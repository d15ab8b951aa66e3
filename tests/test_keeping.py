import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.drawing import uniform_noise
from entropy_probe.forking import forking_mask
from entropy_probe.keeping import StateKeeper, _priority

LAYERS = [0, 3]


def keeper_for(valid, positions: str = "forks", *, fraction: float = 0.2, seed: int = 0, most=None):
    most = int(valid.sum()) if most is None else most
    return StateKeeper(LAYERS, positions, fraction=fraction, most_tokens=most, seed=seed, d_model=3)


def states_at(rows, places) -> dict[int, torch.Tensor]:
    """Give states that say which layer, row and place they belong to."""
    return {n: torch.stack([rows, places, rows * 0 + n], dim=1).float() for n in LAYERS}


def run(keeper, entropy, valid, order):
    """Hand rows over one by one, in some order, then finish; pool sizes come along."""
    sizes = []
    for row in order:
        places = valid[row].nonzero()[:, 0]
        rows = torch.full_like(places, row)
        keeper.add(rows, places, entropy[row, places], states_at(rows, places))
        sizes.append(sum(len(part) for part in keeper._states[LAYERS[0]]))
    return *keeper.finish(entropy, valid), sizes


@st.composite
def rows_ending(draw):
    """Draw a batch with many equal entropies, and an order in which its rows end."""
    count, width = draw(st.integers(1, 12)), draw(st.integers(2, 15))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    valid = torch.rand(count, width, generator=generator) < draw(st.floats(0.2, 1))
    valid[:, 0] = False
    entropy = torch.randint(draw(st.integers(1, 40)), (count, width), generator=generator) / 4
    return entropy * valid, valid, draw(st.permutations(range(count)))


@given(rows_ending(), st.floats(0.01, 1.0), st.integers(0, 5), st.floats(1.0, 4.0))
@settings(max_examples=150, deadline=None)
def test_the_forks_and_as_many_others_survive_whatever_the_order(batch, fraction, seed, slack):
    entropy, valid, order = batch
    if not valid.any():
        return
    most = math.ceil(slack * int(valid.sum()))
    keeper = keeper_for(valid, fraction=fraction, seed=seed, most=most)
    captured, controls, residuals, _ = run(keeper, entropy, valid, order)
    forks = forking_mask(entropy, valid, fraction=fraction)
    assert torch.equal(captured & ~controls, forks)
    assert not (controls & ~valid).any()
    assert controls.sum() == min(int(forks.sum()), int(valid.sum() - forks.sum()))
    wanted = states_at(*captured.nonzero(as_tuple=True))
    assert all(torch.equal(residuals[layer], wanted[layer]) for layer in LAYERS)
    untrimmed = run(keeper_for(valid, fraction=fraction, seed=seed), entropy, valid, sorted(order))
    assert torch.equal(untrimmed[1], controls)


def test_the_pool_stays_a_few_times_the_forks():
    valid = torch.ones(400, 26, dtype=torch.bool)
    valid[:, 0] = False
    entropy = torch.rand(400, 26)
    keeper = keeper_for(valid, fraction=0.02)  # 200 forks of 10,000 tokens
    captured, _, _, sizes = run(keeper, entropy, valid, range(400))
    assert captured.sum() == 400
    assert max(sizes) <= 6 * 200


def test_the_others_are_drawn_evenly_from_what_is_not_a_fork():
    valid = torch.ones(1, 41, dtype=torch.bool)
    valid[0, 0] = False
    entropy = torch.arange(41.0)[None]
    seen = torch.zeros(41)
    for seed in range(500):
        _, controls, _, _ = run(keeper_for(valid, seed=seed), entropy, valid, [0])
        seen += controls[0]
    assert seen[33:].sum() == 0  # the 8 forks
    assert seen[1:33].sum() == 8 * 500
    assert (seen[1:33] - 125).abs().max() < 5 * math.sqrt(500 * 0.25 * 0.75)


def test_the_choice_of_others_knows_nothing_of_the_draws():
    rows, places = torch.arange(50), torch.arange(50)
    chance = _priority(3, rows, places)
    for stream in (0, 1):
        noise = uniform_noise(3, rows, places, 1, stream=stream)[:, 0]
        assert not (chance == noise).any()


def test_the_same_seed_gives_the_same_others():
    valid = torch.ones(5, 20, dtype=torch.bool)
    valid[:, 0] = False
    entropy = torch.rand(5, 20)
    one, again, other = (
        run(keeper_for(valid, seed=seed), entropy, valid, range(5))[1] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_all_keeps_every_state_and_marks_none_as_a_control():
    valid = torch.rand(6, 9) > 0.5
    entropy = torch.rand(6, 9)
    captured, controls, residuals, _ = run(
        keeper_for(valid, "all"), entropy, valid, [3, 1, 0, 2, 5, 4]
    )
    assert torch.equal(captured, valid)
    assert not controls.any()
    assert torch.equal(residuals[3], states_at(*valid.nonzero(as_tuple=True))[3])


@pytest.mark.parametrize("positions", ["forks", "all"])
def test_nothing_valid_leaves_no_state_of_the_right_width(positions):
    valid = torch.zeros(2, 4, dtype=torch.bool)
    captured, controls, residuals = keeper_for(valid, positions).finish(torch.zeros(2, 4), valid)
    assert not captured.any()
    assert not controls.any()
    assert {layer: states.shape for layer, states in residuals.items()} == {0: (0, 3), 3: (0, 3)}


def test_states_keep_their_type():
    valid = torch.tensor([[False, True]])
    keeper = keeper_for(valid)
    states = {layer: torch.ones(1, 3, dtype=torch.bfloat16) for layer in LAYERS}
    keeper.add(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), states)
    residuals = keeper.finish(torch.ones(1, 2), valid)[2]
    assert residuals[0].dtype == torch.bfloat16
