"""Random records with everything in them, and what equal means: bit for bit."""

import random

import torch
from hostile import HOSTILE

from entropy_probe.rollout import Alternatives, Provenance, Rollouts

FIELDS = ("tokens", "valid", "prompt_lengths", "groups", "entropy", "logprobs", "ranks",
          "captured", "controls")  # fmt: skip


def random_record(
    rows: int = 5,
    *,
    seed: int = 0,
    layers: dict[int, int] | None = None,
    alternatives: int = 3,
    longest: int = 9,
    rewards: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Rollouts:
    """Give a record whose every number is random, zero outside ``valid``; some rows are empty.

    Args:
        rows: how many.
        seed: of everything.
        layers: layer -> width of its states.
        alternatives: a position.
        longest: most tokens of a completion.
        rewards: whether rows have rewards, one of them NaN.
        dtype: of the states.
    """
    layers = {1: 4, 7: 4} if layers is None else layers
    chance, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    prompts = torch.tensor([chance.randint(1, 4) for _ in range(rows)])
    ends = prompts + torch.tensor([chance.randint(0, longest) for _ in range(rows)])
    width = int(ends.max())
    steps = torch.arange(width)[None, :]
    valid = (steps >= prompts[:, None]) & (steps < ends[:, None])
    given = torch.rand(rows, generator=draw)
    given[0] = float("nan")
    captured = valid & (torch.rand(valid.shape, generator=draw) < 0.4)
    vocabulary = len(HOSTILE)
    tokens = torch.randint(vocabulary, valid.shape, generator=draw)
    ids = torch.randint(vocabulary, (*valid.shape, alternatives), generator=draw)
    ids[..., 1:2] = 0  # token 0 is a token like any other

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(valid.shape + shape, generator=draw) * valid.view(
            *valid.shape, *(1 for _ in shape)
        )

    count = int(captured.sum())
    used = torch.arange(vocabulary).tolist()
    return Rollouts(
        tokens=tokens * (steps < ends[:, None]),
        valid=valid,
        prompt_lengths=prompts,
        groups=torch.arange(rows) // 2,
        entropy=numbers().abs(),
        logprobs=-numbers().abs(),
        ranks=(numbers() * 100).abs().int(),
        alternatives=Alternatives((ids * valid[..., None]).int(), -numbers(alternatives).abs()),
        provenance=Provenance(model="m", source="sample", seed=seed, near_ties=seed),
        captured=captured,
        controls=captured & (torch.rand(valid.shape, generator=draw) < 0.5),
        residuals={
            layer: torch.randn(count, d, generator=draw).to(dtype) for layer, d in layers.items()
        },
        rewards=given if rewards else None,
        pieces=dict(zip(used, HOSTILE, strict=True)),
        special_ids=frozenset({0, 3}),
    )


def assert_equal(one: Rollouts, other: Rollouts, *, pieces: bool = True) -> None:
    """Compare two records bit for bit, padding beyond the longest row aside."""
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("ids", "logprobs"):
        assert torch.equal(getattr(one.alternatives, name), getattr(other.alternatives, name)), name
    assert list(one.residuals) == list(other.residuals)
    for layer, states in one.residuals.items():
        assert states.dtype == other.residuals[layer].dtype
        assert torch.equal(states, other.residuals[layer]), layer
    assert (one.rewards is None) == (other.rewards is None)
    if one.rewards is not None:
        assert torch.equal(one.rewards.nan_to_num(-9.0), other.rewards.nan_to_num(-9.0))
    assert one.provenance == other.provenance
    if pieces:
        used = {*one.tokens.unique().tolist(), *one.alternatives.ids.unique().tolist()}
        for token in used & set(one.pieces):
            assert other.pieces.get(token) == one.pieces[token]
    assert one.special_ids == other.special_ids
