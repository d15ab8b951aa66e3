"""Buffers that stay where they are hold what growing ones hold."""

from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS

from entropy_probe import fixed_cache
from entropy_probe.fixed_cache import FixedCache, FixedColumns
from entropy_probe.kvcache import Columns, Moves, empty_like, make_cache, move

SLOTS, LONGEST = 6, 24


def new_rows(lengths: list[int]) -> Columns:
    """Give rows of random numbers, right-aligned."""
    states = torch.rand(len(lengths), 2, max(lengths), 3) + 1
    for row, length in zip(states, lengths, strict=True):
        row[:, : max(lengths) - length] = 0
    held = Columns()
    held.append(states)
    return held


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.data()), max_size=8))
@settings(deadline=None)
def test_rows_that_come_and_go_lie_as_in_columns_that_grow(rounds):
    ours, theirs = FixedColumns(SLOTS, LONGEST + 2), Columns()
    lengths, buffer = [], None
    for steps, joining, data in rounds:
        alive = [data.draw(st.booleans()) and length < LONGEST for length in lengths]
        joining = min(joining, SLOTS - sum(alive))
        begun = [data.draw(st.integers(1, LONGEST // 2)) for _ in range(joining)]
        moves = Moves.fill(torch.tensor(alive, dtype=torch.bool), joining)
        kept = max((n for n, stays in zip(lengths, alive, strict=True) if stays), default=0)
        other = new_rows(begun) if begun else None
        for columns in (ours, theirs):
            if len(alive) or begun:
                columns.move(moves, kept, other, torch.arange(joining))
        lengths = [[*lengths, *begun][i] for i in moves.index.tolist()]
        for _ in range(min(steps, LONGEST - max(lengths, default=LONGEST))):
            states = torch.rand(SLOTS, 2, 1, 3)
            theirs.append(states[: len(lengths)])
            at = ours.next_column()
            assert at <= LONGEST + 1
            seen = ours.write(states, torch.tensor([at]))
            ours.wrote()
            buffer = seen if buffer is None else buffer
            assert seen.data_ptr() == buffer.data_ptr()
            assert seen.shape == buffer.shape
            lengths = [length + 1 for length in lengths]
        if lengths:
            for row, length in enumerate(lengths):  # beyond, anything may lie: the mask hides it
                mine, other_row = (c.view()[row, :, -length:] for c in (ours, theirs))
                assert torch.equal(mine, other_row)
    assert buffer is None or buffer.isfinite().all()


def test_layers_write_the_same_column_and_count_it_once_it_is_written(monkeypatch):
    monkeypatch.setattr(fixed_cache, "_SPARE", 1)
    monkeypatch.setattr(fixed_cache, "_MULTIPLE", 4)
    usual = make_cache(SimpleNamespace(config=CONFIGS["gemma2"]))
    cache = FixedCache(usual, rows=3, longest=7, device=torch.device("cpu"))
    assert cache.columns == 8
    sliding = [layer.is_sliding for layer in usual.layers]
    assert [layer.is_sliding for layer in cache.layers] == sliding
    assert len(set(sliding)) == 2
    assert cache.is_compileable
    prompts = empty_like(usual)
    for layer in range(3):
        prompts.update(torch.ones(2, 2, 4, 8), torch.ones(2, 2, 4, 8), layer)
    for _ in range(2):  # cleared, the same buffers begin again
        moves = Moves.fill(torch.zeros(0, dtype=torch.bool), 2)
        move(cache.clear(), moves, 0, prompts, torch.arange(2))
        for step in range(4):
            assert cache.next_column() == cache.get_seq_length() == 4 + step
            for layer in range(3):
                keys, values = cache.update(
                    torch.full((3, 2, 1, 8), 2.0), torch.full((3, 2, 1, 8), 3.0), layer
                )
                assert keys.shape == (3, 2, *cache.get_mask_sizes(1, layer)[:1], 8)
                assert keys[:, 0, 4 + step, 0].tolist() == [2.0] * 3
                assert values[:, 0, 4 + step, 0].tolist() == [3.0] * 3
            cache.wrote()
        assert [layer.parts[0].length for layer in cache.layers] == [8] * 3
    # No room: the newest seven move to the front.
    moves = Moves.fill(torch.ones(2, dtype=torch.bool), 0)
    move(cache, moves, 7, None, moves.to[:0])
    assert cache.next_column() == 7
    assert keys[0, 0, :7, 0].tolist() == [1.0] * 3 + [2.0] * 4
