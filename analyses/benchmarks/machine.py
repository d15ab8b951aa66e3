"""What a measurement stands on: pinned threads, peak memory, and the machine's limit."""

import ctypes
import gc
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


def pin(threads: int) -> None:
    """Compute on the first so many CPUs, a thread each."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def peak_mb(run: Callable[[], object]) -> float:
    """Give how far the process's memory rose above what it was, while something ran (Linux)."""
    with watching_peak() as risen:
        run()
    return risen()


def measure(run: Callable[[], object], repeats: int, on_cuda: bool) -> dict:
    """Give the seconds of each run, the extra MB at the peak of one before, and the last result."""
    import torch

    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        extra = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        extra = peak_mb(run)
    seconds, result = [], None
    for _ in range(repeats):
        result = None  # its memory must not lie beside the next one's
        start = time.perf_counter()
        result = run()
        if on_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "extra": extra, "result": result}


@contextmanager
def watching_peak() -> Iterator[Callable[[], float]]:
    """Yield what gives how far the process's memory rose above what it was, in MB (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading freed must not hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    yield lambda: (_status("VmHWM") - before) / 1024


def limit_seconds(model, run: Callable[[], object]) -> tuple[float, int]:
    """Give the time of the bare matrix products of what is run, and how many passes it makes.

    Every product of a linear layer is done alone, with as many rows as it has in each pass;
    between the sizes that are timed, time is interpolated.
    """
    import torch

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    seen = {layer: Counter() for layer in layers}

    def note(layer, inputs):
        seen[layer][inputs[0].numel() // inputs[0].shape[-1]] += 1

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    kinds = {}
    for layer, counts in seen.items():
        kinds.setdefault((tuple(sorted(counts.items())), tuple(layer.weight.shape)), []).append(
            layer
        )
    total = 0.0
    for (counts, _), alike in kinds.items():
        most = max(rows for rows, _ in counts)
        times = _times([layer.weight for layer in alike], most)
        total += sum(number * _between(times, rows) for rows, number in counts)
    return total, sum(seen[layers[-1]].values())


def _times(weights: list, most: int) -> list[tuple[int, float]]:
    """Give (rows, seconds) of products of some rows with all of the weights, up to a size."""
    import torch

    sizes = [size for size in _SIZES if size < most] + [most]
    found = []
    with torch.no_grad():
        for rows in sizes:
            inputs = torch.randn(rows, weights[0].shape[1], dtype=weights[0].dtype)
            taken = []
            for _ in range(6):
                start = time.perf_counter()
                for weight in weights:
                    torch.nn.functional.linear(inputs, weight)
                taken.append(time.perf_counter() - start)
            found.append((rows, statistics.median(taken[1:])))
    return found


def _between(times: list[tuple[int, float]], rows: int) -> float:
    """Interpolate the time of some rows."""
    below = max(t for t in times if t[0] <= rows)
    above = min(t for t in times if t[0] >= rows)
    if below[0] == above[0]:
        return below[1]
    share = (rows - below[0]) / (above[0] - below[0])
    return below[1] + share * (above[1] - below[1])


def _status(name: str) -> int:
    """Give a line of the process's status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {name}")
