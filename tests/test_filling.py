"""A run directory filled in shards, at once and one after another: the unbroken run's content."""

import multiprocessing
import pickle
import re
from pathlib import Path

import pytest
import torch
from contents import contents
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import open_run
from entropy_probe.filling import carry_out
from entropy_probe.planning import plan_samples
from entropy_probe.storage.errors import DiskFull, NotARun, RunConflict
from entropy_probe.storage.parts import parts

ARGUMENTS = {
    "n": 2, "max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
    "residual_layers": [1], "residual_positions": "forks", "alternatives": 3, "seed": 3,
    "batch_size": 8, "stop": [], "fraction": 0.2,
}  # fmt: skip


def plan_of(model, tokenizer, seed=3):
    prompts = [f"w{i} w{i + 1} " for i in range(14)]
    return plan_samples(model, tokenizer, prompts, ARGUMENTS | {"seed": seed}, chunk_prompts=2)


def fill_shard(out, shard):
    torch.set_num_threads(1)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    carry_out(model, tokenizer, plan_of(model, tokenizer), out, shard=shard)


@pytest.fixture(scope="module")
def made():
    torch.set_num_threads(1)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    return model, tokenizer, plan_of(model, tokenizer)


def assert_same(one, other):
    one, other = one[:], other[:]
    for name in ("tokens", "valid", "entropy", "logprobs", "ranks", "captured", "groups"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.residuals[1], other.residuals[1])
    assert one.provenance == other.provenance


def test_shards_one_after_another_make_the_unbroken_run(made, tmp_path):
    whole = carry_out(*made, tmp_path / "whole")
    assert not carry_out(*made, tmp_path / "parts", shard=(2, 3)).complete
    assert open_run(tmp_path / "parts").chunks == [1, 4]
    carry_out(*made, tmp_path / "parts", shard=(1, 3))
    last = carry_out(*made, tmp_path / "parts", shard=(3, 3))
    assert last.complete
    assert last.manifest.status == "complete"
    assert_same(last, whole)


def test_a_shard_goes_on_where_it_was_killed(made, tmp_path):
    carry_out(*made, tmp_path / "run", shard=(1, 2))
    gone = tmp_path / "run" / "samples.parquet" / "chunk-00002.parquet"
    gone.unlink()
    assert carry_out(*made, tmp_path / "run", shard=(1, 2)).chunks == [0, 2, 4, 6]


def test_shards_that_start_at_once_share_a_directory(made, tmp_path):
    start = multiprocessing.get_context("spawn")
    shards = [start.Process(target=fill_shard, args=(tmp_path / "run", (i, 3))) for i in (1, 2, 3)]
    for shard in shards:
        shard.start()
    for shard in shards:
        shard.join(timeout=120)
    assert [shard.exitcode for shard in shards] == [0, 0, 0]
    found = open_run(tmp_path / "run")
    assert found.manifest.status == "complete"
    assert_same(found, carry_out(*made, tmp_path / "whole"))
    left = [f.name for f in (tmp_path / "run").rglob("*") if ".tmp-" in f.name]
    assert left == []


def test_a_shard_of_another_plan_is_refused(made, tmp_path):
    carry_out(*made, tmp_path / "run", shard=(1, 2))
    model, tokenizer, _ = made
    with pytest.raises(RunConflict, match="seed was 3, now 4"):
        carry_out(
            model, tokenizer, plan_of(model, tokenizer, seed=4), tmp_path / "run", shard=(2, 2)
        )


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_no_such_shard(made, tmp_path, shard):
    with pytest.raises(ValueError, match="from 1 to n"):
        carry_out(*made, tmp_path / "run", shard=shard)
    assert not (tmp_path / "run").exists()


def test_a_shard_neither_resumes_nor_overwrites(made, tmp_path):
    with pytest.raises(RunConflict, match="joins"):
        carry_out(*made, tmp_path / "run", shard=(1, 2), overwrite=True)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: tiny_model(seed=1), r"in float32 \(weights .*in float32 \(weights"),
        (lambda: tiny_model().to(torch.float64), "in float32 .*in float64"),
    ],
    ids=["other weights", "another type"],
)
@pytest.mark.parametrize("ways", [{"resume": True}, {"shard": (2, 2)}], ids=["resumed", "a shard"])
def test_a_runs_own_plan_is_not_carried_out_with_another_model(made, tmp_path, other, words, ways):
    """Whoever goes on passes the plan that the run holds: it says nothing of the model now."""
    model, tokenizer, plan = made
    run = carry_out(model, tokenizer, plan, tmp_path / "run", shard=(1, 2))
    parts(run.path, 2)["tokens"].write_bytes(b"damaged")  # would be removed in going on
    before = contents(run.path)
    with pytest.raises(RunConflict, match="not the one that the run was planned with") as caught:
        carry_out(other(), tokenizer, open_run(run.path).plan, run.path, **ways)
    assert contents(run.path) == before
    assert re.search(words, caught.value.why)
    assert "--revision" in caught.value.fix
    assert carry_out(tiny_model(), tokenizer, plan, run.path, resume=True).complete


def test_a_plan_of_another_model_begins_nothing(made, tmp_path):
    _, tokenizer, plan = made
    with pytest.raises(RunConflict, match="planned with"):
        carry_out(tiny_model(seed=1), tokenizer, plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_going_on_with_the_runs_own_plan_on_another_device_warns(made, tmp_path):
    model, tokenizer, plan = made
    run = carry_out(model, tokenizer, plan, tmp_path / "run", shard=(1, 2))
    manifest = run.path / "run.json"
    manifest.write_text(manifest.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    stored = open_run(run.path).plan
    assert stored.device == "cuda"
    with pytest.warns(UserWarning, match=r"device cuda \(now cpu\)"):
        carry_out(model, tokenizer, stored, run.path, resume=True)


@pytest.mark.parametrize(
    "error",
    [RunConflict("what", "why", "fix"), DiskFull(Path("run"), 1, 4), NotARun(Path("run"), "why")],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_a_run_survive_the_way_between_processes(error):
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
