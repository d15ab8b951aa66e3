import dataclasses
import inspect
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks

from entropy_probe import forking_mask
from entropy_probe.training import Selection, keep_tokens
from entropy_probe.training.choosing import CHOICES
from entropy_probe.training.pooling import interpolated, quantile

# Few values, so that ties are everywhere.
NATS = torch.tensor([0.0, 0.125, 0.75, 2.25])
ROWS, WIDTH = 8, 9


def batch(seed: int = 0, *, tied: bool = True, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Give the rows of a step, NaN outside ``valid``; some rows have no valid token."""
    random = torch.Generator().manual_seed(seed)
    entropy = torch.rand(rows, WIDTH, generator=random) * 3
    if tied:
        entropy = NATS[torch.randint(0, len(NATS), (rows, WIDTH), generator=random)]
    lengths = torch.randint(0, WIDTH, (rows,), generator=random)
    valid = torch.arange(WIDTH) < lengths[:, None]
    return {
        "entropy": entropy.where(valid, torch.nan),
        "valid": valid,
        "logprobs": (-torch.rand(rows, WIDTH, generator=random)).where(valid, torch.nan),
        "rows": torch.randperm(3 * rows, generator=random)[:rows],
        "groups": torch.arange(rows) // 4,
        "micro_batches": torch.arange(rows) % 3,
    }


def pools_of(scope: str, b: dict) -> list[int]:
    kinds = {"sequence": b["rows"], "group": b["groups"]}
    kinds["micro_batch"] = kinds["global_micro_batch"] = b["micro_batches"]
    return kinds.get(scope, torch.zeros_like(b["rows"])).tolist()


def expected(b: dict, scores: torch.Tensor, scope: str, fraction: float) -> torch.Tensor:
    """Sort in plain Python: highest score first, then by row number, then by position."""
    kept, pools = torch.zeros_like(b["valid"]), pools_of(scope, b)
    for pool in set(pools):
        places = [(i, t) for i, t in b["valid"].nonzero().tolist() if pools[i] == pool]
        places.sort(key=lambda p: (-float(scores[p]), int(b["rows"][p[0]]), p[1]))
        for place in places[: math.ceil(Fraction(str(fraction)) * len(places))]:
            kept[place] = True
    return kept


SCOPES = ["sequence", "group", "micro_batch", "global_micro_batch", "batch", "global"]


@given(st.integers(0, 10**6), st.sampled_from(SCOPES), st.sampled_from([0.2, 0.3, 0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_each_scope_keeps_exactly_its_share_and_ties_go_by_row_and_position(seed, scope, fraction):
    b = batch(seed)
    for select, scores in [
        ("forks", b["entropy"]), ("bottom", -b["entropy"]), ("surprise", -b["logprobs"]),
    ]:  # fmt: skip
        found = keep_tokens(Selection(select=select, scope=scope, fraction=fraction), **b)
        assert torch.equal(found.mask, expected(b, scores, scope, fraction)), select
        assert not (found.mask & ~b["valid"]).any()
    counted = keep_tokens(Selection(select="random", scope=scope, fraction=fraction), **b).mask
    pools = torch.tensor(pools_of(scope, b))
    for pool in pools.unique():
        count, kept = (int(m[pools == pool].sum()) for m in (b["valid"], counted))
        assert kept == math.ceil(Fraction(str(fraction)) * count)


def test_without_ranks_and_numbers_it_is_the_forking_mask():
    b = batch() | {"rows": torch.arange(ROWS)}
    for scope, named in [
        ("global", {}), ("sequence", {"scope": "sequence"}),
        ("group", {"scope": "group", "groups": b["groups"]}),
    ]:  # fmt: skip
        found = keep_tokens(Selection(scope=scope), **b).mask
        assert torch.equal(found, forking_mask(b["entropy"], b["valid"], **named))


SELECTS = ["forks", "bottom", "random", "surprise", "all"]


def cut(b: dict, rows: list[int], width: int = WIDTH) -> dict:
    part = {name: value[rows] for name, value in b.items()}
    return {n: v[:, :width] if v.dim() == 2 else v for n, v in part.items()}


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("scope", ["sequence", "group", "global"])
def test_the_choice_does_not_depend_on_the_number_of_ranks_or_on_their_order(select, scope):
    options = {"select": select} | ({} if select == "all" else {"scope": scope})
    selection = Selection(**options)
    for seed in range(5):
        b = batch(seed)
        whole = keep_tokens(selection, **b, step=3)
        share = b["valid"].sum(1).argsort().tolist()  # short rows first, so that widths differ
        for parts in ([share[:1], share[1:]], [share[5:], share[:2], share[2:5]]):
            widths = [max(1, int(b["valid"][p].sum(1).max())) for p in parts]
            inputs = [cut(b, p, w) for p, w in zip(parts, widths, strict=True)]
            found = on_ranks(lambda **given: keep_tokens(selection, step=3, **given), inputs)
            for part, width, one in zip(parts, widths, found, strict=True):
                assert torch.equal(one.mask, whole.mask[part][:, :width])
                assert torch.equal(
                    one.threshold.nan_to_num(-1), whole.threshold[part].nan_to_num(-1)
                )


def test_a_ranks_own_scopes_do_depend_on_the_ranks():
    b = batch(3, tied=False)
    halves = [list(range(0, ROWS, 2)), list(range(1, ROWS, 2))]
    for scope in ("micro_batch", "batch"):
        selection, named = Selection(scope=scope), b | {"micro_batches": b["groups"]}
        whole = keep_tokens(selection, **named).mask
        inputs = [cut(named, half) for half in halves]
        found = on_ranks(lambda s=selection, **given: keep_tokens(s, **given), inputs)
        alone = [keep_tokens(selection, **each).mask for each in inputs]
        assert all(torch.equal(f.mask, a) for f, a in zip(found, alone, strict=True))
        assert any(not torch.equal(f.mask, whole[h]) for f, h in zip(found, halves, strict=True))


def test_micro_batches_of_one_number_rank_together_over_the_ranks():
    b = batch(4, tied=False)
    inputs = [cut(b, list(range(4))), cut(b, list(range(4, ROWS)))]
    selection = Selection(scope="global_micro_batch")
    found = on_ranks(lambda **given: keep_tokens(selection, **given), inputs)
    whole = expected(b, b["entropy"], "micro_batch", 0.2)
    assert torch.equal(torch.cat([one.mask for one in found]), whole)


def test_random_shares_are_others_with_another_step_or_seed_and_the_same_otherwise():
    b = batch(1)
    first, again, later, other = (
        keep_tokens(Selection(select="random", fraction=0.5, seed=seed), **b, step=step).mask
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_a_random_share_is_fair():
    b = batch(rows=400) | {"valid": torch.ones(400, WIDTH, dtype=torch.bool)}
    kept = keep_tokens(Selection(select="random"), **b).mask.float()
    assert kept.mean(0).tolist() == pytest.approx([0.2] * WIDTH, abs=0.08)
    assert kept[:200].mean() == pytest.approx(0.2, abs=0.03)


def test_all_keeps_all_and_reads_nothing():
    b = batch() | {"entropy": torch.full((ROWS, WIDTH), math.nan)}
    kept = keep_tokens(Selection(select="all"), **b)
    assert torch.equal(kept.mask, b["valid"])
    assert kept.share == 1.0
    assert torch.equal(keep_tokens(Selection(fraction=1.0), **batch()).mask, b["valid"])


def test_what_is_not_valid_is_not_read():
    b = batch()
    for select in SELECTS:
        if select == "all":
            continue
        for selection in (
            Selection(select=select),
            Selection(rule="threshold", quantile="linear", scope="micro_batch"),
        ):
            one = keep_tokens(selection, **b).mask
            for junk in (math.inf, -math.inf, 1e9):
                other = b | {n: b[n].where(b["valid"], junk) for n in ("entropy", "logprobs")}
                assert torch.equal(keep_tokens(selection, **other).mask, one)


def test_the_threshold_is_the_least_entropy_kept_in_the_rows_pool():
    b = batch(tied=False)
    found = keep_tokens(Selection(scope="group"), **b)
    for row, group in enumerate(b["groups"].tolist()):
        pool = b["groups"] == group
        assert found.threshold[row] == b["entropy"][pool][found.mask[pool]].min()
    assert found.share == pytest.approx(float(found.mask.sum() / b["valid"].sum()))
    assert keep_tokens(Selection(select="random"), **b).threshold.isnan().all()


def test_a_fixed_threshold_keeps_what_reaches_it():
    b = batch()
    found = keep_tokens(Selection(rule="threshold", threshold=0.75), **b)
    assert torch.equal(found.mask, b["valid"] & (b["entropy"] >= 0.75))
    assert found.threshold.tolist() == [0.75] * ROWS


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global"])
def test_a_linear_quantile_is_torchs_within_each_pool(scope):
    for tied in (True, False):
        b = batch(tied=tied)
        selection = Selection(rule="threshold", quantile="linear", scope=scope, fraction=0.3)
        found = keep_tokens(selection, **b)
        pools = torch.tensor(pools_of(scope, b))
        for pool in pools.unique():
            values = b["entropy"][pools == pool][b["valid"][pools == pool]]
            if not len(values):
                assert not found.mask[pools == pool].any()
                continue
            least = values.quantile(0.7)
            assert (found.threshold[pools == pool] == least).all()
            reach = b["valid"] & (b["entropy"] >= least)
            assert torch.equal(found.mask[pools == pool], reach[pools == pool])


def test_a_quantile_is_interpolated_as_torchs():
    for values in (torch.rand(11).double(), NATS.double(), torch.zeros(7).double()):
        for place in (0.0, 0.25, 0.7, 0.8, 1.0):
            found, wanted = interpolated(values, place), float(values.quantile(place))
            assert found == pytest.approx(wanted, rel=1e-14)


@pytest.mark.slow
def test_a_quantile_of_more_values_than_torch_takes():
    values = torch.linspace(0, 1, 2**24 + 2)
    assert quantile(values, 0.3, "linear", "ceil") == pytest.approx(0.7, abs=1e-6)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.7)


@pytest.mark.parametrize("count", ["ceil_9999", "floor"])
@pytest.mark.parametrize("fraction", [0.2, 0.29, 0.1, 1.0, 0.00005])
def test_counts_as_others_take_them(count, fraction):
    for n in [*range(1, 30), 100, 1000, 20001]:
        kept = int(n * fraction + 0.9999) if count == "ceil_9999" else int(n * fraction)
        found = keep_tokens(
            Selection(count=count, fraction=fraction), torch.rand(1, n),
            torch.ones(1, n, dtype=torch.bool), rows=torch.tensor([0]), groups=torch.tensor([0]),
        )  # fmt: skip
        assert found.mask.sum() == max(1, kept)


def test_a_function_of_yours_sees_one_pool_at_a_time_in_order_of_rows():
    seen = []

    def last(entropy, valid, *, fraction, logprobs, noise):
        seen.append((entropy, valid, fraction, logprobs, noise))
        return valid & ~valid.roll(-1, 1)

    b = batch(2, tied=False)
    found = keep_tokens(Selection(select=last, scope="group", fraction=0.3), **b)
    ends = torch.zeros_like(b["valid"])
    for row, length in enumerate(b["valid"].sum(1).tolist()):
        if length:
            ends[row, length - 1] = True
    assert torch.equal(found.mask, ends)
    assert len(seen) == 2
    entropy, valid, fraction, logprobs, noise = seen[0]
    order = b["rows"][:4].argsort()
    assert torch.equal(entropy[valid], b["entropy"][:4][order][valid])
    assert torch.equal(logprobs[valid], b["logprobs"][:4][order][valid])
    assert fraction == 0.3
    assert noise.shape == entropy.shape
    assert Selection(select=last).to_dict()["select"].startswith("test_training_selection:test_a_")


def test_the_choices_have_one_signature():
    signatures = {str(inspect.signature(inspect.unwrap(choice))) for choice in CHOICES.values()}
    assert len(signatures) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda e, v, **_: e, r"must give a bool \(8, 9\), got torch.float32"),
        (lambda e, v, **_: [True], "must give a bool .*got <class 'list'>"),
        (lambda e, v, **_: ~v, "kept tokens that are not valid"),
    ],
)
def test_what_a_function_of_yours_gives_is_checked(given, message):
    with pytest.raises(ValueError, match=message):
        keep_tokens(Selection(select=given), **batch())


def test_no_rows_and_no_valid_tokens_keep_nothing():
    none = batch() | {"valid": torch.zeros(ROWS, WIDTH, dtype=torch.bool)}
    for scope in SCOPES:
        for options in ({}, {"rule": "threshold", "quantile": "linear"}, {"count": "floor"}):
            for b in (none, cut(none, [])):
                found = keep_tokens(Selection(scope=scope, **options), **b)
                assert found.mask.shape == b["valid"].shape
                assert not found.mask.any()
                assert math.isnan(found.share)


def test_a_rank_without_rows_takes_part():
    b = batch(5)
    inputs = [cut(b, list(range(ROWS))), cut(b, [])]
    found = on_ranks(lambda **given: keep_tokens(Selection(), **given), inputs)
    assert torch.equal(found[0].mask, keep_tokens(Selection(), **b).mask)
    assert found[1].mask.shape == (0, WIDTH)


def test_a_selection_survives_json_and_refuses_names_it_does_not_know():
    for selection in (
        Selection(), Selection(select="all"), Selection(rule="threshold", threshold=0.672),
        Selection(scope="micro_batch", rule="threshold", quantile="kth", count="floor"),
    ):  # fmt: skip
        assert Selection.from_dict(selection.to_dict()) == selection
    assert Selection.from_dict({}) == Selection(fraction=0.2)
    with pytest.raises(ValueError, match="no option 'top_ratio' of a selection: there are"):
        Selection.from_dict({"top_ratio": 0.2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "forking"}, "select must be one of .*or a function, got 'forking'"),
        ({"scope": "rank"}, "scope must be one of .*'rank'"),
        ({"rule": "topk"}, "rule must be one of .*'topk'"),
        ({"count": "round"}, "count must be one of"),
        ({"quantile": "nearest"}, "quantile must be one of"),
        ({"entropy_source": "reference"}, "entropy_source must be one of"),
        ({"normalizer": "all"}, "normalizer must be one of"),
        ({"average": "batch"}, "average must be one of"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"fraction": 0.0}, "at most 1 .*got 0.0"),
        ({"fraction": 20.0}, "0.2 keeps 20%.*got 20"),
        ({"fraction": math.nan}, "got nan"),
        ({"rule": "threshold"}, "needs one of threshold .* and quantile"),
        ({"rule": "threshold", "threshold": 1.0, "quantile": "kth"}, "needs one of threshold"),
        ({"threshold": 1.0}, "no other rule reads them: got rule='exact'"),
        ({"quantile": "linear"}, "no other rule reads them: got rule='exact'"),
        ({"rule": "threshold", "threshold": math.nan}, "threshold is NaN"),
        ({"select": "bottom", "rule": "threshold", "threshold": 1.0}, "rule='threshold' keeps"),
        ({"select": "all", "fraction": 0.2}, "fraction=0.2 would not be read"),
        ({"rule": "threshold", "threshold": 1.0, "fraction": 0.2}, "would not be read"),
        ({"select": "all", "scope": "group"}, "scope='group' would not be read"),
        ({"select": "all", "entropy_source": "old"}, "entropy_source='old' would not be read"),
        ({"select": "random", "entropy_source": "current"}, "would not be read"),
        ({"select": "random", "temperature": 0.6}, "temperature=0.6 would not be read"),
        ({"seed": 1}, "seed=1 would not be read"),
        ({"rule": "threshold", "quantile": "linear", "count": "floor"}, "count='floor' would not"),
        ({"rule": "threshold", "threshold": 1.0, "scope": "group"}, "scope='group' would not"),
    ],
)
def test_options_that_do_not_exist_or_would_not_be_read_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Selection(**options)


def test_a_temperature_that_is_no_number_is_refused():
    users = inspect.unwrap(Selection.__init__)  # without the tests' own check of types
    with pytest.raises(ValueError, match="temperature must be above 0, got hot"):
        users(object.__new__(Selection), temperature="hot")


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"valid": torch.ones(ROWS, WIDTH).long()}, r"bool mask, got torch.int64.*valid.bool"),
        ({}, {"entropy": torch.zeros(ROWS, 2)}, r"must both be \[batch seq\]"),
        ({}, {"entropy": torch.full((ROWS, WIDTH), math.nan)}, "entropy is NaN at valid position"),
        ({}, {"rows": torch.arange(3)}, r"rows must be \[8\], a number a row, got \(3,\)"),
        ({}, {"rows": torch.zeros(ROWS).long()}, "row 0 comes twice"),
        ({}, {"groups": torch.arange(3)}, r"groups must be \[8\]"),
        ({"scope": "micro_batch"}, {"micro_batches": None}, "micro_batches must be .* got nothing"),
        ({"select": "surprise"}, {"logprobs": None}, "reads logprobs, which are missing"),
        ({"select": "surprise"}, {"logprobs": torch.full((ROWS, WIDTH), math.nan)}, "logprobs is"),
    ],
)  # fmt: skip
def test_wrong_batches_are_refused(options, change, message):
    users = inspect.unwrap(keep_tokens)  # without the tests' own check of types
    with pytest.raises(ValueError, match=message):
        users(Selection(**options), **batch() | change)


def test_the_choice_has_no_gradient():
    b = batch(tied=False)
    b["entropy"] = b["entropy"].clone().requires_grad_()
    found = keep_tokens(Selection(), **b)
    assert not any(each.requires_grad for each in (found.mask, found.threshold))


def test_every_option_is_read_or_refused():
    # Whoever adds an option must say here what it changes.
    names = {field.name for field in dataclasses.fields(Selection)}
    read_in_the_loss = {"normalizer", "average", "mask_kl"}
    read_by_who_computes_entropies = {"entropy_source", "temperature"}
    read_here = {"select", "fraction", "scope", "rule", "threshold", "quantile", "count", "seed"}
    assert names == read_in_the_loss | read_by_who_computes_entropies | read_here


def chosen_by_a_process(rank: int, folder: str) -> None:
    """Choose on one of two real processes, and save the mask."""
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        found = [None, None]
        distributed.all_gather_object(found, mine)
        return found

    part = cut(batch(11), [[2, 0, 5], [7, 1, 3, 4, 6]][rank])
    masks = [
        keep_tokens(Selection(scope=scope, select=select), **part, gather=gather, step=2).mask
        for scope in ("sequence", "group", "global")
        for select in ("forks", "random")
    ]
    torch.save(masks, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_choose_what_one_does(tmp_path):
    torch.multiprocessing.spawn(chosen_by_a_process, (str(tmp_path),), nprocs=2)
    b = batch(11)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    named = [
        Selection(scope=scope, select=select)
        for scope in ("sequence", "group", "global")
        for select in ("forks", "random")
    ]
    for number, selection in enumerate(named):
        whole = keep_tokens(selection, **b, step=2).mask
        assert torch.equal(found[0][number], whole[[2, 0, 5]])
        assert torch.equal(found[1][number], whole[[7, 1, 3, 4, 6]])
        assert whole.any()
