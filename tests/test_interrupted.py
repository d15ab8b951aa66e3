"""Captures that are killed, that fill the disk or that meet another writer: whole or resumable."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from contents import contents
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import capture, open_run
from entropy_probe.storage import files
from entropy_probe.storage.errors import DiskFull, RunConflict, RunError

PROMPTS = [f"w{i} w{i + 1} " for i in range(24)]
OPTIONS = {"n": 2, "max_new_tokens": 16, "residual_layers": [0, 2], "chunk_prompts": 2, "seed": 5}
FLUSHES = 2 + 4 * 2  # of run.json, and of the four parts of a chunk: the file, then its folder


def run_capture(out, prompts, die_at=None, started=None):
    """Capture in a process of its own; with ``die_at``, kill it at that flush to disk."""
    torch.set_num_threads(1)
    flush, count = files._flush, iter(range(10**6))

    def dying(path, flags):
        if next(count) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path, flags)

    files._flush = dying
    made = tiny_model(), tiny_tokenizer()
    if started is not None:
        started.set()
    try:
        return capture(*made, PROMPTS[:prompts], out, resume=True, **OPTIONS)
    finally:
        files._flush = flush


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
    """Give the content of a run that nothing has interrupted, by its number of prompts."""
    made = {}

    def content_of(prompts):
        if prompts not in made:
            path = tmp_path_factory.mktemp("whole") / "run"
            run_capture(path, prompts)
            made[prompts] = contents(path)
        return made[prompts]

    return content_of


def assert_readable(path):
    """Every chunk that is there is whole."""
    if (path / "run.json").exists():
        run = open_run(path)
        if run.chunks:
            assert len(run.rollouts()) == 4 * len(run.chunks)


@pytest.mark.parametrize(
    ("kills", "prompts"),
    [(2, 8), pytest.param(10, 24, marks=pytest.mark.slow)],
    ids=["twice", "ten times"],
)
def test_killed_at_random_moments_and_resumed_it_is_the_unbroken_run(
    processes, whole, tmp_path, kills, prompts
):
    chance, out = random.Random(kills), tmp_path / "run"
    expected = whole(prompts)
    died = 0
    while died < kills:
        started = processes.Event()
        process = processes.Process(target=run_capture, args=(out, prompts, None, started))
        process.start()
        started.wait(60)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.join()
        died += process.exitcode == -signal.SIGKILL
        assert_readable(out)
        if process.exitcode == 0:
            # It was quicker than the axe: begin again.
            assert contents(out) == expected
            shutil.rmtree(out)
    run_capture(out, prompts)
    assert contents(out) == expected


SOME = range(0, 2 * FLUSHES + 2, 3)


@pytest.mark.parametrize(
    "flush",
    [f if f in SOME else pytest.param(f, marks=pytest.mark.slow) for f in range(2 * FLUSHES + 2)],
)
def test_killed_at_any_flush_and_resumed_it_is_the_unbroken_run(processes, whole, tmp_path, flush):
    out = tmp_path / "run"
    process = processes.Process(target=run_capture, args=(out, 4, flush))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert_readable(out)
    run_capture(out, 4)
    assert contents(out) == whole(4)


@pytest.fixture
def small_disk(tmp_path):
    """Give a folder on a disk of its own, and a way to set the size of that disk."""
    path = tmp_path / "disk"
    path.mkdir()

    def resize(size, *, again=True):
        options = f"{'remount,' if again else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        return subprocess.run(command, capture_output=True, text=True)  # noqa: S603

    first = resize("16k", again=False)
    if first.returncode:
        pytest.skip(f"no small disk can be mounted here: {first.stderr.strip()}")
    yield path, resize
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("size", ["24k", "44k", "60k", "72k", "100k"])
def test_a_full_disk_keeps_what_is_whole_and_the_rest_follows(small_disk, whole, size):
    disk, resize = small_disk
    resize(size)
    out = disk / "run"
    with pytest.raises(DiskFull, match="the disk is full: chunk") as caught:
        run_capture(out, 8)
    assert caught.value.committed == len(open_run(out).chunks)
    assert f"{caught.value.committed} chunks are saved and whole" in caught.value.why
    assert "--resume" in caught.value.fix
    assert not [name for name in contents(out) if ".tmp-" in name or ".lock" in name]
    assert_readable(out)
    resize("10m")
    run_capture(out, 8)
    assert contents(out) == whole(8)


def test_a_disk_too_full_to_begin_on_is_left_as_it_was(small_disk):
    disk, resize = small_disk
    resize("4k")
    (disk / "filler").write_bytes(bytes(4096))
    with pytest.raises(RunError, match="No space left"):
        run_capture(disk / "run", 8)
    assert [path.name for path in disk.iterdir()] == ["filler"]
    resize("8k")
    with pytest.raises(DiskFull, match="chunk 1 of 4 was not written"):
        run_capture(disk / "run", 8)
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_second_writer_is_refused_while_the_first_one_writes(processes, tmp_path):
    out, started = tmp_path / "run", processes.Event()
    process = processes.Process(target=run_capture, args=(out, 6, None, started))
    process.start()
    started.wait(60)
    while not (out / "run.json").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RunConflict, match="another process is writing") as caught:
            run_capture(out, 6)
        assert f"process {process.pid} on" in caught.value.why
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.join(120)
    assert process.exitcode == 0
    assert open_run(out).complete
