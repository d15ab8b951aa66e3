"""An RL update on fixed completions, ours against TRL's: time, CPU time and extra memory.

Same model, completions and micro-batch rows; every way in a fresh process, threads pinned. An
update is all that makes its gradients, the mask included; the optimizer's own step, equal for all,
is in none. Memory is what the first update takes at its peak beyond parameters, gradients and
optimizer state. Beside the table stands how long the bare matrix products of ours and of TRL's
would take on this machine.

    python -m analyses.benchmarks.update                             # all, an hour or two
    python -m analyses.benchmarks.update smollm2 --rows 16 --repeats 1 --engines ours trl
    python -m analyses.benchmarks.update smollm2 --whole             # rollout and update
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from analyses.benchmarks.update_batches import CASES

_ALL = (
    "ours", "ours current", "ours dense", "trl", "trl fused", "ours bf16", "trl bf16",
)  # fmt: skip
_WHOLE = ("ours", "trl")


def main(argv: list[str] | None = None) -> int:
    """Run the cases; print a table for each."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    if args.one:
        print(json.dumps(_one(args)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        args.keep = args.keep or Path(folder)
        args.keep.mkdir(parents=True, exist_ok=True)
        for name in args.cases:
            _compare(name, args)
    return 0


def _compare(name: str, args: argparse.Namespace) -> None:
    """Measure every way on a case; print as they come."""
    what = "rollout and update" if args.whole else "update"
    facts = _fresh(name, "batch", args)
    print(
        f"\n{name}, {what}: {args.rows} rows ({facts['valid']} tokens of completions, longest "
        f"{facts['longest']}; prompts of {facts['prompts']}), micro-batches of "
        f"{args.micro_rows} rows, {args.threads} threads"
    )
    print(f"{'':14}{'runs':>5}{'median s':>10}{'spread':>16}{'CPU s':>8}{'extra MB':>10}")
    found = {}
    for engine in _WHOLE if args.whole else args.engines:
        found[engine] = _fresh(name, engine, args)
        seconds = found[engine]["seconds"]
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(
            f"{engine:14}{len(seconds):5d}{statistics.median(seconds):10.2f}{spread:>16}"
            f"{statistics.median(found[engine]['cpu']):8.2f}{found[engine]['extra_mb']:10.0f}"
            + f"  {found[engine]['sampled']} tokens sampled"
            * args.whole,
            flush=True,
        )
    for mine, theirs in (
        ("ours", "trl"), ("ours current", "trl"), ("ours", "ours dense"), ("ours", "trl fused"),
        ("ours bf16", "trl bf16"), ("ours bf16", "trl"),
    ):  # fmt: skip
        if mine in found and theirs in found:
            _ratios(mine, theirs, found)
    if "products" in facts and not args.whole:
        _ceilings(facts, found)


def _ratios(mine: str, theirs: str, found: dict) -> None:
    """Print one way over another."""
    one, other = found[mine], found[theirs]
    time_, cpu = (
        statistics.median(one[key]) / statistics.median(other[key]) for key in ("seconds", "cpu")
    )
    memory = one["extra_mb"] / max(other["extra_mb"], 1e-9)
    print(f"{mine} / {theirs}: time {time_:.2f}x, CPU {cpu:.2f}x, extra memory {memory:.2f}x")


def _ceilings(facts: dict, found: dict) -> None:
    """Print what the matrix products alone would take."""
    for engine, (body, head) in facts["products"].items():
        bare = (body + head) / facts["rate"]
        text = f"{engine}: products {body + head:.2f} TFLOP, {head / (body + head):.0%} in the head"
        if engine in found:
            took = statistics.median(found[engine]["seconds"])
            text += f"; alone {bare:.2f} s at {facts['rate'] * 1e3:.0f} GFLOP/s, {bare / took:.0%}"
        print(text)


def _one(args: argparse.Namespace) -> dict:
    """Measure one way in this process."""
    import torch

    from analyses.benchmarks.machine import pin
    from analyses.benchmarks.update_batches import load_case, make_batch, read_batch

    pin(args.threads)
    warnings.simplefilter("ignore")
    name, engine, path = args.one
    case = CASES[name]
    if engine == "batch":
        if not Path(path).exists():
            make_batch(case, args.rows, Path(path))
        return _facts(case, *read_batch(Path(path), args.silent), args)
    model, tokenizer = load_case(case)
    torch.manual_seed(0)
    if args.whole:
        from analyses.benchmarks.update_whole import WHOLE

        update = WHOLE[engine](model, tokenizer, case, args.rows, args.micro_rows)
    else:
        from analyses.benchmarks.update_engines import ENGINES

        batch = read_batch(Path(path), args.silent)
        update = ENGINES[engine](model, tokenizer, *batch, args.micro_rows)
    return _measure(model, update, args.repeats)


def _measure(model, update, repeats: int) -> dict:
    """Time updates; the first gives the extra memory, too."""
    from analyses.benchmarks.machine import watching_peak

    own = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    for weight in model.state_dict().values():
        weight.sum()  # what is only mapped from a file yet would count as taken by the update
    found = {"seconds": [], "cpu": [], "sampled": []}
    with watching_peak() as risen:
        for i in range(repeats):
            model.zero_grad()
            start, start_cpu = time.perf_counter(), time.process_time()
            found["sampled"].append(update())
            found["seconds"].append(time.perf_counter() - start)
            found["cpu"].append(time.process_time() - start_cpu)
            if i == 0:
                found["extra_mb"] = risen() - own / 2**20
    return found


def _facts(case, batch, entropy, args: argparse.Namespace) -> dict:
    """Describe a batch, and count the products of an update on it."""
    import torch

    from analyses.benchmarks.update_batches import FRACTION, load_case

    model, _ = load_case(case)
    made, heads = batch.valid.sum(1), batch.prompt_lengths
    head = model.get_output_embeddings().weight.numel()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    body = sum(m.weight.numel() for m in layers) - head
    runs = made.sum() - len(batch) + heads.sum() / 8
    kept = FRACTION * int(made.sum())
    padded = len(batch) * int(heads.max() + made.max())
    return {
        "valid": int(made.sum()), "longest": int(made.max()),
        "prompts": f"{int(heads.min())} to {int(heads.max())}",
        "rate": _rate(model),
        "products": {
            "ours": (6e-12 * float(runs) * body, 6e-12 * kept * head),
            "trl": (6e-12 * padded * body, 8e-12 * padded * head),
        },
    }  # fmt: skip


def _rate(model) -> float:
    """Give the rate of bare float32 products of the model's width at its best, in TFLOP/s."""
    import torch

    width = model.config.hidden_size
    left, right = torch.randn(512, width), torch.randn(width, 4 * width)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2e-12 * 512 * width * 4 * width / min(times)


def _fresh(name: str, engine: str, args: argparse.Namespace) -> dict:
    """Measure one way in a process of its own, unless its figures are kept already."""
    tag = f"{name}-{args.rows}"
    kind = f"{tag}-{engine.replace(' ', '_')}{'-whole' * args.whole}-{args.micro_rows}"
    kept = args.keep / f"{kind}-{args.threads}-{args.silent:g}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = [sys.executable, "-m", "analyses.benchmarks.update", "--rows", str(args.rows)]
    command += ["--micro-rows", str(args.micro_rows), "--repeats", str(args.repeats)]
    command += ["--threads", str(args.threads), "--silent", str(args.silent)]
    command += ["--whole"] * args.whole
    command += ["--one", name, engine, str(args.keep / f"{tag}.pt")]
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | threads | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{engine} on {name} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    kept.write_text(json.dumps(found))
    return found


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    parser.add_argument("--engines", nargs="+", choices=_ALL, default=list(_ALL))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--micro-rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--silent", type=float, default=0.0, help="share of groups, no advantage")
    parser.add_argument("--whole", action="store_true", help="rollout and update")
    parser.add_argument("--keep", type=Path, help="folder of figures, to go on where it ended")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    if args.rows % args.micro_rows or args.rows % 8:
        parser.error("--rows must be a multiple of 8 and of --micro-rows")
    return args


if __name__ == "__main__":
    sys.exit(main())
