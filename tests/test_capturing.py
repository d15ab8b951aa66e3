"""Capturing into a run directory: what `sample` gives, chunk by chunk, and never half of it."""

from dataclasses import dataclass, replace

import pytest
import torch
from contents import contents, size_of
from records import assert_equal
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture, open_run, sample
from entropy_probe.storage.chunks import write_texts
from entropy_probe.storage.errors import RunConflict, RunError
from entropy_probe.storage.estimate import estimate_bytes
from entropy_probe.storage.manifest import Manifest, read_manifest, write_manifest
from entropy_probe.storage.parts import parts
from entropy_probe.tasks import Problem

PROMPTS = ["w1 w2 ", "w3 ", [5, 6, 7], "w4 w5 w6 w7 ", "w8 "]
OPTIONS = {"n": 2, "max_new_tokens": 10, "residual_layers": [-1, 0], "seed": 3, "alternatives": 4,
           "temperature": 1.3, "top_k": 30}  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return tiny_model(), tiny_tokenizer()


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """Give a run that nothing has interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    return capture(*made, PROMPTS, path, chunk_prompts=2, **OPTIONS)


def test_a_run_holds_what_sampling_each_chunk_gives(made, whole):
    assert (whole.complete, whole.manifest.status, whole.chunks) == (True, "complete", [0, 1, 2])
    for index in range(3):
        record = sample(*made, PROMPTS[2 * index : 2 * index + 2], offset=2 * index, **OPTIONS)
        words = f"{record.provenance.capture}; a batch is a chunk of 2 inputs"
        rows = whole.plan.samples_of(index)
        mine = replace(record, provenance=replace(record.provenance, capture=words))
        assert_equal(whole.rollouts(rows), mine)


def test_one_chunk_is_one_call_of_sample(made, tmp_path):
    run = capture(*made, PROMPTS, tmp_path / "run", **OPTIONS)
    assert_equal(run.rollouts(), sample(*made, PROMPTS, **OPTIONS))


@pytest.mark.parametrize("lost", [[0], [1, 2], [0, 1, 2]])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(made, whole, tmp_path, lost):
    path = tmp_path / "run"
    capture(*made, PROMPTS, path, chunk_prompts=2, **OPTIONS)
    for index in lost:
        parts(path, index)["samples"].unlink()
    write_manifest(path, replace(read_manifest(path), status="running"))
    assert open_run(path).missing == lost
    capture(*made, PROMPTS, path, resume=True, **OPTIONS)
    assert contents(path) == contents(whole.path)


@pytest.mark.parametrize("part", ["samples", "tokens", "index", "states"])
def test_resuming_computes_damaged_chunks_again(made, whole, tmp_path, part):
    path = tmp_path / "run"
    capture(*made, PROMPTS, path, chunk_prompts=2, **OPTIONS)
    file = parts(path, 1)[part]
    file.write_bytes(file.read_bytes()[:-20])
    capture(*made, PROMPTS, path, resume=True, **OPTIONS)
    assert contents(path) == contents(whole.path)


def test_resuming_a_complete_run_changes_nothing(made, whole):
    before = contents(whole.path)
    times = {file: file.stat().st_mtime_ns for file in whole.path.rglob("*")}
    capture(*made, PROMPTS, whole.path, resume=True, **OPTIONS)
    assert contents(whole.path) == before
    assert {file: file.stat().st_mtime_ns for file in whole.path.rglob("*")} == times


def test_resuming_where_nothing_is_begins(made, whole, tmp_path):
    capture(*made, PROMPTS, tmp_path / "run", chunk_prompts=2, resume=True, **OPTIONS)
    assert contents(tmp_path / "run") == contents(whole.path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"n": 3}, "n was 2, now 3"),
        ({"prompts": PROMPTS[:4]}, "the 5 inputs are not the 4 given now"),
        ({"chunk_prompts": 1}, "chunk was 2, now 1"),
        ({"model": tiny_model(seed=1)}, "weights was"),
    ],
)
def test_a_run_is_not_gone_on_with_by_another_plan(made, whole, changes, words):
    before = contents(whole.path)
    changes = dict(changes)
    model, prompts = changes.pop("model", made[0]), changes.pop("prompts", PROMPTS)
    with pytest.raises(RunConflict, match="begun differently") as caught:
        capture(model, made[1], prompts, whole.path, resume=True, **OPTIONS | changes)
    assert words in caught.value.why
    assert contents(whole.path) == before


def test_a_second_capture_is_refused_and_nothing_is_lost(made, whole):
    before = contents(whole.path)
    with pytest.raises(RunConflict, match="already holds a run") as caught:
        capture(*made, PROMPTS, whole.path, **OPTIONS)
    assert "3 of its 3 chunks" in caught.value.why
    with pytest.raises(RunConflict, match="exclude each other"):
        capture(*made, PROMPTS, whole.path, resume=True, overwrite=True, **OPTIONS)
    assert contents(whole.path) == before


def test_overwriting_leaves_nothing_of_the_old_run(made, tmp_path):
    fresh = capture(*made, ["w9 "], tmp_path / "fresh", max_new_tokens=3)
    capture(*made, PROMPTS, tmp_path / "run", chunk_prompts=2, **OPTIONS)
    capture(*made, ["w9 "], tmp_path / "run", max_new_tokens=3, overwrite=True)
    assert contents(tmp_path / "run") == contents(fresh.path)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        capture(*made, ["w9 "], tmp_path / "run", max_new_tokens=3, resume=True)
    capture(*made, ["w9 "], tmp_path / "run", max_new_tokens=3, overwrite=True)
    assert contents(tmp_path / "run") == contents(fresh.path)


def test_somebody_elses_folder_is_left_alone(made, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunConflict, match="not a run"):
            capture(*made, PROMPTS, tmp_path, **OPTIONS | options)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_an_imported_run_has_nothing_to_go_on_with(made, tmp_path, whole):
    row = {"prompt": "a", "completion": "b", "group": 0, "reward": None, "facts": {}}
    write_texts(tmp_path, 0, [row], first=0, provenance=whole.provenance)
    write_manifest(tmp_path, Manifest("now", {}, {}, None))
    with pytest.raises(RunConflict, match="was imported"):
        capture(*made, PROMPTS, tmp_path, resume=True, **OPTIONS)


@pytest.mark.parametrize(
    "changes",
    [{"max_new_tokens": 0}, {"fraction": 2.0}, {"residual_layers": [9]}, {"temperature": -1.0},
     {"prompts": ["w1 ", ""]}, {"prompts": ["w1 " * 200]}, {"stop": [""]}],
)  # fmt: skip
def test_bad_arguments_leave_nothing_behind(made, tmp_path, changes):
    prompts = changes.get("prompts", PROMPTS)
    options = OPTIONS | {k: v for k, v in changes.items() if k != "prompts"}
    with pytest.raises(ValueError, match=r"\w"):
        capture(*made, prompts, tmp_path / "a" / "run", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file/run", "file", "/proc/version/run", "/dev/null/x", "x" * 300])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(made, tmp_path, out):
    (tmp_path / "file").touch()

    def progress(done, total):
        raise AssertionError("something was computed")

    with pytest.raises(RunError, match="cannot write to|not a run"):
        capture(*made, PROMPTS, tmp_path / out, progress=progress, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_estimate_above_the_limit_refuses_before_anything_is_written(made, tmp_path):
    with pytest.raises(RunConflict, match=r"may take .* kB on disk, more than the 1.0 kB allowed"):
        capture(*made, PROMPTS, tmp_path / "run", max_disk=1000, **OPTIONS)
    assert list(tmp_path.iterdir()) == []
    capture(*made, PROMPTS, tmp_path / "run", max_disk=10**7, **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_prompts": 1}, {"n": 8}, {"alternatives": 0}, {"alternatives": 97},
     {"max_new_tokens": 1}, {"max_new_tokens": 60},
     {"residual_layers": [0, 1, 2], "residual_positions": "all"},
     {"residual_layers": [0, 1, 2], "fraction": 1.0, "chunk_prompts": 1},
     {"residual_layers": [1], "fraction": 0.001, "chunk_prompts": 1},
     {"prompts": ["w1 "]}, {"prompts": ["w1 " * 100] * 3, "n": 5, "max_new_tokens": 1},
     {"prompts": [[i % 97 for i in range(90)]] * 3}],
)  # fmt: skip
def test_the_estimate_is_never_below_what_a_run_takes(made, tmp_path, options):
    prompts = options.get("prompts", PROMPTS)
    options = {k: v for k, v in options.items() if k != "prompts"}
    run = capture(*made, prompts, tmp_path / "run", **{"max_new_tokens": 20} | options)
    estimate = estimate_bytes(run.plan, d_model=32)
    assert size_of(run.path) <= estimate


@dataclass(frozen=True)
class Counting:
    """A task whose answer is how many words there are."""

    name: str = "counting"

    def problems(self, limit, *, split="test", seed=0):
        return [Problem(f"w{i} ", str(i), f"p{i}", {"i": i}) for i in range(limit)]

    def verify(self, problem, completion):
        return float(len(completion.split()) == int(problem.answer))


def test_a_tasks_rewards_and_problems_are_in_the_run(made, tmp_path):
    task = Counting()
    problems = task.problems(10)
    options = {"n": 3, "max_new_tokens": 10, "task": task, "chunk_prompts": 4}
    run = capture(*made, problems, tmp_path / "run", **options)
    record = run.rollouts()
    expected = [
        task.verify(problems[int(group)], record.completion(row))
        for row, group in enumerate(record.groups)
    ]
    assert record.rewards.tolist() == expected
    assert len(set(expected)) == 2
    lines = run.samples().to_pylist()
    assert [line["problem"] for line in lines[::3]] == [p.id for p in problems]
    assert [line["reward"] for line in lines] == expected


def test_progress_counts_every_row_once(made, tmp_path):
    seen = []
    capture(*made, PROMPTS, tmp_path / "run", chunk_prompts=2, progress=lambda *a: seen.append(a),
            **OPTIONS)  # fmt: skip
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_resuming_computes_with_the_plans_threads_and_gives_them_back(made, tmp_path):
    before = torch.get_num_threads()
    path = tmp_path / "run"
    run = capture(*made, PROMPTS, path, chunk_prompts=2, **OPTIONS)
    write_manifest(path, replace(run.manifest, plan=replace(run.plan, threads=before + 1)))
    parts(path, 0)["samples"].unlink()
    seen = []
    capture(*made, PROMPTS, path, resume=True,
            progress=lambda *_: seen.append(torch.get_num_threads()), **OPTIONS)  # fmt: skip
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_other_versions_are_warned_of(made, tmp_path):
    path = tmp_path / "run"
    run = capture(*made, PROMPTS, path, chunk_prompts=2, **OPTIONS)
    libraries = dict(run.manifest.libraries) | {"torch": "1.0"}
    write_manifest(path, replace(run.manifest, libraries=libraries))
    parts(path, 0)["samples"].unlink()
    with pytest.warns(UserWarning, match=r"begun with torch 1\.0 \(now "):
        capture(*made, PROMPTS, path, resume=True, **OPTIONS)


def test_the_model_is_left_as_it_was(made, tmp_path):
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    capture(*made, PROMPTS, tmp_path / "run", **OPTIONS)
    assert all(torch.equal(before[k], v) for k, v in made[0].state_dict().items())
    assert not any(module._forward_hooks for module in made[0].modules())
