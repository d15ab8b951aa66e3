"""How much memory a run takes, before it begins: exact for the weights, a bound for the rest."""

from collections.abc import Mapping

from .config import TrainConfig

_SLOTS = {"sgd": 1, "adamw": 2}
"""Numbers an optimizer keeps of each parameter."""

_LOGITS = 3
"""Tiles of logits that exist together: the tile, its exponentials, its gradient."""


def estimate_memory(
    model, config: TrainConfig, *, longest_prompt: int, processes: int = 1
) -> Mapping[str, int]:
    """Give bytes by what takes them, in one process; the parts of a step do not all meet.

    Weights, gradients, optimizer and reference are exact. The cache is for rows that all go on to
    the limit. The update is for a pass of ``micro_batch_tokens`` whose blocks keep, per token and
    layer, sixteen vectors of the model's width and four of the inner layer's, as a gated block
    without checkpointing does, attention by a fused kernel.

    Args:
        model: what is trained.
        config: how.
        longest_prompt: tokens of the longest prompt.
        processes: how many share the prompts, and under ``shard`` the weights.
    """
    from .fused_head import TILE

    text = model.config.get_text_config()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    parts = processes if config.shard else 1
    slots = _SLOTS[config.optimizer] if config.optimizer == "adamw" or config.momentum else 0
    rows = min(config.batch_size, -(-config.prompts // processes) * config.n)
    context = getattr(text, "max_position_embeddings", None) or 1 << 62
    length = min(longest_prompt + config.max_new_tokens, context)
    width, layers = text.hidden_size, text.num_hidden_layers
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    inner = getattr(text, "intermediate_size", None) or 4 * width
    size = 2 if config.bf16 else model.dtype.itemsize
    tokens = min(config.micro_batch_tokens, rows * length)
    kept = config.selection.fraction or 1.0
    return {
        "weights": weights // parts,
        "gradients": trained // parts,
        "optimizer": slots * trained // parts,
        "reference": weights if config.beta else 0,
        "rollout: keys and values": 2 * layers * heads * head * size * rows * length,
        "update: states of a pass": tokens * layers * (16 * width + 4 * inner) * size,
        "update: logits": _LOGITS * 4 * min(TILE, int(tokens * kept) * text.vocab_size),
    }
