"""A request that hangs, crashes or eats memory costs itself alone, from any thread."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from entropy_probe.tasks.errors import TaskError
from entropy_probe.tasks.worker import Worker


@pytest.fixture
def worker():
    worker = Worker("answers:reply", first="first", seconds=0.3)
    yield worker
    worker.close()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def ended(pid, seconds=20.0):
    """Wait for a process to end."""
    until = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def test_answers_come_from_one_process(worker):
    assert worker.ask("a") == ["heard", "a"]
    assert worker.ask({"deep": [1, None, "\ud800\x00\u202e"]})[1]["deep"][2] == "\ud800\x00\u202e"
    pid = worker.ask("pid")
    assert pid == worker.ask("pid") != os.getpid()
    assert worker.ask("x" * 2_000_000)[1] == "x" * 2_000_000


@pytest.mark.parametrize("request_", ["spin", "power", "die", "raise"])
def test_what_hangs_or_dies_is_replaced(worker, request_):
    before = worker.ask("pid")
    assert worker.ask(request_) is None
    assert worker.ask("b") == ["heard", "b"]
    assert worker.ask("pid") != before
    assert ended(before)


def test_one_that_died_while_it_was_idle_costs_no_answer(worker):
    before = worker.ask("pid")
    os.kill(before, signal.SIGKILL)
    assert ended(before)
    assert worker.ask("b") == ["heard", "b"]
    assert worker.ask("pid") != before


def test_what_sleeps_is_killed_by_the_clock(worker):
    worker.ask("a")
    start = time.monotonic()
    assert worker.ask("sleep", seconds=0.1) is None
    assert time.monotonic() - start < 30
    assert worker.ask("b") == ["heard", "b"]


@pytest.mark.parametrize("request_", ["deep", "memory"])
def test_what_goes_too_deep_or_too_large_is_an_answer_of_none(worker, request_):
    before = worker.ask("pid")
    assert worker.ask(request_, seconds=20) is None
    assert worker.ask("pid") == before


def test_what_is_printed_is_no_answer(worker):
    assert worker.ask("print") == "said"
    assert worker.ask("c") == ["heard", "c"]


def test_hashes_are_the_same_in_every_process(worker):
    code = "print(hash('text'))"
    fixed = {"PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=fixed, capture_output=True, check=True)
    assert worker.ask("hash") == int(done.stdout)


def test_threads_share_a_worker(worker):
    found, alarms = {}, signal.getsignal(signal.SIGALRM)

    def ask(i):
        found[i] = worker.ask("spin" if i == 3 else i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == {i: None if i == 3 else ["heard", i] for i in range(8)}
    assert signal.getsignal(signal.SIGALRM) == alarms
    assert signal.getitimer(signal.ITIMER_REAL) == signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_a_worker_travels_and_starts_its_own_process(worker):
    other = pickle.loads(pickle.dumps(worker))
    assert other.ask("pid") != worker.ask("pid")
    assert other.seconds == worker.seconds
    other.close()


def test_a_fork_has_a_process_of_its_own(worker):
    mine = worker.ask("pid")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(worker.ask("pid")).encode())
        worker.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert int(os.read(reading, 100)) != mine
    assert worker.ask("pid") == mine


def test_no_process_is_left_behind(worker):
    pid = worker.ask("pid")
    worker.close()
    assert ended(pid)
    dropped = Worker("answers:reply", first="first")
    pid = dropped.ask("pid")
    assert is_running(pid)
    del dropped
    gc.collect()
    assert ended(pid)


@pytest.mark.parametrize("request_", ["pid", "power"])
def test_a_killed_caller_leaves_nothing_running(tmp_path, request_):
    code = f"""
import sys, threading
sys.path[:] = {sys.path!r}
from entropy_probe.tasks.worker import Worker
worker = Worker("answers:reply", first="first", seconds=0.5)
print(worker.ask("pid"), flush=True)
worker.ask({request_!r})
print("done", flush=True)
sys.stdin.read()
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(caller.stdout.readline())
    if request_ == "pid":
        caller.stdout.readline()
    assert is_running(pid)
    caller.kill()
    caller.communicate()
    assert ended(pid)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("answers:unfit", "its first answer is not the one it should be"),
        ("answers:broken", "RuntimeError: the library is broken"),
        ("nothing_here:reply", "No module named 'nothing_here'"),
        ("answers:nothing", "no attribute 'nothing'"),
    ],
)
def test_a_process_that_does_not_work_is_told_at_once(target, why):
    worker = Worker(target, first="first")
    with pytest.raises(TaskError, match=f"does not work\nwhy: .*{why}"):
        worker.ask("a")


def test_a_time_limit_is_above_zero():
    with pytest.raises(ValueError, match="time limit above 0 seconds, got 0"):
        Worker("answers:reply", first="first", seconds=0)
