"""From the final hidden states to logits: the unembedding of a Hugging Face decoder."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..hooks import read_output
from .engine import body_of, decoder_of, engine_of
from .finite import not_finite


@dataclass(frozen=True)
class Unembedding:
    """What turns final hidden states into logits."""

    weight: Float[Tensor, "vocab d_model"]
    """Rows are tokens."""
    bias: Float[Tensor, " vocab"] | None
    """Added to the logits, where there is one."""
    softcap: float | None
    """Logits become softcap * tanh(logits / softcap), where given."""
    scale: float
    """Factor on the logits."""

    def logits(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Give the logits of some states, in float32."""
        logits = states.float() @ self.weight.float().T * self.scale
        logits = logits if self.bias is None else logits + self.bias.float()
        cap = self.softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def unembedding(model) -> Unembedding:
    """Find a decoder's unembedding.

    Raises:
        ValueError: a model without a linear output layer.
    """
    model = decoder_of(model)
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(
            f"{type(model).__name__} has no output embedding: pass a causal language model"
        )
    config = model.config.get_text_config()
    # Granite divides its logits, Cohere multiplies them.
    scale = getattr(config, "logit_scale", None) or 1.0
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
    return Unembedding(
        head.weight.detach(),
        None if getattr(head, "bias", None) is None else head.bias.detach(),
        getattr(config, "final_logit_softcapping", None),
        scale,
    )


@torch.no_grad()
def final_states(
    model, ids: Tensor, mask: Tensor | None = None
) -> Float[Tensor, "batch seq d_model"]:
    """Run a decoder's body: the states after the final norm, which enter the unembedding."""
    engine = engine_of(model)
    body = body_of(engine.model)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if not engine.wrapped:
        return body(**inputs).last_hidden_state
    with read_output(body) as outputs:
        engine.run(**inputs, **engine.last_only)
    return outputs[0].last_hidden_state


@torch.no_grad()
def check_unembedding(model, head: Unembedding, ids: Tensor) -> None:
    """Raise unless the body and the unembedding found give the model's own logits.

    The body sees all the ids, the model their first half: the states must not depend on what
    comes after them.

    Raises:
        ValueError: they differ: the model does something to its logits that we do not know, or
            its states look ahead.
    """
    engine = engine_of(model)
    half = (ids.shape[1] + 1) // 2
    ours = head.logits(final_states(engine, ids)[:, half - 1])
    theirs = engine.run(input_ids=ids[:, :half], use_cache=False)[:, -1].float()
    if not bool(theirs.isfinite().all()):
        raise not_finite(engine, f"token {half} of the longest row", theirs, 1.0)
    # bf16 and fp16 logits are rounded to 8 or 11 bits; float32 ones differ in the last few.
    tolerance = 1e-3 if head.weight.dtype == torch.float32 else 3e-2
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise ValueError(
            f"{type(engine.model).__name__} does not predict a token from the tokens before it "
            "alone, or changes its logits after the unembedding in a way that scoring does not "
            f"know (off by up to {float((ours - theirs).abs().max()):.3g}): pass a causal language "
            "model; if it is one, report its name, and use sample() on it meanwhile"
        )
