"""A run directory opened: lazy by sample, whole at any moment, honest about what is missing."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from records import FIELDS, assert_equal, random_record
from test_storage_plan import plan_of

import entropy_probe
from entropy_probe.provenance import Provenance
from entropy_probe.rollout import Rollouts
from entropy_probe.storage.chunks import write_chunk, write_texts
from entropy_probe.storage.errors import RunError
from entropy_probe.storage.manifest import Manifest, write_manifest
from entropy_probe.storage.parts import parts
from entropy_probe.storage.run import open_run
from entropy_probe.storage.writing import begin, commit, finish


def run_of(path, chunks=3, *, skip=()):
    """Give a run of two rows an input and two inputs a chunk, with its records."""
    run = begin(path, plan_of(range(2 * chunks)), libraries={}, hardware={})
    records = [random_record(4, seed=i) for i in range(chunks)]
    for index, record in enumerate(records):
        if index not in skip:
            commit(run, index, record)
    return open_run(path), records


def test_a_run_is_the_concatenation_of_its_chunks(tmp_path):
    run, records = run_of(tmp_path)
    assert (len(run), run.complete, run.missing) == (12, True, [])
    whole = run.rollouts()
    assert_equal(whole, Rollouts.concatenate(records))
    assert run.provenance == whole.provenance
    assert run.provenance.near_ties == 0 + 1 + 2
    assert finish(run).manifest.status == "complete"


@pytest.mark.parametrize("rows", [[0], [11, 0, 5], [3, 3, 4], [6, 7]])
def test_samples_come_in_the_order_asked_for(tmp_path, rows):
    run, records = run_of(tmp_path)
    read, mine = run.rollouts(rows), Rollouts.concatenate(records)[rows]
    width = read.tokens.shape[1]
    for name in FIELDS:
        value = getattr(mine, name)
        assert torch.equal(getattr(read, name), value[:, :width] if value.dim() > 1 else value)
    for layer, states in mine.residuals.items():
        assert torch.equal(read.residuals[layer], states)


def test_indexing_slicing_and_iterating_agree(tmp_path):
    run, _ = run_of(tmp_path)
    assert torch.equal(run[-1].tokens, run[11].tokens)
    assert torch.equal(run[4:6].groups, run.rollouts([4, 5]).groups)
    assert torch.equal(run[::-5].prompt_lengths, run.rollouts([11, 6, 1]).prompt_lengths)
    singles = list(run)
    assert [len(record) for record in singles] == [1] * 12
    assert [r.text(0) for r in singles] == [run[i].text(0) for i in range(12)]
    for outside in (12, -13):
        with pytest.raises(IndexError, match="samples 0 to 11"):
            run[outside]


def test_a_sample_is_read_without_the_other_chunks_files(tmp_path):
    run, records = run_of(tmp_path)
    for index in (0, 2):
        for file in parts(tmp_path, index).values():
            file.write_bytes(b"gone")
    run = open_run(tmp_path)
    assert torch.equal(run[5].entropy.sum(), records[1][1].entropy.sum())
    with pytest.raises(RunError, match="cannot be read"):
        run[0]


def test_states_are_read_only_when_wanted(tmp_path):
    run, _ = run_of(tmp_path)
    for index in range(3):
        parts(tmp_path, index)["states"].unlink()
    assert run.rollouts(residuals=False).residuals == {}
    with pytest.raises(RunError, match="safetensors"):
        run.rollouts()


def test_missing_chunks_are_missing_samples(tmp_path):
    run, records = run_of(tmp_path, skip=[1])
    assert (len(run), run.missing, run.complete) == (8, [1], False)
    assert run.sample_numbers == [0, 1, 2, 3, 8, 9, 10, 11]
    assert torch.equal(run[4].groups, records[2][0].groups)
    assert "8 of 12 samples" in repr(run)
    assert run.samples()["sample"].to_pylist() == run.sample_numbers


def test_a_run_without_a_chunk_says_so(tmp_path):
    run, _ = run_of(tmp_path, skip=[0, 1, 2])
    assert (len(run), run.provenance, run.samples().num_rows) == (0, None, 0)
    with pytest.raises(RunError, match="no samples to read") as caught:
        run.rollouts()
    assert "--resume" in caught.value.fix


def test_chunks_that_the_plan_does_not_have_are_left_alone(tmp_path):
    run, _ = run_of(tmp_path)
    write_chunk(tmp_path, 7, random_record(4), first=28)
    assert open_run(tmp_path).chunks == [0, 1, 2]


def test_what_was_there_when_it_was_opened_is_shown(tmp_path):
    before, _ = run_of(tmp_path, skip=[2])
    commit(before, 2, random_record(4, seed=2))
    assert (len(before), len(open_run(tmp_path))) == (8, 12)


def test_problems_go_with_each_of_their_samples(tmp_path):
    problems = [{"id": f"p{i}", "answer": f"{i}", "facts": {"x": "\ud800"}} for i in range(3)]
    run = begin(tmp_path, plan_of(problems=problems), libraries={}, hardware={})
    for index, rows in enumerate((4, 2)):
        commit(run, index, random_record(rows, seed=index))
    run = open_run(tmp_path)
    assert run.samples()["problem"].to_pylist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert [p["id"] for p in run.problems_of(1)] == ["p2", "p2"]


def test_a_run_of_texts_alone_offers_to_score_them(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "group": 0, "reward": None, "facts": {"step": 1}}]
    source = Provenance(model="m", source="text")
    write_texts(tmp_path, 0, rows, first=0, provenance=source)
    write_manifest(tmp_path, Manifest("now", {}, {}, None))
    run = open_run(tmp_path)
    assert run.samples()["completion"].to_pylist() == ["b"]
    assert (len(run), run.provenance) == (1, source)
    with pytest.raises(RunError, match="texts only") as caught:
        run.rollouts()
    assert "probe score" in caught.value.fix


def test_there_is_no_pickle_in_it(tmp_path):
    run_of(tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".parquet", ".safetensors"}
    for file in files:
        content = file.read_bytes()
        assert content[:4] == b"PAR1" or content[:1] == b"{" or content[8:9] == b"{"
    package = Path(entropy_probe.__file__).parent
    for source in (*package.glob("storage/*.py"), *package.glob("importing/*.py")):
        found = re.search(r"\b(pickle|torch\.load|torch\.save|allow_pickle)\b", source.read_text())
        assert not found, (source, found)


def test_other_tools_read_the_folders_as_tables(tmp_path):
    run_of(tmp_path)
    tokens = pq.read_table(tmp_path / "tokens.parquet")
    assert tokens["sample"].to_pylist() == sorted(tokens["sample"].to_pylist())
    assert pq.read_table(tmp_path / "samples.parquet").num_rows == 12
    assert pq.read_table(tmp_path / "activations" / "index.parquet").num_rows > 0
