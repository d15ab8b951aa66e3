"""What the tests of the runner compute: runs of no cost, some of which go wrong."""

import os
import time
from pathlib import Path


def double(settings):
    """Give twice a number, with what a line says of the weights."""
    return {"doubled": 2 * settings["value"] + settings["seed"], "weights": "abc"}


def fail_at_one(settings):
    """Fail where the seed is 1."""
    if settings["seed"] == 1:
        raise ValueError("a planted failure")
    return {"doubled": settings["seed"]}


def infinite(settings):
    """Give what is no JSON."""
    return {"doubled": float("inf")}


def wait(settings):
    """Say that it runs, as whom, and do so until it is ended."""
    Path(settings["started"]).write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)
