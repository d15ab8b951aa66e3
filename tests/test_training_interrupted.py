"""Training that is killed and resumed: the weights of the unbroken run, bit for bit."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from words import Words, quick

from entropy_probe.training import checkpoints
from entropy_probe.training.journal import read_log
from entropy_probe.training.trainer import train

OPTIONS = {
    "steps": 8, "optimizer": "adamw", "lr": 0.003, "warmup": 2, "decay": "linear", "updates": 2,
    "rollouts_every": 2, "evaluate_every": 3, "evaluate_problems": 4, "checkpoint_every": 2,
}  # fmt: skip


def run_training(out, die_at=None, started=None):
    """Train in a process of its own; with ``die_at``, kill it at that flush of a checkpoint."""
    torch.set_num_threads(1)
    sync, count = checkpoints._sync, iter(range(10**6))

    def dying(path):
        if next(count) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    checkpoints._sync = dying
    model = tiny_model()
    if started is not None:
        started.set()
    try:
        train(model, tiny_tokenizer(), Words(), config=quick(**OPTIONS), out=out, resume=True)
    finally:
        checkpoints._sync = sync
    return model


@pytest.fixture(scope="module")
def processes():
    """Give a way to start processes that have the libraries loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["loaded"])
        yield context


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the weights and the log of a run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_training(out).state_dict(), untimed(out)


def untimed(out):
    return [
        {k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "created"))}
        for line in read_log(out)
    ]


def assert_whole(model, out, whole):
    weights, log = whole
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert untimed(out) == log
    left = [path.name for path in out.rglob("*") if ".tmp-" in path.name or ".lock" in path.name]
    assert left == []


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_is_the_unbroken_run(processes, whole, tmp_path):
    chance, out, died = random.Random(7), tmp_path / "run", 0
    while died < 4:
        started = processes.Event()
        process = processes.Process(target=run_training, args=(out, None, started))
        process.start()
        started.wait(120)
        time.sleep(chance.uniform(0.2, 1.5))
        process.kill()
        process.join()
        died += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            shutil.rmtree(out)  # it was quicker than the axe: begin again
    assert_whole(run_training(out), out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("flush", [0, 3, 8, 9, 17])
def test_killed_while_a_checkpoint_is_written_it_is_the_unbroken_run(
    processes, whole, tmp_path, flush
):
    out = tmp_path / "run"
    process = processes.Process(target=run_training, args=(out, flush))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert_whole(run_training(out), out, whole)
