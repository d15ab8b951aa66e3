"""Importers on anything at all: a run that reads back, or a sentence and nothing left behind."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_probe.importing import FORMATS, import_file
from entropy_probe.storage.errors import RunError

# More, to look deeper: EXAMPLES=2000 python -m pytest tests/test_importing_fuzz.py
EXAMPLES = int(os.environ.get("EXAMPLES", "10"))
FIXTURES = Path(__file__).parent / "fixtures" / "importing"
JSON_FILES = (
    "openai_chat.json",
    "openai_completions.jsonl",
    "openai_batch.jsonl",
    "openai_with_request.json",
    "vllm_chat_ids.json",
    "prime_tokens.jsonl",
    "token_exports/step_3/rank_0.jsonl",
    "token_exports/step_10/rank_0.jsonl",
)
FILES = (*JSON_FILES, "trl_text/completions_00001.parquet", "trl_chat/completions_00001.parquet")

SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["token_id:5", "bytes:\\xff", "\ud800", -9999.0, 1e300, 10**400])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)
fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_whole_or_nothing(source, format=None):
    """Import a file: either the run reads back, or a RunError says why and nothing is left."""
    folder = source.parent
    try:
        run = import_file(source, folder / "run", format=format)
    except RunError as error:
        assert all((error.what, error.why, error.fix))  # noqa: PT017 - raised or not
        assert [path.name for path in folder.iterdir()] == [source.name]
        return
    assert sorted(path.name for path in folder.iterdir()) == sorted(["run", source.name])
    lines = run.samples().num_rows
    assert lines == len(run) > 0
    if run.provenance.source == "import":
        record = run.rollouts()
        assert len(record) == lines
        assert bool(record.entropy.isfinite().all())
        assert bool((record.entropy >= 0).all())
        assert bool((record.logprobs <= 0).all())


def spoil(data, value):
    """Replace, remove or double something somewhere in a JSON value."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 9)) == 0:
        return data.draw(VALUES)
    keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
    key = data.draw(st.sampled_from(keys))
    how = data.draw(st.sampled_from(["deeper"] * 6 + ["remove", "double"]))
    if how == "remove":
        del value[key]
    elif how == "double" and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = spoil(data, value[key])
    return value


@pytest.mark.parametrize("name", JSON_FILES)
@fuzzing
@given(data=st.data())
def test_json_with_something_else_somewhere(tmp_path_factory, name, data):
    lines = (FIXTURES / name).read_text().splitlines() if name.endswith("l") else [
        (FIXTURES / name).read_text()
    ]  # fmt: skip
    values = [spoil(data, json.loads(line)) for line in lines]
    source = tmp_path_factory.mktemp("fuzz") / Path(name).name
    source.write_text("\n".join(json.dumps(value) for value in values))
    assert_whole_or_nothing(source)


@pytest.mark.parametrize("name", FILES)
@fuzzing
@given(data=st.data())
def test_files_with_bytes_gone_flipped_or_added(tmp_path_factory, name, data):
    content = bytearray((FIXTURES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["flip", "cut", "remove", "insert"]))
        if how == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "remove":
            del content[at : at + data.draw(st.integers(1, 20))]
        else:
            content[at:at] = data.draw(st.binary(max_size=20))
    source = tmp_path_factory.mktemp("fuzz") / Path(name).name
    source.write_bytes(content)
    assert_whole_or_nothing(source)


@pytest.mark.parametrize("format", [None, *FORMATS])
@fuzzing
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
def test_anything_under_any_name(tmp_path_factory, format, content):
    source = tmp_path_factory.mktemp("fuzz") / "file"
    source.write_bytes(content)
    assert_whole_or_nothing(source, format)


CELLS = {
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    pa.large_string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.float16(): st.floats(width=16),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.timestamp("ns"): st.integers(-(2**63), 2**63 - 1),
    pa.list_(pa.string()): st.lists(st.text("ab", max_size=3), max_size=3),
    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])): st.lists(
        st.fixed_dictionaries({"role": st.text("ab", max_size=3) | st.none(),
                               "content": st.text("ab", max_size=3) | st.none()}), max_size=3
    ),
    pa.null(): st.none(),
}  # fmt: skip
NAMES = ("prompt", "completion", "step", "advantage", "reward_a", "note")


@settings(max_examples=4 * EXAMPLES, deadline=None)
@given(data=st.data())
def test_tables_of_any_columns(tmp_path_factory, data):
    names = ["prompt", "completion", *data.draw(st.lists(st.sampled_from(NAMES), max_size=4))]
    rows = data.draw(st.integers(0, 3))
    columns = []
    for _ in names:
        kind = data.draw(st.sampled_from(list(CELLS)))
        cells = data.draw(st.lists(CELLS[kind] | st.none(), min_size=rows, max_size=rows))
        columns.append(pa.array(cells, kind))
    source = tmp_path_factory.mktemp("fuzz") / "t.parquet"
    pq.write_table(pa.Table.from_arrays(columns, names=names), source)
    assert_whole_or_nothing(source)
