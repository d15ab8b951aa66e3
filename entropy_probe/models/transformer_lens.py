"""TransformerLens: a `TransformerBridge` is its Hugging Face model, hook points put between.

The bridge replaces modules of the model by components that hold them, in the model's own tree.
So blocks, final norm and unembedding (softcap and bias too) are found there as in any model, and
the bridge's hooks fire whenever they run; a step goes through the bridge, which also tells its
components what they need to know about the batch.
"""

import copy

import torch
from torch import Tensor

from .engine import Engine, arguments_of

_HELD = "._original_component"


def engine_of(model) -> Engine:
    """Give the engine of a bridge.

    Raises:
        ValueError: a `HookedTransformer`, another component of the library, or a bridge that is
            not around a Hugging Face model.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    if not isinstance(model, TransformerBridge):
        why = "it is not a whole model"
        if isinstance(model, HookedTransformer):
            why = "it is deprecated and folds norms into its weights: its stream is not the model's"
        raise ValueError(
            f"{type(model).__name__} cannot be captured on: {why}; pass "
            "TransformerBridge.boot_transformers(...) of the same model"
        )
    decoder = model.original_model
    if not isinstance(decoder, PreTrainedModel):
        raise ValueError(
            f"the bridge holds a {type(decoder).__name__}, not a Hugging Face model: boot it with "
            "TransformerBridge.boot_transformers(...)"
        )

    def run(*, input_ids: Tensor, **inputs) -> Tensor:
        return model(input_ids, return_type="logits", **inputs)

    return Engine(
        decoder, run, arguments_of(decoder.forward), wrapped=True, library="transformer-lens"
    )


def wrap(model, tokenizer, name: str):
    """Give a bridge around a model, which it changes for good.

    The bridge gets a copy of the tokenizer, said to add a beginning-of-text token itself: it
    would otherwise read the tokenizer again from where it came from, be it a GGUF file.
    """
    from transformer_lens.model_bridge import TransformerBridge

    own = copy.deepcopy(tokenizer)
    own.init_kwargs = own.init_kwargs | {"name_or_path": name, "add_bos_token": True}
    return TransformerBridge.boot_transformers(
        name, hf_model=model, tokenizer=own, device=str(model.device), dtype=model.dtype
    )


def own_weights(model) -> dict[str, Tensor]:
    """Give the tensors of a model that a bridge may have rewired, under the model's own names."""
    state = model.state_dict()
    if not any(_HELD in name for name in state):
        return state
    with torch.device("meta"):
        names = type(model)(copy.deepcopy(model.config)).state_dict()
    found = {name.replace(_HELD, ""): tensor for name, tensor in state.items()}
    return {name: found[name] for name in names}
