"""`score` against materialised logits at a large vocabulary: time, memory, exactness.

A decoder of two layers with random weights, so that the unembedding is most of the work. Memory of
the statistics is what comes on top of the body's own forward, which is run alone first.

    python -m analyses.benchmarks.scoring
"""

import argparse
import statistics
import sys

_NAMES = ("body alone", "score", "materialised")


def main(argv: list[str] | None = None) -> int:
    """Print each way's time and extra memory, and the largest error of the entropies."""
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

    from analyses.benchmarks.machine import measure, pin
    from entropy_probe import load

    pin(args.threads)
    model = _model(args)
    tokenizer = load("organism:amenable", device="cpu")[1]  # only names tokens
    ids = torch.randint(args.vocab, (args.rows, args.length), device=args.device)
    # Position 0 has no distribution: `score` describes length - 1 tokens a row.
    logits_mb = ids[:, 1:].numel() * args.vocab * 4 / 2**20
    runs = dict(zip(_NAMES, _runs(model, tokenizer, ids), strict=True))
    found = {name: measure(run, args.repeats, ids.is_cuda) for name, run in runs.items()}
    body = found["body alone"]["extra"]
    for name, figures in found.items():
        seconds, beyond = figures["seconds"], figures["extra"] - body
        print(
            f"{name:13} {statistics.median(seconds):7.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
            f"  beyond the body {beyond:6.0f} MB = {beyond / logits_mb:6.1%} of the logits' "
            f"{logits_mb:.0f} MB",
            flush=True,
        )
    ours, theirs = (statistics.median(found[name]["seconds"]) for name in _NAMES[1:])
    print(f"time score / materialised: {ours / theirs:.2f}x")
    error = _error(model, ids, found["score"]["result"].entropy)
    print(f"largest error of 64 entropies against float64: {error:.2e} nats")
    return 0


def _model(args: argparse.Namespace):
    """Build the decoder; its unembedding is scaled up so that entropies are not all alike."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=args.vocab, hidden_size=args.width, intermediate_size=4864, num_hidden_layers=2,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval().to(args.device)
    with torch.no_grad():
        model.lm_head.weight.mul_(5.0)
    return model


def _runs(model, tokenizer, ids):
    """Give what is measured, in the order of the names."""
    import torch

    from entropy_probe import score

    valid = torch.ones(ids.shape, dtype=torch.bool)
    valid[:, 0] = False

    @torch.no_grad()
    def body():
        return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state

    def ours():
        return score(model, tokenizer, ids.cpu(), valid, batch_size=len(ids))

    @torch.no_grad()
    def materialised():
        """Compute the same statistics the usual way, whole logits at once."""
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(-1, ids[:, 1:, None])
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        top = logprobs.topk(5)
        return entropy, own[..., 0], (logprobs > own).sum(-1), top.indices, top.values

    return body, ours, materialised


def _error(model, ids, entropy) -> float:
    """Give the largest error of 64 entropies, by float64 from the body's states."""
    import torch

    with torch.no_grad():
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        found = entropy[:, 1:].flatten()
        picks = torch.linspace(0, found.numel() - 1, 64).long()
        rows = states.flatten(0, 1)[picks.to(ids.device)].cpu().double()
        logprobs = (rows @ model.lm_head.weight.cpu().double().T).log_softmax(-1)
        exact = -(logprobs.exp() * logprobs).sum(-1)
    return float((found[picks] - exact).abs().max())


if __name__ == "__main__":
    sys.exit(main())
