"""Heads that do more than a matrix product, beside the families of tiny.py."""

import copy
from types import SimpleNamespace

import torch
from tiny import CONFIGS, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaForCausalLM

SHAPE = {
    name: CONFIGS["llama"].to_dict()[name]
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )
}  # fmt: skip

SCALED = {
    "cohere": CohereConfig(**SHAPE, logit_scale=0.25),
    "granite": GraniteConfig(**SHAPE, logits_scaling=4.0, embedding_multiplier=12.0),
}
FAMILIES = (*CONFIGS, *SCALED)


def model_of(family: str):
    """Give a random model of tiny.py's families, or one that scales its logits."""
    if family in CONFIGS:
        model = tiny_model(family)
    else:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(SCALED[family])).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_({"cohere": 35.0, "granite": 80.0}[family])
    head = model.get_output_embeddings()
    if head.bias is not None:  # built as zeros, which would not tell it from none
        nn.init.normal_(head.bias)
    return model


class Sharpened(LlamaForCausalLM):
    """A Llama that does what no configuration says to its logits."""

    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out.logits = out.logits * 1.5
        return out


class Tupled(nn.Module):
    """Blocks in the form of transformers 4, a tuple with the stream in front."""

    class Block(nn.Module):
        def forward(self, stream):
            return 2 * stream, "a cache"

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.tower = nn.ModuleDict({"vision": nn.ModuleDict({"blocks": nn.ModuleList()})})
        self.tower["vision"]["blocks"].extend(nn.Identity() for _ in range(depth))
        self.blocks = nn.ModuleList(self.Block() for _ in range(depth))
        self.config = SimpleNamespace(
            get_text_config=lambda: SimpleNamespace(num_hidden_layers=depth)
        )
        self.extras: list[object] = []

    def forward(self, stream):
        self.extras.clear()
        for block in self.blocks:
            stream, extra = block(stream)
            self.extras.append(extra)
        return stream
