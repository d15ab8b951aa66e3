"""Which weights and libraries computed something: short strings to compare runs by."""

import hashlib
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from .transformer_lens import own_weights

LIBRARIES = ("entropy-probe", "torch", "transformers", "tokenizers", "numpy")
_SAMPLE = 64


def weights_fingerprint(model: nn.Module) -> str:
    """Give 16 hex digits over names, shapes, dtypes and evenly spaced elements of each tensor.

    An update of the weights changes it; it reads a few elements a tensor, not the whole model,
    so that it can be taken at every step of a training loop.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(own_weights(model).items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        whole = getattr(tensor, "full_tensor", None)  # of a sharded model; all its processes ask
        flat = (tensor if whole is None else whole()).detach().reshape(-1)
        if flat.numel():
            count = min(_SAMPLE, flat.numel())
            picks = torch.arange(count) * (flat.numel() - 1) // max(count - 1, 1)
            digest.update(flat[picks.to(flat.device)].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def library_versions(*others: str) -> dict[str, str]:
    """Give the versions of the libraries that the numbers depend on, and of others."""
    found = {}
    for name in (*LIBRARIES, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def model_name(model: nn.Module) -> str:
    """Give what a model was loaded by, or its class."""
    return getattr(model, "name_or_path", "") or type(model).__name__


def hub_commit(source: str, revision: str | None) -> str | None:
    """Give the commit of what was loaded from the hub, by its folder in the cache; else None."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).exists():
        return None
    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def model_revision(model: nn.Module) -> str | None:
    """Give the hub commit that `load` got a model from, where there is one."""
    return getattr(getattr(model, "config", None), "_commit_hash", None)
