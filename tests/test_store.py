"""Shuffled states against those that were captured: each once a pass, mixed across chunks."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture, forking_mask, sample
from entropy_probe.storage.errors import RunError
from sae_steering.rows import Held, stored_rows
from sae_steering.store import StateStore

PROMPTS = [[1, 5 + i, 6] for i in range(18)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Give a run of three chunks with all states, and one with forks and controls."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    folder = tmp_path_factory.mktemp("runs")
    return {
        kind: capture(
            model, tokenizer, PROMPTS, folder / kind, max_new_tokens=12, seed=1,
            chunk_prompts=6, residual_layers=[0, 2], residual_positions=kind, alternatives=0,
        )
        for kind in ("all", "forks")
    }  # fmt: skip


def taken(store, passes=1, **options):
    """Give the states of whole passes, in the order in which they come."""
    wanted, got = passes * len(store), []
    for batch in store.batches(7, **options):
        got.append(batch)
        if sum(map(len, got)) >= wanted:
            return torch.cat(got)[:wanted]
    raise AssertionError


def numbers(states, known):
    """Say which of the known states each is; the states are all different."""
    table = {row.numpy().tobytes(): i for i, row in enumerate(known)}
    assert len(table) == len(known)
    return [table[row.numpy().tobytes()] for row in states]


def test_a_pass_gives_every_state_once_and_the_next_one_in_another_order(runs):
    store = StateStore(runs["all"], 2)
    known = runs["all"].rollouts().residuals[2]
    assert (len(store), store.d_model) == (len(known), 32)
    order = numbers(taken(store, passes=3, seed=0), known)
    first, second, third = np.split(np.array(order), 3)
    for one in (first, second, third):
        assert sorted(one) == list(range(len(known)))
    assert list(first) != list(second)
    assert list(first) != sorted(first)
    assert numbers(taken(store, seed=0), known) == list(first)
    assert numbers(taken(store, seed=1), known) != list(first)


def test_the_order_is_mixed_across_chunks_not_within_them(tmp_path):
    for i in range(10):  # ten files of 400 states that say where they come from
        rows = torch.stack([torch.full((400,), float(i)), torch.arange(400.0)], dim=1)
        save_file({"layer.0": rows}, tmp_path / f"{i}.safetensors")
    from sae_steering.store import _Part, _stream

    found = [_Part(stored_rows(tmp_path / f"{i}.safetensors", "layer.0"), None) for i in range(10)]
    batch = next(_stream(found, 4000, [0], 0))
    file, place = batch[:, 0], batch[:, 1] + 400 * batch[:, 0]
    assert sorted(place.tolist()) == list(range(4000))
    # A uniform permutation: no trend, and neighbours come from the same file one time in ten.
    assert abs(np.corrcoef(np.arange(4000), place)[0, 1]) < 0.06
    assert abs(float((file[1:] == file[:-1]).float().mean()) - 0.1) < 0.025
    tenth = torch.bincount(file[:400].long(), minlength=10)
    assert float(((tenth - 40) ** 2 / 40).sum()) < 27.9  # chi-square, 9 degrees, p = 0.001


def test_small_windows_give_the_same_order(runs, monkeypatch):
    store = StateStore(runs["all"], 2)
    whole = taken(store, passes=2)
    monkeypatch.setattr("sae_steering.store.WINDOW_BYTES", 4 * 32 * 20)
    assert torch.equal(taken(store, passes=2), whole)


@pytest.mark.parametrize("positions", ["all", {"forks": 0.3, "others": 0.7}])
def test_batches_can_be_gone_on_with(runs, positions):
    store = StateStore(runs["forks"], 0, positions=positions)
    batches = store.batches(8, seed=3)
    unbroken = [next(batches) for _ in range(30)]
    resumed = store.batches(8, seed=3, start=17)
    assert all(torch.equal(next(resumed), unbroken[i]) for i in range(17, 30))


def test_forks_and_others_are_those_of_the_capture(runs):
    record = runs["forks"].rollouts()
    known = record.residuals[0]
    forks = (record.captured & ~record.controls)[record.captured]
    assert 0 < int(forks.sum()) < len(forks)
    for kind, mask in (("forks", forks), ("others", ~forks)):
        store = StateStore(runs["forks"].path, 0, positions=kind)
        found = sorted(numbers(taken(store), known))
        assert found == torch.where(mask)[0].tolist()


def test_where_all_states_were_kept_forks_are_chosen_within_each_chunk(runs):
    run = runs["all"]
    known = run.rollouts().residuals[0]
    marks = []
    for start in range(0, 18, 6):
        part = run[start : start + 6]
        marks.append(forking_mask(part.entropy, part.valid, fraction=0.1)[part.captured])
    wanted = torch.where(torch.cat(marks))[0].tolist()
    store = StateStore(run, 0, positions="forks", fraction=0.1)
    assert sorted(numbers(taken(store), known)) == wanted


def test_mixtures_hold_their_shares_in_every_batch(runs):
    record = runs["forks"].rollouts()
    forks = (record.captured & ~record.controls)[record.captured]
    store = StateStore([record], 0, positions={"forks": 0.25, "others": 0.75})
    batches = store.batches(8)
    for _ in range(5):
        which = numbers(next(batches), record.residuals[0])
        assert int(forks[which].sum()) == 2


def test_records_and_runs_give_the_same_states(runs):
    record = runs["all"].rollouts()
    together = StateStore([record, runs["all"]], 2)
    assert len(together) == 2 * int(record.captured.sum())
    doubled = np.bincount(numbers(taken(together), record.residuals[2]))
    assert set(doubled) == {2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_a_file_are_read_as_they_are(tmp_path, dtype):
    states = torch.randn(50, 6).to(dtype)
    save_file({"other": torch.ones(3), "layer.4": states}, tmp_path / "a.safetensors")
    rows = np.array([0, 1, 2, 7, 30, 31, 49])
    found = stored_rows(tmp_path / "a.safetensors", "layer.4")
    assert found.shape == (50, 6)
    assert torch.equal(found.read(rows), states[rows].float())
    assert torch.equal(found.read(rows), Held(states).read(rows))
    assert found.read(rows[:0]).shape == (0, 6)


def test_what_is_not_there_is_said(runs, tmp_path):
    run = runs["all"]
    with pytest.raises(ValueError, match=r"layers \[0, 2\], not of 1: pass layer="):
        StateStore(run, 1)
    with pytest.raises(ValueError, match=r"not of None: pass layer="):
        StateStore(run)
    nothing = sample(tiny_model(), tiny_tokenizer(), PROMPTS[:1], max_new_tokens=2)
    with pytest.raises(ValueError, match=r"layers \[\], not of None: capture with"):
        StateStore(nothing)
    with pytest.raises(ValueError, match="nothing to read states from"):
        StateStore([])
    for positions in ("forcs", {"forks": 0.5}, {"forks": 0.5, "others": 0.6}):
        with pytest.raises(ValueError, match="positions must be one of"):
            StateStore(run, 0, positions=positions)
    with pytest.raises(ValueError, match="no states at positions 'others'"):
        StateStore(run, 0, positions="others", fraction=1.0)
    with pytest.raises(ValueError, match="a batch must hold at least 2 states"):
        next(StateStore(run, 0, positions={"forks": 0.5, "others": 0.5}).batches(1))
    other = sample(tiny_model("gpt2"), tiny_tokenizer(), PROMPTS[:1], max_new_tokens=3,
                   residual_layers=[2], residual_positions="all")  # fmt: skip
    with pytest.raises(ValueError, match="states are of different weights"):
        StateStore([run, other], 2)
    other = dataclasses.replace(other, provenance=run.provenance)
    other.residuals[2] = other.residuals[2][:, :5]
    with pytest.raises(ValueError, match=r"widths \[5, 32\]"):
        StateStore([run, other], 2)


def test_damaged_files_are_said(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"layer.0": torch.randn(50, 6)}, path)
    rows = stored_rows(path, "layer.0")
    with pytest.raises(RunError, match="KeyError"):
        stored_rows(path, "layer.1")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert rows.read(np.array([3])).shape == (1, 6)
    with pytest.raises(RunError, match="it ends before row 50"):
        rows.read(np.array([48, 49]))
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(RunError, match="header is longer"):
        stored_rows(path, "layer.0")
    path.unlink()
    with pytest.raises(RunError, match="No such file"):
        stored_rows(path, "layer.0")
