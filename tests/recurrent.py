"""Tiny random models whose layers keep recurrent states, all or some of them."""

import torch
from tiny import VOCAB
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Lfm2Config,
    Mamba2Config,
    Qwen3NextConfig,
    RwkvConfig,
)

_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, **_ENDS,
}  # fmt: skip

CONFIGS = {
    "lfm2": Lfm2Config(**_SHAPE, block_ff_dim=48, layer_types=["conv", "full_attention"]),
    "qwen3_next": Qwen3NextConfig(
        **_SHAPE, head_dim=8, layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "falcon_h1": FalconH1Config(
        **_SHAPE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1,
    ),
    "mamba2": Mamba2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8,
        state_size=8, n_groups=1, **_ENDS,
    ),
}  # fmt: skip
RWKV = RwkvConfig(
    vocab_size=VOCAB, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, **_ENDS
)


def recurrent_model(config):
    """Give a random model whose numbers depend on what came long before."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model
