"""`probe forks`: counts against a plain count, and text that does no harm."""

import dataclasses
import math
import re
from collections import Counter

import pytest
import torch
from commands import probe, write_run
from hostile import HOSTILE, record_of
from test_terminal import invisible

from entropy_probe import open_run


@pytest.fixture
def run(tmp_path):
    """Give a run of five tokens said over and over, in two chunks, entropies at random."""
    record = record_of([b"yes", b"no", b" so", b"\n", b"yes", b"no"] * 5, rows=4)
    tokens = record.tokens % 5
    entropy = torch.rand(record.valid.shape) * record.valid
    record = dataclasses.replace(record, tokens=tokens, entropy=entropy)
    write_run(tmp_path / "run", record[:3], record[3])
    return tmp_path / "run"


def plain_count(run, chosen):
    """Count forks by token, from a list of (row, position)."""
    rollouts = open_run(run).rollouts()
    return Counter(int(rollouts.tokens[row, t]) for row, t in chosen)


def ranked(run):
    """Give (entropy, row, position) of every valid token, most uncertain first."""
    rollouts = open_run(run).rollouts()
    places = rollouts.valid.nonzero().tolist()
    return sorted(((-float(rollouts.entropy[r, t]), r, t) for r, t in places))


def test_counts_shares_means_and_places(run):
    found = probe("forks", run, "--fraction", 0.3, "--json").json
    every = ranked(run)
    chosen = every[: math.ceil(0.3 * len(every))]
    wanted = plain_count(run, [(r, t) for _, r, t in chosen])
    assert {line["token_id"]: line["forks"] for line in found["list"]} == wanted
    assert [line["forks"] for line in found["list"]] == sorted(wanted.values(), reverse=True)
    assert (found["forks"], found["tokens"]) == (len(chosen), len(every))
    assert found["threshold"] == -chosen[-1][0]
    assert (found["fraction"], found["scope"], found["rule"]) == (0.3, "batch", "exact")
    rollouts = open_run(run).rollouts()
    uses = Counter(rollouts.tokens[rollouts.valid].tolist())
    for line in found["list"]:
        own = [c for c in chosen if int(rollouts.tokens[c[1], c[2]]) == line["token_id"]]
        assert line["where"] == [{"sample": r, "position": t} for _, r, t in own[:3]]
        assert line["mean_entropy"] == pytest.approx(-sum(e for e, _, _ in own) / len(own))
        assert line["share"] == len(own) / len(chosen)
        assert line["uses"] == uses[line["token_id"]]


def test_the_table_says_the_same(run):
    found = probe("forks", run, "--json").json
    lines = probe("forks", run).out.splitlines()
    assert f"{found['forks']} of {found['tokens']} tokens" in lines[0]
    assert f"at least {found['threshold']:.3f} nats" in lines[0]
    at = next(i for i, line in enumerate(lines) if line.startswith("token "))
    for line, wanted in zip(lines[at + 1 :], found["list"], strict=True):
        place = wanted["where"][0]
        assert line.split()[:2] == [wanted["token"], str(wanted["forks"])]
        assert f"{wanted['mean_entropy']:.3f}  {place['sample']}:{place['position']}" in line


def test_top_says_what_it_leaves_out(run):
    whole = probe("forks", run, "--json").json
    short = probe("forks", run, "--top", 2, "--json").json
    assert short["list"] == whole["list"][:2]
    assert short["distinct"] == len(whole["list"]) > 2
    assert f"and {short['distinct'] - 2} more tokens" in probe("forks", run, "--top", 2).out


def test_a_threshold_takes_what_is_above_it(run):
    found = probe("forks", run, "--threshold", 0.5, "--json").json
    chosen = [(r, t) for e, r, t in ranked(run) if -e >= 0.5]
    assert {line["token_id"]: line["forks"] for line in found["list"]} == plain_count(run, chosen)
    assert (found["rule"], found["threshold"], found["fraction"]) == ("threshold", 0.5, None)
    assert "0.5 nats or more" in probe("forks", run, "--threshold", 0.5).out


def test_a_share_of_each_sample(run):
    found = probe("forks", run, "--scope", "sequence", "--json").json
    assert len(found["thresholds"]) == 4
    assert found["forks"] == 4 * math.ceil(0.2 * 30)
    by_row = [[e for e, r, _ in ranked(run) if r == row] for row in range(4)]
    assert found["thresholds"] == [-es[math.ceil(0.2 * 30) - 1] for es in by_row]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--threshold", 9), 5, "there are no forks"),
        (("--fraction", 0), 2, "'--fraction'"),
        (("--fraction", 2), 2, "'--fraction'"),
        (("--fraction", 0.1, "--threshold", 1), 2, "--fraction belongs to the rule exact"),
        (("--rule", "exact", "--threshold", 1), 2, "threshold"),
        (("--rule", "threshold"), 2, "threshold"),
        (("--scope", "token"), 2, "'--scope'"),
    ],
)
def test_bad_input_is_told(run, words, code, text):
    result = probe("forks", run, *words)
    assert (result.code, result.out) == (code, "")
    assert text in " ".join(result.told)


def test_hostile_text_is_inert(tmp_path):
    write_run(tmp_path / "run", record_of(HOSTILE))
    for words in (("--fraction", 1, "--top", 99), ("--fraction", 1, "--top", 99, "--json")):
        result = probe("forks", tmp_path / "run", *words)
        assert result.code == 0
        assert not invisible(result.out)
        assert re.search(r"\[/INST\]", result.out)


@pytest.mark.parametrize("words", [("--scope", "group"), ("--fraction", 0.1)])
def test_what_a_threshold_does_not_read_is_refused(run, words):
    result = probe("forks", run, "--threshold", 0.5, *words)
    assert result.code == 2
    assert words[0] in result.err
    assert probe("forks", run, "--threshold", 0.5, "--json").json["scope"] is None
