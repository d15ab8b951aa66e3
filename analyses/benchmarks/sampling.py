"""Sampling with capture against Hugging Face `generate` without: time and extra memory.

Same model, prompts, n and natural stops; every engine and batch size in a fresh process, threads
pinned, medians with their spread. Ours captures entropy, log-probability, rank, 5 alternatives
and one layer's residuals at the forks.

    python -m analyses.benchmarks.sampling
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

ENGINES = ("generate", "ours")


def main(argv: list[str] | None = None) -> int:
    """Run every engine at every batch size, print a table and the ratio of the bests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="organism:amenable")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(args, args.one[0], int(args.one[1]))))
        return 0
    results = {}
    print(f"{'engine':10} {'batch':>6} {'s (median)':>11} {'spread':>14} {'tokens/s':>9} {'extra MB':>9}")
    for batch in args.batch_sizes:
        for engine in ENGINES:
            found = run_fresh(argv if argv is not None else sys.argv[1:], engine, batch)
            results[engine, batch] = found
            low, high = min(found["seconds"]), max(found["seconds"])
            print(
                f"{engine:10} {batch:6d} {found['median']:11.3f} {low:6.2f}-{high:6.2f} "
                f"{found['rate']:9.0f} {found['extra_mb']:9.0f}",
                flush=True,
            )
    best = {e: max((results[e, b]["rate"], b) for b in args.batch_sizes) for e in ENGINES}
    for engine, (rate, batch) in best.items():
        print(f"best {engine}: {rate:.0f} tokens/s at batch {batch}, "
              f"{results[engine, batch]['extra_mb']:.0f} MB extra")
    print(f"ratio ours / generate at their bests: {best['ours'][0] / best['generate'][0]:.2f}x")
    return 0


def run_fresh(argv: list[str], engine: str, batch: int) -> dict:
    """Measure one engine in a process of its own."""
    command = [sys.executable, "-m", "analyses.benchmarks.sampling", *argv]
    command += ["--one", engine, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, engine: str, batch: int) -> dict:
    """Time one engine; the first repeat warms up and is dropped."""
    import torch

    from entropy_probe import load
    from entropy_probe.tasks import get_task

    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model, device="cpu")
    prompts = [p.prompt for p in get_task(args.task).problems(args.prompts)]
    run = {"generate": _generate, "ours": _ours}[engine]
    before = _peak_mb()
    seconds, tokens = [], 0
    for repeat in range(args.repeats + 1):
        torch.manual_seed(repeat)
        start = time.perf_counter()
        tokens = run(model, tokenizer, prompts, args, batch, repeat)
        if repeat:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "median": median,
        "rate": tokens / median,
        "extra_mb": _peak_mb() - before,
    }


def _ours(model, tokenizer, prompts, args, batch: int, seed: int) -> int:
    from entropy_probe import sample

    depth = model.config.num_hidden_layers
    rollouts = sample(
        model, tokenizer, prompts, n=args.n, max_new_tokens=args.max_new_tokens, seed=seed,
        batch_size=batch, residual_layers=[depth // 2],
    )  # fmt: skip
    return int(rollouts.valid.sum())


def _generate(model, tokenizer, prompts, args, batch: int, seed: int) -> int:
    tokenizer.padding_side = "left"
    step, total = max(1, batch // args.n), 0
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    for start in range(0, len(prompts), step):
        inputs = tokenizer(prompts[start : start + step], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        out = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=args.n, max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        made = out[:, inputs["input_ids"].shape[1] :]
        total += sum(_length(row, ends) for row in made.tolist())
    return total


def _length(row: list[int], ends: list[int]) -> int:
    return next((i + 1 for i, token in enumerate(row) if token in ends), len(row))


def _peak_mb() -> float:
    """Give the process's peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
