from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS
from transformers import Qwen3NextConfig

from entropy_probe.kvcache import Columns, RoomyLayer, is_roomy, make_cache, splice


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
    first = held.append(torch.randn(2, 10, 4))
    second = held.append(torch.randn(2, 1, 4))
    assert first.data_ptr() == second.data_ptr()


ROWS = st.lists(st.lists(st.integers(1, 99).map(float), min_size=1, max_size=5), max_size=4)


@given(ROWS, ROWS, st.integers(1, 6), st.data())
@settings(deadline=None)
def test_rows_stay_and_join_aligned_on_the_right(mine, others, columns, data):
    stays = data.draw(st.lists(st.integers(0, max(len(mine) - 1, 0)), max_size=5))
    joins = data.draw(st.lists(st.sampled_from(range(len(others))))) if others else []
    held = columns_of(mine) if mine else Columns()
    other = columns_of(others) if others else None
    held.splice(
        torch.tensor(stays, dtype=torch.long),
        columns,
        other,
        torch.tensor(joins, dtype=torch.long),
    )
    if not mine and not others:
        assert held.length == 0
        return
    narrow = min(columns, max(map(len, mine))) if mine else 0
    width = max(narrow, max(map(len, others)) if others else 0)
    wanted = [mine[i][-narrow:] if mine else [] for i in stays] + [others[i] for i in joins]
    wanted = [[0.0] * (width - len(row)) + row for row in wanted]
    assert held.view().shape == (len(wanted), 2, width, 3)
    assert held.view()[:, 0, :, 0].tolist() == wanted
    assert held.view()[:, 1, :, 2].tolist() == wanted


def test_what_a_row_does_not_fill_is_zero_and_not_leftover_memory():
    # The mask hides it, but a NaN there times a weight of zero would still be NaN.
    held = columns_of([[1.0], [2.0]])
    wide = columns_of([[3.0] * 200])
    for _ in range(20):
        junk = torch.full((3, 2, 400, 3), torch.nan)
        del junk
        held.splice(torch.tensor([0]), 1, wide, torch.tensor([0]))
        assert held.view().isfinite().all()
        assert (held.view()[0, :, :-1] == 0).all()


def test_rows_can_be_selected_and_repeated():
    layer = RoomyLayer()
    keys, values = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    layer.update(keys, values)
    layer.batch_select_indices(torch.tensor([2, 0, 2]))
    assert torch.equal(layer.keys, keys[[2, 0, 2]])
    assert torch.equal(layer.values, values[[2, 0, 2]])
    assert layer.get_seq_length() == 5


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


def test_a_cache_keeps_some_rows_and_takes_those_of_another():
    config = CONFIGS["llama"]
    cache, other = (make_cache(SimpleNamespace(config=config)) for _ in range(2))
    mine, theirs = torch.randn(3, 2, 4, 8), torch.randn(2, 2, 6, 8)
    for layer in range(3):
        cache.update(mine + layer, -mine, layer)
        other.update(theirs + layer, -theirs, layer)
    splice(cache, torch.tensor([1]), 3, other, torch.tensor([0, 0]))
    for layer, held in enumerate(cache.layers):
        assert held.keys.shape == (3, 2, 6, 8)
        assert torch.equal(held.keys[0, :, 3:], mine[1, :, 1:] + layer)
        assert torch.equal(held.values[1], -theirs[0])
        assert torch.equal(held.keys[2], theirs[0] + layer)
    assert cache.get_seq_length() == 6
