"""Tiny random models of every family that the tests use, and a tokenizer, built from nothing."""

import copy

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 97
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED = _SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_WINDOW = _GATED | {"sliding_window": 6}

CONFIGS = {
    "llama": LlamaConfig(**_GATED),
    "qwen2": Qwen2Config(**_GATED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_GATED),
    "gpt2": GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
    ),  # fmt: skip
    "gpt_neox": GPTNeoXConfig(**_SHAPE, intermediate_size=48),
    "gemma2": Gemma2Config(**_WINDOW, final_logit_softcapping=5.0, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**_WINDOW, query_pre_attn_scalar=8),
    "mistral": MistralConfig(**_WINDOW),
    "olmo2": Olmo2Config(**{k: v for k, v in _GATED.items() if k != "head_dim"}),
    "phi": PhiConfig(**_SHAPE, intermediate_size=48),
}

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def tiny_model(family: str = "llama", *, spread: float = 8.0, seed: int = 0):
    """Give a random model, what enters its unembedding scaled up so that entropies spread."""
    torch.manual_seed(seed)
    # A copy: saving or casting a model writes into its configuration.
    config = copy.deepcopy(CONFIGS[family])
    # Older transformers would take "sdpa", which leaves out Gemma 2's softcap.
    how = "eager" if family == "gemma2" else None
    model = AutoModelForCausalLM.from_config(config, attn_implementation=how).eval()
    norms = [m for n, m in model.get_decoder().named_modules() if n in FINAL_NORMS]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
        norms[0].weight.add_(spread - 1)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Give a tokenizer of one token a word; its decoder puts nothing between tokens."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>"] + [f"w{i} " for i in range(VOCAB - 4)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(r" ", behavior="merged_with_previous")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
