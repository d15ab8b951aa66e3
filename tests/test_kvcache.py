from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent import CONFIGS as RECURRENT
from recurrent import recurrent_model
from tiny import CONFIGS
from transformers import Qwen3NextConfig, cache_utils

from entropy_probe.kvcache import (
    Columns,
    Moves,
    cache_inputs,
    columns_held,
    empty_like,
    is_roomy,
    make_cache,
    move,
)


def columns_of(rows: list[list[float]]) -> Columns:
    """Build columns whose rows end in the numbers given, zeros to their left."""
    width = max(map(len, rows))
    padded = torch.tensor([[0.0] * (width - len(row)) + row for row in rows])
    held = Columns()
    held.append(padded[:, None, :, None].expand(-1, 2, -1, 3))
    return held


def test_appending_in_pieces_equals_joining_them():
    pieces = [torch.randn(2, 3, width, 4) for width in (5, 1, 1, 70, 1, 200, 1)]
    held = Columns()
    for i, piece in enumerate(pieces):
        seen = held.append(piece)
        assert torch.equal(seen, torch.cat(pieces[: i + 1], dim=-2))
    assert held.length == 279


def test_a_step_writes_in_place_while_there_is_room():
    held = Columns()
    begun = held.append(torch.randn(2, 10, 4))
    assert begun.untyped_storage().nbytes() == begun.numel() * 4  # no room that may go unused
    first = held.append(torch.randn(2, 1, 4))
    second = held.append(torch.randn(2, 1, 4))
    assert first.data_ptr() == second.data_ptr() != begun.data_ptr()


def test_a_cache_whose_rows_are_taken_can_be_given_up():
    model, states = SimpleNamespace(config=CONFIGS["llama"]), torch.randn(2, 3, 5, 4)
    for forget in (False, True):
        given, taking = make_cache(model), make_cache(model)
        for layer in range(len(given.layers)):
            given.update(states, states, layer)
        moves = Moves.fill(torch.zeros(0, dtype=torch.bool), 2)
        move(taking, moves, 0, given, torch.arange(2), forget=forget)
        assert all(torch.equal(layer.parts[1].view(), states) for layer in taking.layers)
        assert [layer.get_seq_length() for layer in given.layers] == [0 if forget else 5] * len(
            given.layers
        )


ROWS = st.lists(st.lists(st.integers(1, 99).map(float), min_size=1, max_size=40), max_size=6)


@given(ROWS, st.lists(st.tuples(st.integers(0, 30), ROWS, st.data()), max_size=6))
@settings(deadline=None)
def test_rows_leave_and_join_in_any_order_aligned_on_the_right(begun, rounds):
    held, wanted = Columns(), []
    for steps, joining, data in [(0, begun, None), *rounds]:
        for step in range(steps if wanted else 0):
            held.append(torch.full((len(wanted), 2, 1, 3), float(step)))
            wanted = [[*row, float(step)] for row in wanted]
        alive = [data.draw(st.booleans()) if data else False for _ in wanted]
        moves = Moves.fill(torch.tensor(alive, dtype=torch.bool), len(joining))
        rows = [*wanted, *joining]
        longest = max(
            (len(row) for row, stays in zip(wanted, alive, strict=True) if stays), default=0
        )
        other = columns_of(joining) if joining else None
        held.move(moves, longest, other, torch.arange(len(joining)))
        # Those that stay keep their slots, but for those that fill the gaps.
        stays = [i for i, row in enumerate(alive) if row and i < len(moves.index)]
        assert moves.index[stays].tolist() == stays
        assert sorted(moves.index.tolist()) == [
            i for i in range(len(rows)) if i >= len(wanted) or alive[i]
        ]
        wanted = [rows[i] for i in moves.index.tolist()]
        width = max(map(len, wanted), default=0)
        if wanted:
            padded = [[0.0] * (width - len(row)) + row for row in wanted]
            assert held.view()[:, 0, :, 0].tolist() == padded
            assert held.view()[:, 1, :, 2].tolist() == padded
        assert held.length == width


def test_rows_may_be_taken_more_than_once():
    held = Columns()
    other = columns_of([[1.0, 2.0], [3.0]])
    which = torch.tensor([1, 1, 0])
    held.move(Moves.fill(torch.zeros(0, dtype=torch.bool), 3), 0, other, which)
    assert held.view()[:, 0, :, 0].tolist() == [[0.0, 3.0], [0.0, 3.0], [1.0, 2.0]]


def test_rows_that_stay_are_not_copied():
    held = columns_of([[1.0], [2.0], [3.0]])
    before = held.view().data_ptr()
    moves = Moves.fill(torch.tensor([True, False, True]), 1)
    assert moves.index.tolist() == [0, 3, 2]
    held.move(moves, 1, columns_of([[4.0]]), torch.tensor([0]))
    held.move(Moves.fill(torch.tensor([False, True, True]), 0), 1, None, moves.to)
    assert held.view()[:, 0, 0, 0].tolist() == [3.0, 4.0]
    assert held.view().data_ptr() == before


def test_what_a_row_does_not_fill_is_zero_and_not_leftover_memory():
    # The mask hides it, but a NaN there times a weight of zero would still be NaN.
    held = columns_of([[1.0], [2.0]])
    for width in (200, 3, 300, 1):
        for _ in range(5):
            junk = torch.full((3, 2, 400, 3), torch.nan)
            del junk
            other = columns_of([[3.0] * width])
            moves = Moves.fill(torch.tensor([True, False]), 1)
            held.move(moves, 1, other, torch.tensor([0]))
            assert held.view().isfinite().all()
            assert (held.view()[0, :, :-1] == 0).all()


@pytest.mark.parametrize("family", CONFIGS)
def test_every_plain_decoder_has_room(family):
    cache = make_cache(SimpleNamespace(config=CONFIGS[family]))
    assert is_roomy(cache)
    assert len(cache.layers) == 3
    assert cache.get_seq_length() == 0
    windows = [layer.is_sliding for layer in cache.layers]
    wanted = {"gemma2": [True, False, True], "gemma3": [True] * 3, "mistral": [True] * 3}
    assert windows == wanted.get(family, [False] * 3)


def test_layers_with_another_state_keep_their_own_cache():
    config = Qwen3NextConfig(num_hidden_layers=4, hidden_size=32)
    assert not is_roomy(make_cache(SimpleNamespace(config=config)))


def test_older_transformers_are_told_from_those_that_cache_recurrent_states(monkeypatch):
    models = [recurrent_model(RECURRENT[family]) for family in ("falcon_h1", "lfm2")]
    for model in models:
        make_cache(model)
    monkeypatch.delattr(cache_utils, "LinearAttentionLayer")
    for model in models:
        with pytest.raises(ValueError, match=rf"{type(model).__name__} .* transformers 5\.5"):
            make_cache(model)
    assert is_roomy(make_cache(SimpleNamespace(config=CONFIGS["llama"])))


def test_a_cache_keeps_some_rows_and_takes_those_of_another():
    config = CONFIGS["llama"]
    cache, other = (make_cache(SimpleNamespace(config=config)) for _ in range(2))
    mine, theirs = torch.randn(3, 2, 4, 8), torch.randn(2, 2, 6, 8)
    for layer in range(3):
        cache.update(mine + layer, -mine, layer)
        other.update(theirs + layer, -theirs, layer)
    moves = Moves.fill(torch.tensor([False, True, False]), 2)
    move(cache, moves, 3, other, torch.tensor([0, 0]))
    one = torch.ones(3, 2, 1, 8)
    for layer in range(3):
        keys, values = cache.update(one, one, layer)
        assert keys.shape == (3, 2, 7, 8)
        assert torch.equal(keys[1, :, 3:6], mine[1, :, 1:] + layer)
        assert torch.equal(values[0, :, :6], -theirs[0])
        assert torch.equal(keys[2, :, :6], theirs[0] + layer)
    assert cache.get_seq_length() == 7


def test_an_empty_cache_is_like_another():
    cache = make_cache(SimpleNamespace(config=CONFIGS["gemma2"]))
    like = empty_like(cache)
    assert [layer.is_sliding for layer in like.layers] == [True, False, True]
    assert is_roomy(like)
    assert like.get_seq_length() == 0


@pytest.mark.parametrize(
    ("family", "names", "wanted"),
    [
        ("llama", {"input_ids", "past_key_values"}, "past_key_values"),
        ("llama", {"input_ids", "cache"}, "cache"),  # from transformers 5.24 on
        ("llama", {"kwargs"}, "past_key_values"),
        ("mamba2", {"cache_params", "past_key_values"}, "cache_params"),
        ("mamba2", {"cache"}, "cache"),
        ("falcon_h1", {"past_key_values"}, "past_key_values"),
        ("llama", {"cache_params"}, "past_key_values"),  # a cache of the model's own kind
    ],
)
def test_a_cache_goes_by_the_name_that_the_model_takes(family, names, wanted):
    cache = make_cache(SimpleNamespace(config=(CONFIGS | RECURRENT)[family]))
    ids, mask = torch.ones(2, 1, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    inputs = cache_inputs(names, cache, ids, mask)
    assert set(inputs) == {wanted, "attention_mask"}
    assert inputs[wanted] is cache
    assert inputs["attention_mask"].shape[1] == (1 if family == "mamba2" else 5)
    assert columns_held(inputs) == 0
    assert columns_held({"input_ids": ids, wanted: None}) is None


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_what_a_cache_holds_is_counted_by_either_name(name):
    cache = make_cache(SimpleNamespace(config=CONFIGS["llama"]))
    states = torch.randn(1, 2, 4, 8)
    cache.update(states, states, 0)
    assert columns_held({name: cache}) == 4


def test_recurrent_states_do_not_say_how_much_they_have_read():
    model = recurrent_model(RECURRENT["mamba2"])
    out = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    assert columns_held(vars(out)) == -1
