"""The disk estimate is above what a run takes, even of numbers that cannot be compressed."""

import pytest
import torch
from contents import size_of
from test_storage_plan import SAMPLE, SCORE

from entropy_probe.provenance import Provenance
from entropy_probe.rollout import Alternatives, Rollouts
from entropy_probe.storage.estimate import estimate_bytes, words_for
from entropy_probe.storage.plan import Plan
from entropy_probe.storage.writing import begin, commit

VOCABULARY = 150_000


def noise(rows, prompt, generated, alternatives, groups, layers, d_model):
    """Give a record of ids and numbers drawn uniformly, every position captured."""
    draw = torch.Generator().manual_seed(0)
    shape = (rows, prompt + generated)
    tokens = torch.randint(VOCABULARY, shape, generator=draw)
    tokens[:, :prompt] = tokens[::groups, :prompt].repeat_interleave(groups, dim=0)
    valid = (torch.arange(shape[1]) >= prompt).expand(shape).clone()
    ids = torch.randint(VOCABULARY, (*shape, alternatives), generator=draw) * valid[..., None]
    return Rollouts(
        tokens=tokens,
        valid=valid,
        prompt_lengths=torch.full((rows,), prompt),
        groups=torch.arange(rows) // groups,
        entropy=torch.rand(shape, generator=draw) * valid,
        logprobs=-torch.rand(shape, generator=draw) * valid,
        ranks=(torch.randint(VOCABULARY, shape, generator=draw) * valid).int(),
        alternatives=Alternatives(
            ids.int(), -torch.rand(ids.shape, generator=draw) * valid[..., None]
        ),
        provenance=Provenance(model="m", source="sample"),
        captured=valid if layers else torch.zeros_like(valid),
        controls=torch.zeros_like(valid),
        residuals={i: torch.randn(int(valid.sum()), d_model, generator=draw) for i in layers},
        pieces={i: f"{i:06x}".encode() for i in range(VOCABULARY)},
    )


@pytest.mark.parametrize("alternatives", [0, 5, 20])
@pytest.mark.parametrize(("prompt", "generated"), [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("n", [1, 8])
def test_numbers_that_cannot_be_compressed_fit(tmp_path, alternatives, prompt, generated, n):
    inputs = [list(range(prompt))] * (16 // n)
    arguments = SAMPLE | {"n": n, "max_new_tokens": generated, "alternatives": alternatives,
                          "residual_layers": [0, 1], "residual_positions": "all"}  # fmt: skip
    plan = Plan("sample", "m", "w", inputs, arguments, 16 // n, 1)
    run = begin(tmp_path, plan, libraries={}, hardware={})
    commit(run, 0, noise(16, prompt, generated, alternatives, n, [0, 1], 8))
    assert size_of(tmp_path) <= estimate_bytes(plan, d_model=8)


def test_every_part_counts():
    def estimate(d_model=64, dtype="float32", **changes):
        arguments = SAMPLE | {"max_new_tokens": 1000, "residual_layers": [0]} | changes
        return estimate_bytes(
            Plan("sample", "m", "w", ["a"] * 50, arguments, 10, 1, dtype=dtype), d_model=d_model
        )

    least = estimate(residual_positions="none", alternatives=0)
    assert estimate(residual_positions="none", alternatives=5) > least
    none, forks, whole = (estimate(residual_positions=p) for p in ("none", "forks", "all"))
    assert none < forks < whole
    # States of all 100,000 tokens, 64 numbers of 4 bytes each; forks and controls are 40% of them.
    assert whole - none == pytest.approx(100_000 * 256, rel=0.01)
    assert forks - none == pytest.approx(40_000 * 256, rel=0.01)
    assert estimate(dtype="bfloat16", residual_positions="all") - none == pytest.approx(
        100_000 * 128, rel=0.01
    )
    assert estimate(residual_layers=[0, 1]) - none == pytest.approx(2 * (forks - none), rel=0.01)


def test_scores_count_the_tokens_that_there_are():
    def estimate(valid):
        row = {"tokens": list(range(1000)), "valid": valid, "prompt_length": 1, "group": 0,
               "reward": None}  # fmt: skip
        return estimate_bytes(Plan("score", "m", "w", [row] * 10, SCORE, 5, 1), d_model=8)

    few, many = estimate([[10, 20]]), estimate([[1, 500], [600, 1000]])
    assert few < many
    assert many == pytest.approx(10 * 899 * (40 + 3 * 18), rel=0.2)


def test_prompts_of_any_kind_are_counted():
    def estimate(prompt):
        return estimate_bytes(Plan("sample", "m", "w", [prompt], SAMPLE, 1, 1), d_model=8)

    short = estimate("a")
    for prompt in ("a" * 4000, "\u6f22" * 4000, "\ud800" * 4000, [1] * 4000,
                   [{"role": "user", "content": "a" * 4000}]):  # fmt: skip
        assert estimate(prompt) > short + 4000


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_340_000, "2.3 MB"),
     (10**9, "1.0 GB"), (5 * 10**12, "5.0 TB"), (10**18, "1000.0 PB")],
)  # fmt: skip
def test_sizes_are_said_in_a_unit_that_suits_them(size, words):
    assert words_for(size) == words
