"""What the process of a `Worker` runs in tests: it answers, sleeps, spins, dies or prints."""

import os
import sys
import time


def reply(request):
    """Do what the request says."""
    does = DEEDS.get(request) if isinstance(request, str) else None
    return ["heard", request] if does is None else does()


def spin():
    while True:
        pass


def fail():
    raise OSError("nobody expected this")


def deep():
    return deep()


def speak(answer=None):
    sys.stdout.write("a library that is not quiet\n")
    sys.stdout.flush()
    sys.stderr.write("nor here\n")
    os.write(1, b"raw noise\n")
    return answer


DEEDS = {
    "first": lambda: speak(True),
    "spin": spin,
    "power": lambda: (9**9**9) % 2,  # one instruction, which no exception interrupts
    "sleep": lambda: time.sleep(60),
    "die": lambda: os._exit(3),
    "raise": fail,
    "deep": deep,
    "memory": lambda: len(bytearray(64 * 2**30)),
    "print": lambda: speak("said"),
    "pid": os.getpid,
    "hash": lambda: hash("text"),
}


def unfit(request):
    """Answer the first request wrongly."""
    return False


def broken(request):
    raise RuntimeError("the library is broken")
