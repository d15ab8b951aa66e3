"""The benchmark of updates compares like with like: its engines make one another's gradients."""

from dataclasses import replace

import pytest
import torch
from updates import furthest, take_gradients

from analyses.benchmarks import update_engines
from analyses.benchmarks.update_batches import CASES, load_case, make_batch, read_batch
from entropy_probe.training.presets import preset
from entropy_probe.training.selection import keep_tokens
from entropy_probe.training.sparse import current_statistics, policy_step

ROWS = 16


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Give a model, its tokenizer, completions and their entropies."""
    path = tmp_path_factory.mktemp("batch") / "batch.pt"
    case = replace(CASES["organism"], tokens=24)
    make_batch(case, ROWS, path)
    model, tokenizer = load_case(case)
    batch, _ = read_batch(path, 0.0)
    entropy, logprobs = current_statistics(model, batch)
    return model, tokenizer, replace(batch, old_logprobs=logprobs), entropy


def as_trl(model, batch, entropy):
    """Give our gradients under TRL's threshold and denominator, of one micro-batch."""
    chosen = keep_tokens(
        preset("trl"), entropy, batch.valid, rows=torch.arange(ROWS), groups=batch.groups,
        micro_batches=torch.zeros(ROWS, dtype=torch.long),
    )  # fmt: skip
    policy_step(model, batch, kept=chosen.mask, denominator=float(batch.valid.sum()))
    return take_gradients(model)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["trl", "trl fused"])
def test_trl_is_given_the_same_work(case, engine):
    model, tokenizer, batch, entropy = case
    expected = as_trl(model, batch, entropy)
    update_engines.ENGINES[engine](model, tokenizer, batch, entropy, ROWS)()
    assert furthest(take_gradients(model), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ours current", "ours dense"])
def test_our_own_ways_agree(case, engine):
    model, tokenizer, batch, entropy = case
    update_engines.ENGINES["ours"](model, tokenizer, batch, entropy, ROWS)()
    expected = take_gradients(model)
    update_engines.ENGINES[engine](model, tokenizer, batch, entropy, 4)()
    assert furthest(take_gradients(model), expected) < 1e-4
