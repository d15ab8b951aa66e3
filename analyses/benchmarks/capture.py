"""Generating with capture, ours against four other ways: time, tokens per second, extra memory.

Two workloads, rows of a fixed length and 16 rows a prompt with natural stops, on SmolLM2-135M and
on the organism. Same model, prompts and lengths; every engine in a fresh process, threads pinned,
medians with their spread. Ours and generate are tried at every batch size and measured at their
own best; the others run at generate's. Beside them stands the machine's limit: the time of the
bare matrix products of the steps that ours makes, and the share of it that ours reaches.

    python -m analyses.benchmarks.capture                                   # all, an hour or two
    python -m analyses.benchmarks.capture organism-stops --engines ours generate
    python -m analyses.benchmarks.capture smollm2-fixed --repeats 1 --shrink 8      # a quick look
    python -m analyses.benchmarks.capture smollm2-stops --keep FOLDER  # again, to go on if it ended
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from analyses.benchmarks.workloads import WORKLOADS, Workload

_ALL = ("ours", "generate", "generate+outputs", "transformer_lens", "nnsight")
_TUNED = ("ours", "generate")


def main(argv: list[str] | None = None) -> int:
    """Run the workloads; print a table for each, and write all figures where asked."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    if args.one:
        name, engine, batch, repeats = args.one
        work = _shrunk(WORKLOADS[name], args.shrink)
        print(json.dumps(measure(work, engine, int(batch), int(repeats), args.threads)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        args.keep = args.keep or Path(folder)
        args.keep.mkdir(parents=True, exist_ok=True)
        figures = {name: _compare(name, args) for name in args.workloads}
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(work: Workload, engine: str, batch: int, repeats: int, threads: int) -> dict:
    """Time one engine in this process; a first run gives the extra memory, and warms it up.

    With no repeats the first run is the one timed: enough to choose a batch size by.
    """
    import torch

    from analyses.benchmarks.engines import BACKENDS, ENGINES
    from analyses.benchmarks.machine import limit_seconds, peak_mb, pin
    from entropy_probe import load

    pin(threads)
    warnings.simplefilter("ignore")
    model, tokenizer = load(work.model, device="cpu", backend=BACKENDS.get(engine))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    prompts = work.inputs(tokenizer)
    seconds, rates = [], []

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        return ENGINES[engine](model, tokenizer, prompts, work, batch, seed)

    def timed(seed: int) -> int:
        start = time.perf_counter()
        made = run(seed)
        seconds.append(time.perf_counter() - start)
        rates.append(made / seconds[-1])
        return made

    extra = peak_mb(lambda: timed(0))
    made = [timed(repeat) for repeat in range(1, repeats + 1)]
    if made:
        del seconds[0], rates[0]
    found = {"batch": batch, "seconds": seconds, "rates": rates, "extra_mb": extra}
    if engine == "ours" and made:
        limit, passes = limit_seconds(model, lambda: run(repeats))
        found |= {"limit_seconds": limit, "limit_rate": made[-1] / limit, "passes": passes}
    return found


def _compare(name: str, args: argparse.Namespace) -> dict:
    """Measure every engine on a workload, at the best batch size; print as they come."""
    work = _shrunk(WORKLOADS[name], args.shrink)
    rows = work.prompts * work.n
    sizes = sorted({min(size, rows) for size in work.batch_sizes})
    stops = f"{work.tokens} tokens" if work.fixed else f"natural stops within {work.tokens} tokens"
    print(f"\n{name}: {work.prompts} prompts, {work.n} rows each, {stops}, {args.threads} threads")
    print(
        f"{'engine':17}{'batch':>6}{'median s':>10}{'spread':>16}{'tokens/s':>10}{'extra MB':>10}"
    )
    found, best = {}, {}
    for engine in args.engines:
        if engine in _TUNED and len(sizes) > 1 and not args.batch:
            tried = {size: _fresh(name, engine, size, 0, args) for size in sizes}
            best[engine] = max(sizes, key=lambda size, tried=tried: tried[size]["rates"][0])
        batch = args.batch or best.get(engine, best.get("generate", sizes[-1]))
        found[engine] = _fresh(name, engine, batch, args.repeats, args)
        _row(engine, found[engine])
    _summary(found)
    return {"workload": dataclasses.asdict(work), "engines": found}


def _row(engine: str, found: dict) -> None:
    seconds = found["seconds"]
    print(
        f"{engine:17}{found['batch']:6d}{statistics.median(seconds):10.2f}"
        f"{f'{min(seconds):.2f}-{max(seconds):.2f}':>16}"
        f"{statistics.median(found['rates']):10.0f}{found['extra_mb']:10.0f}",
        flush=True,
    )


def _summary(found: dict) -> None:
    """Print ours over each of the others, and the share of the machine's limit reached."""
    if "ours" not in found:
        return
    ours = found["ours"]
    rate = statistics.median(ours["rates"])
    for engine, other in found.items():
        if engine != "ours":
            times = rate / statistics.median(other["rates"])
            memory = ours["extra_mb"] / max(other["extra_mb"], 1)
            print(f"ours is {times:.2f}x {engine}, with {memory:.2f}x its extra memory")
    print(
        f"bare matrix products of the same {ours['passes']} passes: {ours['limit_seconds']:.2f} s, "
        f"{ours['limit_rate']:.0f} tokens/s; ours reaches {rate / ours['limit_rate']:.0%} of it"
    )


def _fresh(name: str, engine: str, batch: int, repeats: int, args: argparse.Namespace) -> dict:
    """Measure one engine in a process of its own, unless its figures have been kept."""
    kept = args.keep / f"{name}-{engine}-{batch}-{repeats}-{args.threads}-{args.shrink}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = [sys.executable, "-m", "analyses.benchmarks.capture", "--shrink", str(args.shrink)]
    command += ["--threads", str(args.threads), "--one", name, engine, str(batch), str(repeats)]
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | threads
    )
    if done.returncode:
        sys.exit(f"{engine} at batch {batch} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    kept.write_text(json.dumps(found))
    return found


def _shrunk(work: Workload, factor: int) -> Workload:
    """Divide a workload's prompts and tokens, for a quick look."""
    return dataclasses.replace(
        work, prompts=max(1, work.prompts // factor), tokens=max(4, work.tokens // factor)
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--engines", nargs="+", choices=_ALL, default=list(_ALL))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=1, help="do that part of each workload")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    parser.add_argument("--batch", type=int, help="rows at a time, in place of the best tried")
    parser.add_argument("--keep", type=Path, help="folder of figures, to go on where it ended")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(WORKLOADS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
