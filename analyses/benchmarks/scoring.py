"""Token statistics from hidden states, against materialised logits: time, memory, exactness.

A random model's unembedding at a large vocabulary; the tokens' hidden states are given, so that
what is measured is what comes after the body's own forward.

    python -m analyses.benchmarks.scoring
"""

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Print both ways' time and extra memory, and the largest error of the entropies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    unembed = torch.randn(args.vocab, args.width, device=args.device) * 0.1
    hidden = torch.randn(args.rows, args.length, args.width, device=args.device)
    tokens = torch.randint(args.vocab, (args.rows, args.length), device=args.device)
    logits_mb = tokens.numel() * args.vocab * 4 / 2**20
    found = {}
    for name, run in (("ours", _ours), ("materialised", _materialised)):
        seconds, extra = [], 0.0
        for repeat in range(args.repeats + 1):
            took, memory, stats = _measure(run, hidden, unembed, tokens)
            extra = max(extra, memory)
            if repeat:
                seconds.append(took)
        found[name] = (statistics.median(seconds), extra, stats)
        print(
            f"{name:13} {statistics.median(seconds):7.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
            f"  extra {extra:7.0f} MB = {extra / logits_mb:6.1%} of the logits' {logits_mb:.0f} MB",
            flush=True,
        )
    print(f"time ours / materialised: {found['ours'][0] / found['materialised'][0]:.2f}x")
    print(
        f"largest error of 64 entropies against float64: {_error(hidden, unembed, found):.2e} nats"
    )
    return 0


def _ours(hidden, unembed, tokens):
    from entropy_probe import token_stats

    return token_stats(hidden, unembed, tokens, alternatives=5)


def _materialised(hidden, unembed, tokens):
    """Compute the same statistics the usual way, whole logits at once."""
    logits = hidden @ unembed.T
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, tokens[..., None])
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    top = logprobs.topk(5)
    return entropy, own[..., 0], (logprobs > own).sum(-1), top.indices, top.values


def _error(hidden, unembed, found) -> float:
    rows = hidden.flatten(0, 1)[:: max(1, hidden[..., 0].numel() // 64)].double()
    picks = slice(None, None, max(1, hidden[..., 0].numel() // 64))
    logprobs = (rows @ unembed.double().T).log_softmax(-1)
    exact = -(logprobs.exp() * logprobs).sum(-1)
    return float((found["ours"][2].entropy.flatten()[picks] - exact).abs().max())


def _measure(run, hidden, unembed, tokens):
    """Give (seconds, extra MB at the peak, result) of one call."""
    import torch

    if hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        result = run(hidden, unembed, tokens)
        torch.cuda.synchronize()
        took = time.perf_counter() - start
        return took, (torch.cuda.max_memory_allocated() - before) / 2**20, result
    before, peak, done = _resident_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = run(hidden, unembed, tokens)
    took = time.perf_counter() - start
    done.set()
    watcher.join()
    return took, max(0.0, peak[0] - before), result


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
