"""What the process of a `Worker` runs: requests in, answers out, a line each."""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

MEMORY = 2 * 2**30
"""Bytes that the process may take on top of what it begins with."""


def serve(target: str) -> None:
    """Answer requests until there are no more.

    A request that takes more CPU time than allowed ends the process, by the system and not by
    an exception: nothing that runs can catch it, and code that holds the interpreter is ended
    too. So is a process whose caller is gone.

    Args:
        target: ``module:function``, of a JSON value to a JSON value.
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    first = True
    for line in sys.stdin:
        given = json.loads(line)
        _limit_time(given["seconds"])
        try:
            answer = function(given["request"])
        except (MemoryError, RecursionError):
            answer = None
        _limit_time(0.0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if first:  # it has imported what the others use
            _limit_memory()
        first = False


def _limit_memory() -> None:
    """Make too large an allocation an error, where the system can."""
    try:
        import resource
    except ImportError:
        return
    pages = Path("/proc/self/statm")
    taken = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + MEMORY
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _limit_time(seconds: float | int) -> None:
    """End the process after so much CPU time, where the system can; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
