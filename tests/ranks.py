"""Ranks without processes: one function in several threads, whose gathers wait for each other."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor


def on_ranks(work: Callable[..., Any], inputs: Sequence[dict[str, Any]]) -> list[Any]:
    """Call ``work(gather=..., **inputs[rank])`` on every rank at once; give what each returns."""
    count = len(inputs)
    barrier = threading.Barrier(count, timeout=20)
    slots: list[Tensor | None] = [None] * count

    def gather_of(rank: int) -> Callable[[Tensor], list[Tensor]]:
        def gather(mine: Tensor) -> list[Tensor]:
            assert mine.dim() == 1
            slots[rank] = mine
            barrier.wait()
            found = list(slots)
            barrier.wait()
            return found

        return gather

    with ThreadPoolExecutor(count) as pool:
        futures = [
            pool.submit(work, gather=gather_of(rank), **inputs[rank]) for rank in range(count)
        ]
        return [future.result() for future in futures]
