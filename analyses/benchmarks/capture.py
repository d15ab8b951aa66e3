"""Generating with capture, ours against four other ways: time, tokens per second, extra memory.

Two workloads: rows of a fixed length, and n rows a prompt with natural stops. Same model, prompts
and lengths; every engine and batch size in a fresh process, threads pinned, medians with their
spread; beside them the time of the bare matrix products of the same steps, the machine's limit.

    python -m analyses.benchmarks.capture                       # n=16, natural stops, organism
    python -m analyses.benchmarks.capture --model smollm2 --fixed --prompts 8 --n 1 --tokens 48 \\
        --batch-sizes 8 --engines ours generate generate+outputs transformer_lens nnsight
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

TEXTS = (
    "Once upon a time, in a town by the sea, there lived",
    "The three most important things about learning to cook are",
    "Q: A train leaves at noon and travels at 60 miles an hour. How far is it by 3 o'clock? A:",
    "def fibonacci(n):",
    "In 1969, people first walked on the Moon. What many do not know is that",
    "My favourite season is autumn, because",
    "To be or not to be: that is",
    "The recipe calls for two eggs, a cup of flour and",
)


def main(argv: list[str] | None = None) -> int:
    """Run the engines at every batch size; print a table, and the ratios of the bests."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parse(argv)
    if args.one:
        print(json.dumps(measure(args, args.one[0], int(args.one[1]))))
        return 0
    print(
        f"{'engine':17}{'batch':>6}{'median s':>10}{'spread':>16}{'tokens/s':>10}{'extra MB':>10}"
    )
    results = {}
    for engine in args.engines:
        for batch in args.batch_sizes:
            found = results[engine, batch] = _run_fresh(argv, engine, batch)
            spread = f"{min(found['seconds']):.2f}-{max(found['seconds']):.2f}"
            print(
                f"{engine:17}{batch:6d}{found['median']:10.2f}{spread:>16}"
                f"{found['rate']:10.0f}{found['extra_mb']:10.0f}",
                flush=True,
            )
    _summary(args, results)
    return 0


def _summary(args: argparse.Namespace, results: dict) -> None:
    """Print each engine's best, ours over it, and the share of the machine's limit reached."""
    best = {e: max(args.batch_sizes, key=lambda b: results[e, b]["rate"]) for e in args.engines}
    ours = results["ours", best["ours"]]
    for engine, batch in best.items():
        found = results[engine, batch]
        print(
            f"best of {engine}: {found['rate']:.0f} tokens/s at batch {batch}, "
            f"{found['extra_mb']:.0f} MB extra; ours is {ours['rate'] / found['rate']:.2f}x"
        )
    print(
        f"bare matrix products at batch {best['ours']}: {ours['limit_rate']:.0f} tokens/s; "
        f"ours reaches {ours['rate'] / ours['limit_rate']:.0%} of it"
    )


def measure(args: argparse.Namespace, engine: str, batch: int) -> dict:
    """Time one engine in this process; the first repeat warms up and is dropped."""
    import torch

    from analyses.benchmarks.engines import ENGINES

    torch.set_num_threads(args.threads)
    model, tokenizer, prompts = _prepare(args, engine)
    before = _peak_mb()
    seconds, tokens = [], []
    for repeat in range(args.repeats + 1):
        torch.manual_seed(repeat)
        start = time.perf_counter()
        made = ENGINES[engine](model, tokenizer, prompts, args, batch, repeat)
        if repeat:
            seconds.append(time.perf_counter() - start)
            tokens.append(made)
    rates = [made / s for made, s in zip(tokens, seconds, strict=True)]
    return {
        "seconds": seconds,
        "median": statistics.median(seconds),
        "rate": statistics.median(rates),
        "extra_mb": _peak_mb() - before,
        "limit_rate": _limit_rate(model, batch) if engine == "ours" else None,
    }


def _prepare(args: argparse.Namespace, engine: str):
    """Load the model for an engine, and the prompts."""
    from entropy_probe import load

    backend = engine if engine in ("transformer_lens", "nnsight") else "transformers"
    model, tokenizer = load(args.model, device="cpu", backend=backend)
    if args.task:
        from entropy_probe.tasks import get_task

        prompts = [p.prompt for p in get_task(args.task).problems(args.prompts)]
    else:
        prompts = [TEXTS[i % len(TEXTS)] for i in range(args.prompts)]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if args.fixed and engine == "ours":
        # No id ends a row: -1 is never drawn.
        model.generation_config.eos_token_id = -1
    return model, tokenizer, prompts


def _limit_rate(model, batch: int) -> float:
    """Give tokens per second if a step were only its matrix products, at this batch size."""
    import torch

    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(batch, w.shape[1], dtype=w.dtype) for w in weights}
    seconds = []
    with torch.no_grad():
        for _ in range(12):
            start = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds[2:])


def _run_fresh(argv: list[str], engine: str, batch: int) -> dict:
    """Measure one engine in a process of its own."""
    command = [sys.executable, "-m", "analyses.benchmarks.capture", *argv]
    done = subprocess.run(
        [*command, "--one", engine, str(batch)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{engine} at batch {batch} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_mb() -> float:
    """Give the process's peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="organism:amenable")
    parser.add_argument("--task", help="a task's problems as prompts; default for organisms")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96, help="most new tokens a row")
    parser.add_argument("--fixed", action="store_true", help="no stops: every row is that long")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--engines", nargs="+", default=["ours", "generate"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task is None and args.model.startswith("organism:"):
        args.task = "arithmetic"
    return args


if __name__ == "__main__":
    sys.exit(main())
