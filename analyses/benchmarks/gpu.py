"""Generating with capture on a GPU: plain and compiled steps against Hugging Face generate.

A decoder of the shape of Qwen2.5-0.5B with random weights in bfloat16, rows of a fixed length, the
same prompts. Each way has run once before it is timed, so that what is compiled is there. Extra
memory is the peak, in a run after that, above what was held when it began.

    python -m analyses.benchmarks.gpu
"""

import argparse
import statistics
import sys
from functools import partial

from analyses.benchmarks.workloads import Workload


def main(argv: list[str] | None = None) -> int:
    """Print each way's time, tokens a second and extra memory, and ours over each of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a row")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)

    import torch

    from analyses.benchmarks.engines import generate, generate_outputs, generate_static, ours
    from analyses.benchmarks.machine import measure
    from entropy_probe import load

    model = _model(args)
    tokenizer = load("organism:amenable", device="cpu")[1]  # only names tokens
    work = Workload("", args.rows, 1, args.tokens, True, (args.rows,))
    noise = torch.Generator().manual_seed(0)
    shape = (args.rows, args.prompt)
    prompts = torch.randint(3, args.vocab, shape, generator=noise).tolist()
    ways = {
        "generate": generate,
        "generate, static": generate_static,
        "generate+outputs": generate_outputs,
        "ours": ours,
        "ours, compiled": partial(ours, compile=True),
    }
    rates, extras = {}, {}
    print(f"{'way':17}{'median s':>10}{'spread':>16}{'tokens/s':>10}{'extra MB':>10}")
    for name, way in ways.items():
        run = partial(way, model, tokenizer, prompts, work, args.rows, 0)
        run()  # compiles
        found = measure(run, args.repeats, model.device.type == "cuda")
        seconds, extras[name] = found["seconds"], found["extra"]
        rates[name] = found["result"] / statistics.median(seconds)
        print(
            f"{name:17}{statistics.median(seconds):10.2f}"
            f"{f'{min(seconds):.2f}-{max(seconds):.2f}':>16}"
            f"{rates[name]:10.0f}{extras[name]:10.0f}",
            flush=True,
        )
    for name in ("ours", "ours, compiled"):
        for other in ("generate", "generate, static", "generate+outputs"):
            print(
                f"{name} is {rates[name] / rates[other]:.2f}x {other}, with "
                f"{extras[name] / max(extras[other], 1):.2f}x its extra memory"
            )
    return 0


def _model(args: argparse.Namespace):
    """Build the decoder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=args.vocab, hidden_size=896, intermediate_size=4864,
        num_hidden_layers=args.layers, num_attention_heads=14, num_key_value_heads=2,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval().to(args.device, torch.bfloat16)


if __name__ == "__main__":
    sys.exit(main())
