import dataclasses
import inspect
import json

import pytest
import torch

from entropy_probe.rollout import Alternatives, Provenance, Rollouts

PIECES = {0: b"<pad>", 2: b"<eos>", 5: b"one ", 6: b"\xe2\x82", 7: b"\xac!"}
LENGTHS = [(2, 3), (1, 2), (3, 0), (2, 4)]  # (prompt, completion) of each row


def record(layers=(1,), *, k: int = 2, width: int = 7, lengths=LENGTHS, first: int = 0) -> Rollouts:
    """Build rows whose every number says which row and position it belongs to."""
    count = len(lengths)
    starts = torch.tensor([prompt for prompt, _ in lengths])
    ends = starts + torch.tensor([made for _, made in lengths])
    steps = torch.arange(width)[None, :]
    inside, valid = steps < ends[:, None], (steps >= starts[:, None]) & (steps < ends[:, None])
    name = (first + torch.arange(count))[:, None] * 100.0 + steps
    captured = valid & (steps % 2 == 0)
    alternatives = Alternatives(
        ids=(name[:, :, None] + torch.arange(k)).int() * valid[:, :, None],
        logprobs=-(name[:, :, None] + torch.arange(k)) * valid[:, :, None],
    )
    return Rollouts(
        tokens=torch.full((count, width), 5).where(inside, 0),
        valid=valid,
        prompt_lengths=starts,
        groups=torch.arange(count) // 2,
        entropy=name * valid,
        logprobs=-name * valid,
        ranks=name.int() * valid,
        alternatives=alternatives,
        provenance=Provenance(model="made up", source="sample", near_ties=2),
        captured=captured,
        controls=captured & (steps == 4),
        residuals={n: name[captured][:, None] * torch.tensor([1.0, n]) for n in layers},
        pieces=PIECES,
        special_ids=frozenset({0, 2}),
    )


def same(one: Rollouts, other: Rollouts) -> bool:
    """Compare everything that has a row."""
    fields = ("tokens", "valid", "prompt_lengths", "groups", "entropy", "logprobs", "ranks")
    return (
        all(torch.equal(getattr(one, n), getattr(other, n)) for n in fields)
        and torch.equal(one.captured, other.captured)
        and torch.equal(one.controls, other.controls)
        and torch.equal(one.alternatives.ids, other.alternatives.ids)
        and torch.equal(one.alternatives.logprobs, other.alternatives.logprobs)
        and set(one.residuals) == set(other.residuals)
        and all(torch.equal(one.residuals[n], other.residuals[n]) for n in one.residuals)
    )


def test_lengths_count_prompt_and_completion_but_no_padding():
    assert record().lengths.tolist() == [5, 3, 3, 6]
    assert len(record()) == 4
    assert record()[[]].lengths.shape == (0,)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (2, [2]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        ([3, 0, 3], [3, 0, 3]),
        ([], []),
        (torch.tensor([1, 0]), [1, 0]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.tensor(3), [3]),
    ],
)
def test_selecting_rows_takes_their_residuals_along(rows, wanted):
    whole = record().with_rewards([0.0, 1.0, 2.0, 3.0])
    picked = whole[rows]
    assert picked.rewards.tolist() == wanted
    names = torch.tensor(wanted, dtype=torch.long)[:, None] * 100.0 + torch.arange(7)
    assert torch.equal(picked.entropy, names * whole.valid[wanted])
    assert torch.equal(picked.residuals[1][:, 0], names[picked.captured])
    assert torch.equal(picked.alternatives.logprobs[..., 0], -names * picked.valid)


def test_a_row_that_is_not_there_is_an_error():
    with pytest.raises(IndexError):
        record()[4]


def test_going_through_rows_and_joining_them_gives_the_record_back():
    whole = record(layers=(0, 2))
    rows = list(whole)
    assert [len(row) for row in rows] == [1, 1, 1, 1]
    assert same(Rollouts.concatenate(rows), whole)


def test_joining_widens_and_sums_near_ties_and_keeps_groups():
    short = record(width=6)
    long = record(width=9, lengths=[(3, 6), (1, 4)], first=4)
    joined = Rollouts.concatenate([short, long])
    assert joined.tokens.shape == (6, 9)
    assert joined.groups.tolist() == [0, 0, 1, 1, 0, 0]
    assert joined.provenance.near_ties == 4
    assert joined.lengths.tolist() == [5, 3, 3, 6, 9, 5]
    names = torch.arange(6)[:, None] * 100.0 + torch.arange(9)
    assert torch.equal(joined.entropy, names * joined.valid)
    assert torch.equal(joined.residuals[1][:, 0], names[joined.captured])
    assert not joined.valid[:4, 6:].any()
    assert same(joined[:4], Rollouts.concatenate([short, long[[]]]))


def test_joining_keeps_rewards_pieces_and_control_tokens():
    one = dataclasses.replace(record().with_rewards([1.0, 2.0, 3.0, 4.0]), pieces={5: b"one "})
    other = dataclasses.replace(one[:1], pieces={9: b"nine"}, special_ids=frozenset({9}))
    joined = Rollouts.concatenate([one, other])
    assert joined.rewards.tolist() == [1, 2, 3, 4, 1]
    assert joined.pieces == {5: b"one ", 9: b"nine"}
    assert joined.special_ids == {0, 2, 9}


def with_provenance(**changes) -> Rollouts:
    return dataclasses.replace(
        record(), provenance=dataclasses.replace(record().provenance, **changes)
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (record(layers=(1, 2)), r"other layers: \[1\] and \[1, 2\]"),
        (record(k=3), "hold 2 and 3 alternatives"),
        (record().with_rewards([0.0] * 4), "some records have rewards"),
        (with_provenance(entropy_temperature=0.5), "differ in entropy_temperature: 1.0 and 0.5"),
        (with_provenance(entropy_basis="top-p"), "differ in entropy_basis"),
    ],
)
def test_records_that_do_not_mean_the_same_are_not_joined(other, message):
    with pytest.raises(ValueError, match=message):
        Rollouts.concatenate([record(), other])


def test_nothing_to_join_is_an_error():
    with pytest.raises(ValueError, match="token 5 is b'a' in one record and b'b' in another"):
        Rollouts.concatenate(
            [dataclasses.replace(record(), pieces={5: text, 6: b"c"}) for text in (b"a", b"b")]
        )
    with pytest.raises(ValueError, match="nothing to concatenate"):
        Rollouts.concatenate([])


def changed(**changes) -> dict:
    """Give a record's fields with some of them changed."""
    fields = {f.name: getattr(record(), f.name) for f in dataclasses.fields(Rollouts)}
    return fields | changes


ZEROS, NO = torch.zeros(4, 7), torch.zeros(4, 7, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entropy": torch.zeros(4, 6)}, r"entropy is \(4, 6\), but tokens is \(4, 7\)"),
        ({"ranks": torch.zeros(3, 7)}, "ranks is"),
        ({"groups": torch.zeros(3)}, r"groups is \(3,\).*expected \(4,\)"),
        ({"prompt_lengths": torch.zeros(4, 1)}, r"prompt_lengths is \(4, 1\)"),
        ({"rewards": torch.zeros(1)}, r"rewards is \(1,\)"),
        (
            {"alternatives": Alternatives(torch.zeros(4, 6, 2).int(), torch.zeros(4, 6, 2))},
            r"alternatives.ids is \(4, 6, 2\).*expected \(4, 7, 2\)",
        ),
        ({"valid": ZEROS}, "valid must be bool, got torch.float32"),
        ({"captured": NO.long(), "residuals": {}}, "captured must be bool"),
        ({"controls": NO.int()}, "controls must be bool"),
        ({"valid": ~NO}, "position 0 is valid in some row, but nothing produced it"),
        ({"residuals": {1: torch.zeros(99, 3)}}, "layer 1 holds 99 states for 5 captured"),
        ({"captured": ~record().valid, "residuals": {}}, "captured holds positions that are not"),
        ({"controls": ~record().captured}, "controls holds positions that are not captured"),
    ],
)
def test_what_would_misalign_in_silence_is_refused(fields, message):
    users = inspect.unwrap(Rollouts.__init__)  # without the tests' own check of types
    with pytest.raises(ValueError, match=message):
        users(object.__new__(Rollouts), **changed(**fields))


def test_rewards_are_one_a_row():
    assert record().with_rewards([0.0, 1.0, 1.0, 0.0]).rewards.dtype == torch.float32
    with pytest.raises(ValueError, match=r"expected 4 rewards, one a row, got \(3,\)"):
        record().with_rewards([0.0, 1.0, 1.0])


def test_a_character_split_over_tokens_is_put_together():
    row = record(lengths=[(2, 4)])
    tokens = torch.tensor([[5, 5, 6, 7, 6, 2, 0]])
    row = dataclasses.replace(row, tokens=tokens)
    assert row.text(0) == "one one €!\ufffd<eos>"
    assert row.text(0, prompt=False) == "€!\ufffd<eos>"
    assert row.completion(0) == "€!\ufffd"
    assert row.completion(0, special=True) == "€!\ufffd<eos>"


def test_to_pandas_gives_one_line_a_token():
    table = record().with_rewards([0.0, 1.0, 2.0, 3.0]).to_pandas()
    assert len(table) == 5 + 3 + 3 + 6
    assert table.position[table.row == 1].tolist() == [0, 1, 2]
    line = table[(table.row == 3) & (table.position == 4)].iloc[0]
    assert (line.entropy, line.logprob, line["rank"]) == (304.0, -304.0, 304)
    assert (line.valid, line.captured, line.control) == (True, True, True)
    assert (line.group, line.reward, line.token_id, line.text) == (1, 3.0, 5, "one ")
    assert table.valid.sum() == 9
    assert (table.entropy[~table.valid] == 0).all()
    assert "reward" not in record().to_pandas()
    assert len(record()[[]].to_pandas()) == 0


def test_provenance_survives_json():
    about = Provenance(
        model="m", source="score", revision="abc", weights="12", dtype="bfloat16", seed=2**63,
        temperature=0.0, top_p=0.9, top_k=20, entropy_basis="b", entropy_temperature=1.0,
        capture="none", near_ties=3, libraries={"torch": "2.13.0"},
    )  # fmt: skip
    assert Provenance.from_dict(json.loads(json.dumps(about.to_dict()))) == about
    assert set(about.to_dict()) == {f.name for f in dataclasses.fields(Provenance)}


def test_provenance_of_a_newer_version_is_refused():
    values = Provenance(model="m", source="sample").to_dict() | {"zeta": 1, "beta": 2}
    with pytest.raises(ValueError, match=r"unknown fields \['beta', 'zeta'\].*upgrade"):
        Provenance.from_dict(values)


def test_the_repr_says_what_is_inside():
    text = repr(record(layers=(1, 4)))
    assert text == "Rollouts(4 rows of 2 prompts, 9 tokens, layers: 1, 4, model: made up)"
    assert "layers: none" in repr(record(layers=()))
