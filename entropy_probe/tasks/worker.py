"""A process of its own for what may hang, eat memory or crash: reading hostile answers.

The process is started once and answers one request after another. One that takes too long is
killed and another takes its place, so that a hanging answer costs its time limit and nothing
else. No signal handler of the caller is touched, and any thread may ask.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from typing import Any

from entropy_probe.tasks.errors import TaskError

START_SECONDS = 60.0
"""CPU time that a process may take to import what it needs and to answer its first request."""

SLOWER = 5.0
"""Wall time over CPU time that a request may take, on a machine that does other things too."""

# The caller's search path comes first, so that the process finds the same packages.
_BOOT = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
hello = json.loads(sys.stdin.readline())
sys.path[:] = hello["path"]
from entropy_probe.tasks.answering import serve
serve(hello["target"])
"""


class Worker:
    """A process that runs one function of JSON values, under a time limit a call."""

    def __init__(self, target: str, *, first: Any, seconds: float | int = 3.0) -> None:
        """Note what to run; the process starts with the first request.

        Args:
            target: ``module:function``, of a JSON value to a JSON value.
            first: the request that shows that a fresh process works: it must answer true.
            seconds: CPU time a request; where the system cannot limit that, wall time.
        """
        if not seconds > 0:
            raise ValueError(f"expected a time limit above 0 seconds, got {seconds}")
        self.target, self.first, self.seconds = target, first, seconds
        self._begin_anew()

    def __reduce__(self) -> tuple:
        """Let the worker travel between processes: each has a process of its own."""
        return _worker, (self.target, self.first, self.seconds)

    def ask(self, request: Any, *, seconds: float | int | None = None) -> Any:
        """Give the answer to a request, or None where the process died or had to be killed.

        Args:
            request: a JSON value.
            seconds: another time limit, for this request.

        Raises:
            TaskError: a fresh process does not work.
        """
        if self._owner != os.getpid():
            self._begin_anew()  # after a fork: the pipes are the parent's
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()  # it died since, of no request: the system may have been out of memory
            if self._process is None:
                self._start()
            return self._exchange(request, seconds or self.seconds)

    def close(self) -> None:
        """End the process; another request starts a new one."""
        with self._lock:
            self._end()

    def _begin_anew(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._process: subprocess.Popen | None = None

    def _start(self) -> None:
        """Start a process and see that it works."""
        self._complaints = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints,
            # Libraries that go through sets would give other problems to every process.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        self._finalizer = weakref.finalize(self, _kill, self._process, os.getpid())
        self._write({"path": sys.path, "target": self.target})
        if self._exchange(self.first, START_SECONDS) is not True:
            self._complaints.seek(0)
            lines = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
            self._end()
            raise TaskError(
                f"the process that reads answers ({self.target}) does not work",
                lines[-1] if lines else "its first answer is not the one it should be",
                "check that the packages of the extra `tasks` import in this environment",
            )

    def _write(self, value: Any) -> None:
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()

    def _exchange(self, request: Any, seconds: float | int) -> Any:
        """Send a request and wait for its answer; None and no process where none comes."""
        late = threading.Timer(seconds * SLOWER, self._process.kill)
        late.daemon = True
        late.start()
        try:
            self._write({"seconds": seconds, "request": request})
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            late.cancel()
            late.join()
        if self._process.poll() is not None or not line.endswith(b"\n"):
            self._end()
        return json.loads(line) if line.endswith(b"\n") else None

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            with contextlib.suppress(OSError):  # what could not be written is of no use now
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None


def _worker(target: str, first: Any, seconds: float | int) -> Worker:
    return Worker(target, first=first, seconds=seconds)


def _kill(process: subprocess.Popen, owner: int) -> None:
    """End a process; one that a fork's parent owns is left alone."""
    if owner == os.getpid():
        process.kill()
