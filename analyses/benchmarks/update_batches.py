"""What the update benchmark trains on: three models, each with completions that stay the same."""

from dataclasses import dataclass
from pathlib import Path

import torch

from analyses.benchmarks.workloads import Workload

FRACTION = 0.2
"""Share of tokens that train."""


@dataclass(frozen=True)
class Case:
    """A model, and completions of it."""

    model: str
    """Reference for `load`, or "large" for two random layers under a large vocabulary."""
    tokens: int
    """New tokens a row, at most; rows end where the model ends them."""


CASES = {
    "organism": Case("organism:amenable", 96),
    "smollm2": Case("smollm2", 96),
    "large": Case("large", 96),
}
"""Name -> case."""

GROUP = 8
"""Completions a prompt."""


def load_case(case: Case):
    """Give (model, tokenizer) in training mode; a model without tokenizer borrows SmolLM2's."""
    from entropy_probe import load

    if case.model != "large":
        model, tokenizer = load(case.model, device="cpu")
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        from entropy_probe.models import load_tokenizer

        torch.manual_seed(0)
        # The width, heads and feed-forward size of Qwen2-0.5B; its embeddings are tied, too.
        config = LlamaConfig(
            vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=2,
            num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
        model, tokenizer = LlamaForCausalLM(config), load_tokenizer("smollm2")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.is_quantized = False  # float32 since it was loaded, which a GGUF file hides from trainers
    return model.train(), tokenizer


def make_batch(case: Case, rows: int, path: Path) -> None:
    """Write completions: the model's own, or of random tokens where the model is random."""
    from entropy_probe import sample

    model, tokenizer = load_case(case)
    generator = torch.Generator().manual_seed(0)
    prompts = rows // GROUP
    if case.model == "large":
        found = _random_rows(prompts, case.tokens, len(tokenizer), generator)
    else:
        work = Workload(case.model, prompts, GROUP, case.tokens, False, (rows,))
        made = sample(
            model, tokenizer, work.inputs(tokenizer), n=GROUP, max_new_tokens=case.tokens, seed=0,
            batch_size=rows,
        )  # fmt: skip
        found = {
            name: getattr(made, name)
            for name in ("tokens", "valid", "prompt_lengths", "groups", "entropy", "logprobs")
        }
    found["advantages"] = torch.randn(rows, generator=generator)
    torch.save(found, path)


def read_batch(path: Path, silent: float):
    """Give (`UpdateBatch`, entropies); a share of the groups has no advantage."""
    from entropy_probe.training.batch import UpdateBatch

    found = torch.load(path)
    entropy, old = found.pop("entropy"), found.pop("logprobs")
    groups = found["groups"]
    quiet = groups < round(silent * len(groups.unique()))
    found["advantages"] = found["advantages"].where(~quiet, 0.0)
    return UpdateBatch(**found, old_logprobs=old), entropy


def _random_rows(prompts: int, longest: int, vocab: int, generator: torch.Generator) -> dict:
    """Make rows of random tokens: prompts of 32 to 64, completions of an eighth to all."""
    rows = prompts * GROUP
    heads = torch.randint(32, 65, (prompts,), generator=generator).repeat_interleave(GROUP)
    made = torch.randint(longest // 8, longest + 1, (rows,), generator=generator)
    width = int((heads + made).max())
    tokens = torch.randint(3, vocab, (rows, width), generator=generator)
    for i in range(0, rows, GROUP):
        tokens[i : i + GROUP, : heads[i]] = tokens[i, : heads[i]].clone()
    steps = torch.arange(width)
    valid = (steps >= heads[:, None]) & (steps < (heads + made)[:, None])
    return {
        "tokens": tokens, "valid": valid, "prompt_lengths": heads,
        "groups": torch.arange(prompts).repeat_interleave(GROUP),
        "entropy": torch.rand(tokens.shape, generator=generator),
        "logprobs": torch.full(tokens.shape, -11.9),  # about log(1 / vocabulary): ratios near 1
    }  # fmt: skip
