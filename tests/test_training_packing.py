"""How rows are split and laid out, against what they say when read back."""

import pytest
import torch

from entropy_probe.training.packing import Stretches, number_prompts, pack, run_lengths, split_rows


def rows_of(heads, made, *, width=20, seed=0):
    """Give tokens of rows with these prompts' lengths (equal ones share a prompt) and lengths."""
    random = torch.Generator().manual_seed(seed)
    prompts = {head: torch.randint(1, 90, (head,), generator=random) for head in set(heads)}
    tokens = torch.randint(1, 90, (len(heads), width), generator=random)
    for row, head in enumerate(heads):
        tokens[row, :head] = prompts[head]
    heads = torch.tensor(heads)
    return tokens, heads, heads + torch.tensor(made)


CASE = rows_of([4, 4, 6, 4, 6, 3, 4], [5, 2, 7, 9, 1, 8, 0])


def test_equal_prompts_have_equal_numbers():
    tokens, heads, _ = CASE
    numbers = number_prompts(tokens, heads).tolist()
    assert numbers[0] == numbers[1] == numbers[3] == numbers[6]
    assert numbers[2] == numbers[4]
    assert len(set(numbers)) == 3
    longer = heads.clone()
    longer[0] = 5  # the same beginning, but a longer prompt
    assert number_prompts(tokens, longer).tolist().count(numbers[0]) <= 3
    assert len(number_prompts(tokens[:0], heads[:0])) == 0
    assert number_prompts(tokens, torch.zeros(7, dtype=torch.long)).tolist() == [0] * 7


def test_a_row_runs_to_the_token_before_the_last_that_is_read():
    read = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0] * 6], dtype=torch.bool)
    assert run_lengths(read).tolist() == [4, 1, 0]
    assert run_lengths(read[:, :0]).tolist() == [0, 0, 0]


def packed_tokens(rows, lengths, prompts, heads):
    """Count tokens with each prompt once where several rows have it."""
    total = 0
    for prompt in {prompts[i] for i in rows}:
        mine = [i for i in rows if prompts[i] == prompt]
        if len(mine) == 1:
            total += lengths[mine[0]]
            continue
        total += max(min(heads[i], lengths[i]) for i in mine)
        total += sum(max(lengths[i] - heads[i], 0) for i in mine)
    return total


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("limits", [{}, {"most_rows": 2}, {"most_tokens": 20}, {"most_tokens": 1}])
def test_every_row_that_runs_is_in_one_micro_batch(limits, share):
    tokens, heads, lengths = CASE
    lengths = lengths.clone()
    lengths[4] = 0
    numbers = number_prompts(tokens, heads)
    parts = split_rows(lengths, numbers, heads, share=share, **limits)
    assert sorted(torch.cat(parts).tolist()) == [0, 1, 2, 3, 5, 6]
    for part in parts:
        rows = part.tolist()
        assert len(rows) <= limits.get("most_rows", 99)
        took = max(lengths[rows]) * len(rows)
        if share:
            took = packed_tokens(rows, lengths.tolist(), numbers.tolist(), heads.tolist())
        assert took <= limits.get("most_tokens", 999) or len(rows) == 1
    if not limits:
        assert len(parts) == 1
    if share and not limits:  # the rows of a prompt lie together
        order = numbers[parts[0]].tolist()
        assert [p for i, p in enumerate(order) if i == 0 or order[i - 1] != p] == list(
            dict.fromkeys(order)
        )


def test_limits_below_1_are_refused():
    tokens, heads, lengths = CASE
    for name in ("most_rows", "most_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            split_rows(lengths, number_prompts(tokens, heads), heads, **{name: 0})


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("cut", [False, True])
def test_what_is_packed_is_found_again(share, cut):
    tokens, heads, lengths = CASE
    lengths = lengths - (torch.tensor([5, 0, 9, 0, 3, 1, 2]) if cut else 0)  # some within prompts
    chosen = torch.tensor([6, 0, 2, 3, 5, 4])
    packed = pack(tokens, chosen, lengths, number_prompts(tokens, heads), heads, share=share)
    for row, number in enumerate(chosen.tolist()):
        steps = torch.arange(int(lengths[number]))
        places = packed.places(torch.full_like(steps, row), steps)
        assert torch.equal(packed.ids[0, places], tokens[number, : len(steps)])
        assert torch.equal(packed.positions[0, places], steps)
    wanted = sum(lengths[chosen].tolist())
    if share:
        wanted = packed_tokens(
            chosen.tolist(),
            lengths.tolist(),
            number_prompts(tokens, heads).tolist(),
            heads.tolist(),
        )
    assert packed.ids.numel() == wanted
    assert int(packed.trunks.lengths.sum() + packed.branches.lengths.sum()) == wanted


def test_stretches_are_padded_and_back():
    lengths = torch.tensor([3, 1, 4])
    laid = Stretches.of(lengths)
    values = torch.arange(8)
    wide = values[laid.index]
    assert wide.tolist() == [[0, 1, 2, 2], [3, 3, 3, 3], [4, 5, 6, 7]]
    assert torch.equal(wide.flatten()[laid.slots], values)
    assert Stretches.of(lengths[:0]).index.shape == (0, 0)
