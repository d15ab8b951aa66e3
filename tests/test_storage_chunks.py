"""Chunks on disk: what is read is what was written, only what is asked for, or a sentence."""

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from records import assert_equal, random_record

from entropy_probe.storage import chunks
from entropy_probe.storage.chunks import (
    is_intact,
    read_about,
    read_chunk,
    read_samples,
    remove_chunk,
    write_chunk,
)
from entropy_probe.storage.errors import RunError
from entropy_probe.storage.parts import committed_chunks, parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alternatives", [0, 1, 5])
@pytest.mark.parametrize("rewards", [True, False])
def test_a_chunk_comes_back_bit_for_bit(tmp_path, dtype, alternatives, rewards):
    record = random_record(alternatives=alternatives, rewards=rewards, dtype=dtype)
    write_chunk(tmp_path, 3, record, first=40)
    assert_equal(read_chunk(tmp_path, 3, range(40, 45)), record)
    assert is_intact(tmp_path, 3, range(40, 45))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), data=st.data())
def test_any_samples_come_back_as_a_selection_would_give_them(tmp_path_factory, seed, rows, data):
    path = tmp_path_factory.mktemp("run")
    record = random_record(rows, seed=seed)
    write_chunk(path, 0, record, first=7)
    wanted = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1)))
    read = read_chunk(path, 0, [7 + i for i in wanted])
    mine = record[wanted]
    width = int(mine.lengths.max())
    assert read.tokens.shape == (len(wanted), width)
    assert torch.equal(read.tokens, mine.tokens[:, :width])
    assert torch.equal(read.entropy, mine.entropy[:, :width])
    for layer, states in mine.residuals.items():
        assert torch.equal(read.residuals[layer], states)


def test_states_that_were_not_kept_are_absent_and_zeros_that_were_are_zeros(tmp_path):
    record = random_record()
    record.residuals[1][0] = 0.0
    write_chunk(tmp_path, 0, record, first=0)
    read = read_chunk(tmp_path, 0, range(5))
    assert read.residuals[1].shape[0] == int(record.captured.sum()) < int(record.valid.sum())
    assert torch.equal(read.residuals[1][0], torch.zeros(4))
    assert read_chunk(tmp_path, 0, range(5), residuals=False).residuals == {}


def test_layers_without_a_captured_state_stay_layers(tmp_path):
    record = random_record(rows=1, seed=4, longest=0, layers={2: 6})
    write_chunk(tmp_path, 0, record, first=0)
    assert read_chunk(tmp_path, 0, [0]).residuals[2].shape == (0, 6)


def test_what_is_not_known_is_null_on_disk_and_stays_unknown(tmp_path):
    record = random_record()
    record.pieces.pop(int(record.tokens[0, 0]))
    row, place = (int(i) for i in record.valid.nonzero()[0])
    record.ranks[row, place] = -1
    record.alternatives.ids[row, place, 1:] = -1
    record.alternatives.logprobs[row, place, 1:] = float("-inf")
    write_chunk(tmp_path, 0, record, first=0)
    table = chunks.read_tokens(tmp_path, 0).to_pylist()
    line = next(x for x in table if (x["sample"], x["position"]) == (row, place))
    assert line["rank"] is None
    assert len(line["top_ids"]) == len(line["top_logprobs"]) == 1
    first = int(record.tokens[0, 0])
    assert {(x["text"], x["token_bytes"]) for x in table if x["token_id"] == first} == {
        (None, None)
    }
    read = read_chunk(tmp_path, 0, range(5))
    assert_equal(read, record)
    assert first not in read.pieces


def test_texts_are_readable_in_the_tables_whatever_the_bytes(tmp_path):
    record = random_record()
    write_chunk(tmp_path, 0, record, first=0)
    lines = read_samples(tmp_path, 0).to_pylist()
    assert [line["completion"] for line in lines] == [record.completion(i) for i in range(5)]
    tokens = chunks.read_tokens(tmp_path, 0)
    assert tokens["token_bytes"].to_pylist() == [
        record.pieces[i] for i in tokens["token_id"].to_pylist()
    ]


def test_a_sample_is_read_from_its_row_groups_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_ROW_GROUP", 8)
    record = random_record(rows=6, longest=20)
    write_chunk(tmp_path, 0, record, first=0)
    file = parts(tmp_path, 0)["tokens"]
    metadata = pq.read_metadata(file)
    assert metadata.num_row_groups > 4
    # Everything but the first row group's pages overwritten: sample 0 cannot notice.
    start = metadata.row_group(2).column(0).dictionary_page_offset
    end = metadata.row_group(metadata.num_row_groups - 1).column(0).dictionary_page_offset
    content = bytearray(file.read_bytes())
    content[start:end] = bytes(end - start)
    file.write_bytes(content)
    assert_equal(read_chunk(tmp_path, 0, [0]), _cut(record[0]))
    with pytest.raises(RunError, match="cannot be read"):
        read_chunk(tmp_path, 0, range(6))


def _cut(record):
    """Give a record of one row without its padding, as a reader would."""
    from dataclasses import replace

    width = int(record.lengths.max())
    names = ("tokens", "valid", "entropy", "logprobs", "ranks", "captured", "controls")
    ids, logprobs = record.alternatives.ids[:, :width], record.alternatives.logprobs[:, :width]
    return replace(
        record,
        **{name: getattr(record, name)[:, :width] for name in names},
        alternatives=type(record.alternatives)(ids, logprobs),
    )


@pytest.mark.parametrize("part", ["samples", "tokens", "index", "states"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "noise", "another"])
def test_a_damaged_part_is_a_sentence_and_not_intact(tmp_path, part, damage):
    write_chunk(tmp_path, 0, random_record(), first=0)
    file = parts(tmp_path, 0)[part]
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "empty": b"",
                "noise": bytes(range(256)) * 8,
                "another": parts(tmp_path, 0)[
                    "tokens" if part != "tokens" else "index"
                ].read_bytes(),
            }[damage]
        )
    assert not is_intact(tmp_path, 0, range(5))
    with pytest.raises(RunError, match="cannot be read") as caught:
        read_chunk(tmp_path, 0, range(5))
    assert str(file) in str(caught.value)
    assert "--resume" in caught.value.fix


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_of_the_tables_is_noticed_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run")
    record = random_record()
    write_chunk(path, 0, record, first=0)
    file = parts(path, 0)[data.draw(st.sampled_from(["samples", "tokens", "index"]))]
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        read = read_chunk(path, 0, range(5))
    except RunError:
        return
    for name in ("tokens", "entropy", "logprobs", "captured"):
        assert torch.equal(getattr(read, name), getattr(record, name)), name


def test_a_chunk_is_there_from_its_last_part_on_and_gone_from_its_first(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(chunks, "_write_table", lambda file, table: written.append(file))
    write_chunk(tmp_path, 0, random_record(), first=0)
    assert written[-1] == parts(tmp_path, 0)["samples"]
    monkeypatch.undo()
    write_chunk(tmp_path, 0, random_record(), first=0)
    assert committed_chunks(tmp_path) == [0]
    remove_chunk(tmp_path, 0)
    assert committed_chunks(tmp_path) == []
    assert not any(file.exists() for file in parts(tmp_path, 0).values())


def test_names_that_are_no_chunks_are_none(tmp_path):
    write_chunk(tmp_path, 2, random_record(), first=0)
    for name in ("chunk-abc.parquet", ".chunk-00001.parquet.tmp-1", "chunk-00003.parquet.bak"):
        (tmp_path / "samples.parquet" / name).touch()
    assert committed_chunks(tmp_path) == [2]


def test_a_chunk_tells_what_it_is(tmp_path):
    record = random_record()
    write_chunk(tmp_path, 0, record, first=0)
    about = read_about(tmp_path, 0)
    assert about["layers"] == [1, 7]
    assert about["provenance"] == record.provenance.to_dict()


def test_a_table_with_other_columns_is_not_taken_for_one_of_a_run(tmp_path):
    write_chunk(tmp_path, 0, random_record(), first=0)
    file = parts(tmp_path, 0)["tokens"]
    table = pq.read_table(file, partitioning=None)
    doubled = table.set_column(8, "entropy", table["entropy"].cast("double"))
    for other in (doubled, table.append_column("more", table["rank"])):
        pq.write_table(other, file)
        with pytest.raises(RunError, match="its columns are"):
            read_chunk(tmp_path, 0, range(5))


def test_states_of_another_chunk_are_noticed(tmp_path):
    write_chunk(tmp_path, 0, random_record(), first=0)
    write_chunk(tmp_path, 1, random_record(9, seed=1), first=5)
    parts(tmp_path, 1)["states"].replace(parts(tmp_path, 0)["states"])
    assert not is_intact(tmp_path, 0, range(5))
    with pytest.raises(RunError, match="it holds .* states, not"):
        read_chunk(tmp_path, 0, range(5))
