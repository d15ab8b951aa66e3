"""`run.json`: read as written, damaged ones in a sentence, newer ones in another."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_storage_plan import plan_of

from entropy_probe.provenance import Provenance
from entropy_probe.storage.errors import NotARun, RunError
from entropy_probe.storage.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from entropy_probe.storage.run import open_run

PROVENANCE = Provenance(model="m", source="sample").to_dict()


def manifest_of(**changes):
    values = {"created": "2026-01-01T00:00:00+00:00", "libraries": {"torch": "2"},
              "hardware": {"cpus": 2}, "plan": plan_of(), "provenance": PROVENANCE}  # fmt: skip
    return Manifest(**values | changes)


def test_a_manifest_comes_back_prompts_with_lone_surrogates_too(tmp_path):
    written = manifest_of(plan=plan_of(["\ud800 \x00 \u2028 </script>", "ä", "c"]))
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written
    assert (tmp_path / MANIFEST).read_bytes().isascii()


def test_an_imported_run_has_no_plan(tmp_path):
    write_manifest(tmp_path, manifest_of(plan=None))
    assert open_run(tmp_path).plan is None


def test_a_newer_schema_is_a_sentence(tmp_path):
    write_manifest(tmp_path, manifest_of())
    values = json.loads((tmp_path / MANIFEST).read_text()) | {"schema_version": 2, "unheard": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(RunError, match="newer version") as caught:
        open_run(tmp_path)
    assert "schema version is 2" in caught.value.why
    assert "upgrade" in caught.value.fix


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": "1"}', b'{"schema_version": 1}',
     b'{"schema_version": true}', b'{"schema_version": 0}', b'{"schema_version": 1e400}'],
)  # fmt: skip
def test_a_damaged_manifest_is_a_sentence(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(RunError, match="is damaged") as caught:
        open_run(tmp_path)
    assert str(tmp_path / MANIFEST) in caught.value.what


@pytest.mark.parametrize("content", [b"[]", b"1", b"{}", b'{"name": "somebody else\'s"}'])
def test_somebody_elses_file_is_no_run(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(NotARun, match="not a run directory"):
        open_run(tmp_path)


def test_no_folder_a_file_and_an_empty_folder_are_no_runs(tmp_path):
    (tmp_path / "file").touch()
    for path, why in (
        ("x" * 300, "too long"),
        ("none", "no such folder"),
        ("file", "there is a file"),
        (".", "holds no"),
    ):
        with pytest.raises(NotARun, match=why):
            open_run(tmp_path / path)


SCALARS = st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=4)
JSON = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused_with_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run")
    write_manifest(path, manifest_of())
    values = json.loads((path / MANIFEST).read_text())
    place = values
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else
                        st.integers(0, len(place) - 1))  # fmt: skip
        deeper = isinstance(place[key], dict | list) and place[key]
        if not deeper or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    Path(path / MANIFEST).write_text(json.dumps(values))
    try:
        run = open_run(path)
    except RunError:
        return
    assert len(run) == 0
    assert run.missing == list(range(run.plan.chunks)) if run.plan else run.complete
    assert isinstance(repr(run), str)
