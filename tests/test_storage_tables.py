"""The tables of a record: a line a sample, a token, a state, in types that other tools read."""

import json

import pyarrow as pa
import pytest
import torch
from records import assert_equal, random_record

from entropy_probe.provenance import Provenance
from entropy_probe.storage.samples import SAMPLES_SCHEMA, about_of, samples_table, texts_table
from entropy_probe.storage.tables import (
    INDEX_SCHEMA,
    TOKENS_SCHEMA,
    index_table,
    rollouts_from_tables,
    tokens_table,
)


def test_a_line_a_token_says_what_the_record_says():
    record = random_record(4)
    table = tokens_table(record, first=10)
    assert table.schema == TOKENS_SCHEMA
    assert len(table) == int(record.lengths.sum())
    for line in table.to_pylist():
        row, t = line["sample"] - 10, line["position"]
        token = int(record.tokens[row, t])
        piece = record.pieces[token]
        assert line["token_id"] == token
        assert (line["token_bytes"], line["text"]) == (piece, piece.decode("utf-8", "replace"))
        assert line["is_prompt"] == (t < record.prompt_lengths[row])
        assert line["is_special"] == (token in record.special_ids)
        assert line["captured"] == bool(record.captured[row, t])
        assert line["control"] == bool(record.controls[row, t])
        assert line["valid"] == bool(record.valid[row, t])
        names = ("entropy", "logprob", "rank", "top_ids", "top_logprobs", "top_bytes")
        if not line["valid"]:
            assert all(line[name] is None for name in names)
            continue
        assert line["entropy"] == record.entropy[row, t]
        assert line["logprob"] == record.logprobs[row, t]
        assert line["rank"] == record.ranks[row, t]
        assert line["top_ids"] == record.alternatives.ids[row, t].tolist()
        assert line["top_logprobs"] == record.alternatives.logprobs[row, t].tolist()
        assert line["top_bytes"] == [record.pieces[i] for i in line["top_ids"]]


def test_a_line_a_sample_has_its_texts_and_its_problem():
    record = random_record(3)
    problems = [{"id": f"p{i}", "answer": "1", "facts": {"i": i}} for i in range(3)]
    table = samples_table(record, first=6, chunk=2, problems=problems)
    assert table.schema.equals(SAMPLES_SCHEMA)
    for i, line in enumerate(table.to_pylist()):
        assert (line["sample"], line["chunk"], line["group"]) == (6 + i, 2, int(record.groups[i]))
        assert line["prompt"] + record.text(i, prompt=False) == record.text(i)
        assert line["completion"] == record.completion(i)
        assert (line["problem"], json.loads(line["facts"])) == (f"p{i}", {"i": i})
        assert (line["prompt_length"], line["length"]) == (
            int(record.prompt_lengths[i]), int(record.lengths[i]),
        )  # fmt: skip
    about = about_of(table.schema)
    assert about["layers"] == [1, 7]
    assert about["special_ids"] == [0, 3]
    assert about["rewarded"]
    assert Provenance.from_dict(about["provenance"]) == record.provenance


def test_a_line_a_state_says_whose_it_is():
    record = random_record(4)
    table = index_table(record, first=3, file="chunk.safetensors")
    assert table.schema == INDEX_SCHEMA
    rows, places = record.captured.nonzero(as_tuple=True)
    assert table["sample"].to_pylist() == (rows + 3).tolist()
    assert table["position"].to_pylist() == places.tolist()
    assert table["state"].to_pylist() == list(range(len(rows)))
    assert table["control"].to_pylist() == record.controls[rows, places].tolist()


def test_the_order_of_the_lines_does_not_matter():
    record = random_record(4)
    samples, tokens = samples_table(record, first=0, chunk=0), tokens_table(record, first=0)
    mixed = tokens.take(torch.randperm(len(tokens)).numpy())
    assert_equal(rollouts_from_tables(samples, mixed, record.residuals), record)


def test_lines_that_are_missing_or_double_are_noticed():
    record = random_record(4)
    samples, tokens = samples_table(record, first=0, chunk=0), tokens_table(record, first=0)
    for wrong in (tokens.slice(1), pa.concat_tables([tokens, tokens.slice(0, 1)])):
        with pytest.raises(ValueError, match="more or fewer tokens"):
            rollouts_from_tables(samples, wrong, record.residuals)


def test_texts_alone_have_no_tokens():
    rows = [{"prompt": "a", "completion": "=1", "group": 4, "reward": 0.5, "facts": {"s": 1}}]
    source = Provenance(model="m", source="text")
    table = texts_table(rows, first=2, chunk=1, provenance=source)
    assert table.schema.equals(SAMPLES_SCHEMA)
    (line,) = table.to_pylist()
    assert (line["completion"], line["reward"], line["group"], line["length"]) == ("=1", 0.5, 4, 0)
    assert about_of(table.schema)["provenance"] == source.to_dict()
