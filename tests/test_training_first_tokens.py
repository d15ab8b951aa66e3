"""Clipping at the first tokens, counted apart from all others."""

import pytest
import torch

from entropy_probe.loss import counter_means, loss_counters
from entropy_probe.training.first_tokens import first_token_counters

ROWS, WIDTH = 4, 7


def test_clipping_at_the_first_tokens_is_counted_apart():
    starts = torch.tensor([1, 3, 2, 4])
    gains = torch.tensor([1.0, -1.0, 0.5, -2.0])
    valid = torch.arange(WIDTH) >= starts[:, None]
    old = -torch.rand(ROWS, WIDTH)
    how = {
        "logprobs": old + torch.randn(ROWS, WIDTH), "old_logprobs": old, "advantages": gains,
        "valid": valid,
    }  # fmt: skip
    how["logprobs"][0, starts[0]] = torch.nan  # not computed
    how["logprobs"][1, starts[1]] = how["old_logprobs"][1, starts[1]] + how["advantages"][1]
    sums = first_token_counters(**how, prompt_lengths=starts)
    rows = range(1, ROWS)
    ratio = [float((how["logprobs"] - how["old_logprobs"])[r, starts[r]].exp()) for r in rows]
    clipped = [x > 1.28 if a > 0 else x < 0.8 for x, a in zip(ratio, gains[1:], strict=True)]
    assert clipped[0]
    assert int(sums["first"]) == ROWS - 1
    means = counter_means(loss_counters(**how, kept=valid) | sums)
    assert means["clip_first"] == pytest.approx(sum(clipped) / (ROWS - 1))
    assert means["ratio_gap_first"] == pytest.approx(sum(abs(x - 1) for x in ratio) / (ROWS - 1))
    nowhere = first_token_counters(**how, prompt_lengths=torch.full((ROWS,), WIDTH))
    assert "clip_first" not in counter_means(loss_counters(**how, kept=valid) | nowhere)
