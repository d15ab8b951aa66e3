"""Small dictionaries that stand for a sparse autoencoder, on plain tensors."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class TinyDictionary:
    """relu or top-k of (states * scale - b_dec) @ W_enc + b_enc; decoded, and the scale undone."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    layer: int = 1
    k: int | None = None
    scale: float = 1.0

    def encode(self, states):
        acts = torch.relu((states * self.scale - self.b_dec) @ self.W_enc + self.b_enc)
        if self.k is None:
            return acts
        best = acts.topk(self.k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, best.indices, best.values)

    def decode(self, acts):
        return (acts @ self.W_dec + self.b_dec) / self.scale

    def double(self):
        """Give the same dictionary in float64."""
        weights = ("W_enc", "b_enc", "W_dec", "b_dec")
        return replace(self, **{name: getattr(self, name).double() for name in weights})


def tiny_dictionary(d_model=32, d_sae=80, *, seed=0, **options):
    """Give a random dictionary, its directions of length 1."""
    noise = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=noise), dim=-1)
    return TinyDictionary(
        directions.T.clone(),
        0.1 * torch.randn(d_sae, generator=noise),
        directions,
        0.1 * torch.randn(d_model, generator=noise),
        **options,
    )


def write_dictionary(
    folder: Path, d_model: int, d_sae: int, *, k: int = 8, seed: int = 0, **metadata
) -> Path:
    """Write a random top-k dictionary to disk as SAELens would."""
    torch.manual_seed(seed)
    weights = torch.nn.functional.normalize(torch.randn(d_sae, d_model), dim=1)
    folder.mkdir(parents=True)
    config = {"architecture": "topk", "k": k, "d_in": d_model, "d_sae": d_sae, "dtype": "float32",
              "metadata": {"sae_lens_version": "6.0.0"} | metadata}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    parts = {"W_enc": weights.T.contiguous(), "b_enc": torch.zeros(d_sae), "W_dec": weights,
             "b_dec": torch.zeros(d_model)}  # fmt: skip
    save_file(parts, folder / "sae_weights.safetensors")
    return folder
