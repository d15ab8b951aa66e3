"""What `Recorder` adds to a training step and to generation: pairs of runs, with it and without.

One process, threads pinned; each pair runs the same batch in both ways, in alternating order, so
that a busy machine slows both alike. The share that it adds is the median over the pairs, with
the quartiles, of CPU time and of wall time. Steps are forward, backward and AdamW at all tokens.

    python -m analyses.benchmarks.recorder                       # a quarter of an hour
    python -m analyses.benchmarks.recorder organism --pairs 10
"""

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Loop:
    """A loop to record."""

    model: str
    """Reference for `entropy_probe.load`."""
    rows: int
    """Texts a batch."""
    tokens: int
    """Tokens of each: of a step, or generated."""
    pairs: int
    """Pairs of runs."""
    layers: tuple[int, ...] | None = ()
    """Layers to keep states of."""
    generate: bool = False
    """Whether the loop generates; else it trains."""


LOOPS = {
    "organism": Loop("organism:amenable", 32, 96, 40),
    "organism-states": Loop("organism:amenable", 32, 96, 40, layers=(2,)),
    "organism-generate": Loop("organism:amenable", 32, 64, 12, generate=True),
    "smollm2": Loop("smollm2", 4, 128, 9),
    "smollm2-states": Loop("smollm2", 4, 128, 9, layers=(15,)),
    "smollm2-generate": Loop("smollm2", 4, 24, 7, generate=True),
}


def main(argv: list[str] | None = None) -> int:
    """Measure the loops; print a line for each, and write all figures where asked."""
    from analyses.benchmarks.machine import pin

    args = _parse(sys.argv[1:] if argv is None else argv)
    pin(args.threads)
    warnings.simplefilter("ignore")
    print(f"share of time that the recorder adds, median (quartiles), {args.threads} threads")
    print(f"{'loop':20}{'step s':>8}{'pairs':>7}{'CPU time':>26}{'wall time':>26}{'texts':>7}")
    figures = {}
    for name in args.loops:
        found = figures[name] = measure(LOOPS[name], args.pairs or LOOPS[name].pairs)
        cpu, wall = (_words(found[kind]) for kind in ("cpu", "wall"))
        pairs = len(found["cpu"])
        print(
            f"{name:20}{found['step_seconds']:8.3f}{pairs:7d}{cpu:>26}{wall:>26}{found['texts']:7d}",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(loop: Loop, pairs: int) -> dict:
    """Give the shares that recording adds to a loop, a pair each."""
    import torch

    from entropy_probe import load
    from entropy_probe.training.recorder import Recorder

    model, _ = load(loop.model, device="cpu")
    torch.manual_seed(0)
    ids = torch.randint(10, model.config.vocab_size, (loop.rows, loop.tokens))
    run = _generation(model, ids, loop) if loop.generate else _training(model, ids)
    recorder = Recorder(model, loop.layers, keep=128)

    def timed(recorded: bool) -> tuple[float, float]:
        gc.collect()
        with recorder if recorded else nullcontext():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if recorded:
                recorder.records()  # what waits is part of the cost
            return time.process_time() - cpu, time.perf_counter() - wall

    for recorded in (False, True):
        timed(recorded)
    shares = {"cpu": [], "wall": []}
    steps = []
    for pair in range(pairs):
        found = {recorded: timed(recorded) for recorded in (pair % 2 == 0, pair % 2 == 1)}
        steps.append(found[False][1])
        for i, kind in enumerate(shares):
            shares[kind].append(found[True][i] / found[False][i] - 1)
    return shares | {
        "loop": asdict(loop), "step_seconds": statistics.median(steps),
        "texts": len(recorder.records()),
    }  # fmt: skip


def _training(model, ids) -> Callable[[], None]:
    """Give a training step on a batch; the learning rate is too small to matter."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-8)
    model.train()

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _generation(model, ids, loop: Loop) -> Callable[[], None]:
    """Give a generation of some tokens a row after a prompt of sixteen."""

    def generate() -> None:
        model.generate(
            input_ids=ids[:, :16], max_new_tokens=loop.tokens, do_sample=True, eos_token_id=None,
            pad_token_id=0, top_k=0,
        )  # fmt: skip

    return generate


def _words(shares: list[float]) -> str:
    """Give median and quartiles, in per cent."""
    low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loops", nargs="*", default=list(LOOPS), metavar="LOOP")
    parser.add_argument("--pairs", type=int, help="pairs of runs, in place of each loop's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    args = parser.parse_args(argv)
    if unknown := set(args.loops) - set(LOOPS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(LOOPS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
