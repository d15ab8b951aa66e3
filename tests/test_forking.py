import inspect
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe import forking_mask

# Few values, so that ties are everywhere; -0.0 equals 0.0.
NATS = st.sampled_from([0.0, -0.0, 0.125, 0.75, 2.25, 6.5])
FRACTIONS = st.one_of(
    st.sampled_from([0.2, 0.3, 0.5, 1.0, 1e-9]), st.floats(0, 1, exclude_min=True)
)


@st.composite
def batches(draw, numbers=NATS):
    """Draw (entropy, valid, groups), what is not valid being NaN."""
    rows, width = draw(st.integers(0, 6)), draw(st.integers(0, 7))
    flat = draw(st.lists(numbers, min_size=rows * width, max_size=rows * width))
    bits = draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    groups = draw(st.lists(st.integers(-2, 2), min_size=rows, max_size=rows))
    valid = torch.tensor(bits, dtype=torch.bool).reshape(rows, width)
    entropy = torch.tensor(flat).reshape(rows, width)
    return entropy.where(valid, torch.nan), valid, torch.tensor(groups, dtype=torch.long)


def expected(entropy, valid, fraction: float, scopes: list[int]) -> torch.Tensor:
    """Sort in plain Python: most entropy first, then by row, then by position."""
    kept = torch.zeros_like(valid)
    for scope in set(scopes):
        places = [(r, t) for r, t in valid.nonzero().tolist() if scopes[r] == scope]
        places.sort(key=lambda place: (-float(entropy[place]), place))
        for place in places[: math.ceil(Fraction(str(fraction)) * len(places))]:
            kept[place] = True
    return kept


@given(batches(), FRACTIONS, st.sampled_from(["batch", "group", "sequence"]))
@settings(max_examples=200, deadline=None)
def test_each_scope_keeps_exactly_its_share_and_ties_go_by_position(batch, fraction, scope):
    entropy, valid, groups = batch
    named = {"groups": groups} if scope == "group" else {}
    kept = forking_mask(entropy, valid, fraction=fraction, scope=scope, **named)
    count = len(valid)
    scopes = {"batch": [0] * count, "group": groups.tolist(), "sequence": list(range(count))}
    assert torch.equal(kept, expected(entropy, valid, fraction, scopes[scope]))
    assert not (kept & ~valid).any()


@given(batches(), NATS)
@settings(deadline=None)
def test_the_threshold_rule_keeps_what_reaches_it(batch, threshold):
    entropy, valid, _ = batch
    kept = forking_mask(entropy, valid, rule="threshold", threshold=threshold)
    wanted = [
        [bool(v) and e >= threshold for e, v in zip(es, vs, strict=True)]
        for es, vs in zip(entropy.tolist(), valid.tolist(), strict=True)
    ]
    assert kept.tolist() == wanted


@given(batches(), FRACTIONS, FRACTIONS)
@settings(deadline=None)
def test_a_larger_fraction_keeps_what_a_smaller_one_keeps(batch, one, other):
    entropy, valid, _ = batch
    small, large = (forking_mask(entropy, valid, fraction=f) for f in sorted((one, other)))
    assert not (small & ~large).any()


@given(batches(st.floats(0, 12, width=32)), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_rows_and_names_of_groups_do_not_matter_without_ties(batch, random):
    entropy, valid, groups = batch
    entropy = entropy + torch.rand(entropy.shape, dtype=torch.float64).float()
    used = entropy[valid]
    if used.unique().numel() < used.numel():
        return
    order = random.sample(range(len(valid)), len(valid))
    for scope, named, renamed in [
        ("batch", {}, {}),
        ("sequence", {}, {}),
        ("group", {"groups": groups}, {"groups": 7 - 3 * groups[order]}),
    ]:
        kept = forking_mask(entropy, valid, scope=scope, **named)
        moved = forking_mask(entropy[order], valid[order], scope=scope, **renamed)
        assert torch.equal(moved, kept[order])


def test_total_ties_keep_a_share_and_not_all():
    entropy, valid = torch.zeros(3, 10), torch.ones(3, 10, dtype=torch.bool)
    assert forking_mask(entropy, valid).nonzero().tolist() == [[0, t] for t in range(6)]
    assert forking_mask(entropy, valid, scope="sequence").sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("fraction", "count", "kept"), [(0.2, 5, 1), (0.1, 30, 3), (0.3, 10, 3), (0.2, 11, 3)]
)
def test_the_share_is_of_the_decimal_number_not_of_its_binary_neighbour(fraction, count, kept):
    # In floating point 0.1 * 30 is 3.0000000000000004, whose ceiling is 4.
    mask = forking_mask(
        torch.rand(1, count), torch.ones(1, count, dtype=torch.bool), fraction=fraction
    )
    assert mask.sum() == kept


def test_everything_is_kept_at_fraction_one():
    valid = torch.rand(4, 9) > 0.4
    for scope in ("batch", "sequence"):
        assert torch.equal(forking_mask(torch.rand(4, 9), valid, fraction=1.0, scope=scope), valid)


def test_17_million_tokens_are_more_than_a_quantile_takes():
    entropy = torch.zeros(17, 1_000_003)
    entropy[16, -1] = 1.0
    assert entropy.numel() > 2**24
    flat = forking_mask(entropy, torch.ones_like(entropy, dtype=torch.bool)).view(-1)
    share = math.ceil(entropy.numel() / 5)
    assert flat.sum() == share
    assert flat[: share - 1].all()
    assert flat[-1]


@pytest.mark.parametrize("scope", ["batch", "group", "sequence"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_batches_and_rows_without_valid_tokens_have_no_forks(shape, scope):
    groups = {"groups": torch.zeros(shape[0], dtype=torch.long)} if scope == "group" else {}
    valid = torch.zeros(shape, dtype=torch.bool)
    kept = forking_mask(torch.zeros(shape), valid, scope=scope, **groups)
    assert kept.shape == shape
    assert not kept.any()


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_one_token_is_a_fork(scope):
    valid = torch.tensor([[False, True, False], [False, False, False]])
    kept = forking_mask(torch.zeros(2, 3), valid, fraction=0.01, scope=scope)
    assert torch.equal(kept, valid)


def test_what_is_not_valid_is_not_read():
    entropy = torch.tensor([[torch.nan, 1.0, torch.inf, 2.0]])
    valid = torch.tensor([[False, True, False, True]])
    assert forking_mask(entropy, valid).tolist() == [[False, False, False, True]]
    kept = forking_mask(entropy, valid, rule="threshold", threshold=0.5)
    assert torch.equal(kept, valid)


def test_half_precision_entropies_are_ranked_as_they_are():
    entropy = torch.rand(5, 40).bfloat16()
    valid = torch.ones(5, 40, dtype=torch.bool)
    assert torch.equal(forking_mask(entropy, valid), forking_mask(entropy.float(), valid))


OK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": OK.long()}, r"must be a bool mask, got torch.int64.*pass valid.bool\(\)"),
        ({"valid": OK[:1]}, r"must both be \[batch seq\], got \(2, 3\) and \(1, 3\)"),
        ({"entropy": torch.full((2, 3), torch.nan)}, r"NaN at valid position \[0, 0\]"),
        ({"fraction": 0.0}, "at most 1 .*, got 0.0"),
        ({"fraction": 1.01}, "got 1.01"),
        ({"fraction": -0.2}, "got -0.2"),
        ({"fraction": math.nan}, "got nan"),
        ({"fraction": 20.0}, "0.2 keeps 20%.*got 20"),
        ({"scope": "rank"}, "scope must be one of .*'rank'"),
        ({"rule": "quantile"}, "rule one of .*'quantile'"),
        ({"rule": "threshold"}, "threshold .*belongs to rule='threshold'"),
        ({"threshold": 1.0}, "belongs to rule='threshold'.*got rule='exact'"),
        ({"rule": "threshold", "threshold": math.nan}, "threshold is NaN"),
        ({"scope": "group"}, "groups missing"),
        ({"groups": torch.zeros(2, dtype=torch.long)}, "groups given"),
        ({"scope": "group", "groups": torch.zeros(3, dtype=torch.long)}, r"groups must be \[2\]"),
    ],
)
def test_what_would_select_other_tokens_in_silence_is_refused(change, message):
    users = inspect.unwrap(forking_mask)  # without the tests' own check of types
    arguments = {"entropy": torch.zeros(2, 3), "valid": OK} | change
    with pytest.raises(ValueError, match=message):
        users(arguments.pop("entropy"), arguments.pop("valid"), **arguments)
