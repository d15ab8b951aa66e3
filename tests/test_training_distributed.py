"""Two processes over gloo do what one does, and none waits for the other in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from two_ranks import training

from entropy_probe.training.distributed import Ranks

HERE = Path(__file__).parent


def two(name, out, **options):
    """Run a function of `two_ranks` in two processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(HERE / "two_ranks.py"), name, str(out), json.dumps(options),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]


def one(out, **options):
    training(out, options)


def results(out):
    lines = json.loads((out / "log.json").read_text())
    return [
        {k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per"))}
        for line in lines
    ]


def assert_alike(one, other):
    """Counts and masks are equal, numbers to rounding."""
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, float):
                assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            else:
                assert theirs[name] == value, name


def assert_moved_alike(one, other):
    start = tiny_model().state_dict()
    moved = sum(((one[n] - start[n]) ** 2).sum() for n in start).sqrt()
    apart = sum(((one[n] - other[n]) ** 2).sum() for n in start).sqrt()
    assert moved > 0
    assert apart / moved < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"selection": {"normalizer": "valid", "select": "random"}, "updates": 2, "prompts": 5},
        {
            "selection": {"scope": "group", "entropy_source": "current"},
            "overlong": "drop",
            "max_new_tokens": 32,
        },
        {"resample": 2, "optimizer": "adamw", "lr": 1e-4, "beta": 0.1, "evaluate_every": 2},
    ],  # fmt: skip
    ids=["plain", "parts", "current", "resampled"],
)
def test_two_processes_train_as_one(tmp_path, options):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one(tmp_path / "one", **options)
    two("training", tmp_path / "two", **options)
    assert_alike(results(tmp_path / "one"), results(tmp_path / "two"))
    weights = [torch.load(tmp_path / name / "weights.pt") for name in ("one", "two")]
    assert_moved_alike(*weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "adamw", "micro_batch_tokens": 40, "evaluate_every": 3}]
)
def test_a_sharded_model_trains_as_a_whole_one(tmp_path, options):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    options |= {"max_new_tokens": 16, "lr": 1e-3, "steps": 4}
    one(tmp_path / "one", **options)
    two("training", tmp_path / "two", shard=True, **options)
    assert_alike(results(tmp_path / "one"), results(tmp_path / "two"))
    trained = type(tiny_model()).from_pretrained(tmp_path / "two/run/checkpoints/step-00004")
    assert_moved_alike(torch.load(tmp_path / "one" / "weights.pt"), trained.state_dict())


@pytest.mark.slow
def test_a_sharded_run_is_gone_on_with(tmp_path):
    from entropy_probe.training.checkpoints import find_checkpoints

    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
        options = {"shard": True, "optimizer": "adamw", "lr": 1e-3, "steps": 4}
        two("training", tmp_path / name, **options)
    last = find_checkpoints(tmp_path / "part" / "run")[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    two("training", tmp_path / "part", **options)
    kind = type(tiny_model())
    whole, part = (
        kind.from_pretrained(tmp_path / name / "run/checkpoints/step-00004").state_dict()
        for name in ("whole", "part")
    )
    assert all(torch.equal(whole[name], part[name]) for name in whole)


@pytest.mark.slow
def test_processes_with_rows_of_other_lengths_decode_in_lockstep(tmp_path):
    two("lockstep", tmp_path)
    widths = [int((tmp_path / f"done-{i}").read_text()) for i in range(2)]
    assert widths[0] < widths[1]


@pytest.mark.slow
def test_wrappers_reduce_the_sparse_steps_gradients(tmp_path):
    """Outside a wrapper's own forward one leaves them unsynchronised, and the other raises."""
    two("wrapped", tmp_path)
    for rank in range(2):
        apart = json.loads((tmp_path / f"apart-{rank}").read_text())
        assert set(apart) == {"replica", "sharded"}
        assert max(apart.values()) < 1e-5


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_all(tmp_path):
    two("first", tmp_path)
    assert (tmp_path / "said-0").read_text() == "ValueError: the disk is full"
    said = (tmp_path / "said-1").read_text()
    assert said == "RuntimeError: the first process failed: the disk is full"
    two("failing", tmp_path)
    assert "failed in another process" in (tmp_path / "said-0").read_text()
    assert "raised KeyError" in (tmp_path / "said-1").read_text()
    assert (tmp_path / "run" / "checkpoints" / "step-00001").is_dir()


def test_one_process_is_all_there_is():
    ranks = Ranks()
    assert ranks.main
    assert ranks.share(5) == range(5)
    assert ranks.gatherer is None
    assert [t.tolist() for t in ranks.gather(torch.arange(2))] == [[0, 1]]
    assert (ranks.any(True), ranks.all(False), ranks.first(lambda: 3)) == (True, False, 3)
    with pytest.raises(ValueError, match="boom"):
        ranks.first(_boom)


def _boom():
    raise ValueError("boom")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_even_and_whole(count):
    shares = [Ranks(i, count).share(10) for i in range(count)]
    assert [i for share in shares for i in share] == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
