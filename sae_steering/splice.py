"""Put something else in the place of states while a model predicts: the loss that this costs."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entropy_probe.entropy import token_stats
from entropy_probe.hooks import edit_residuals, evaluating
from entropy_probe.models.engine import engine_of
from entropy_probe.models.unembedding import final_states, unembedding

Change = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]


@torch.no_grad()
def spliced_losses(
    model,
    tokens: Int[Tensor, "batch seq"],
    places: Bool[Tensor, "batch seq"],
    *,
    layer: int,
    change: Change | None,
    prompt_lengths: Int[Tensor, " batch"],
    batch_size: int = 16,
) -> Float[Tensor, "batch seq"]:
    """Give the loss of each chosen token, nats, with the states that predict them replaced.

    All states that predict chosen tokens are replaced together, each from what the layer gives
    in that very pass; the states of the prompt, which predict none, stay.

    Args:
        model: the model; it is left as it was.
        tokens: rows, right-padded.
        places: the tokens; position 0 cannot be one.
        layer: after which block.
        change: takes states ``[n d_model]`` and gives what comes in their place; None for the
            model as it is.
        prompt_lengths: tokens of each row's prompt.
        batch_size: rows a pass.
    """
    engine, head = engine_of(model), unembedding(model)
    ends = torch.maximum(_ends(places), prompt_lengths)
    losses = torch.zeros(tokens.shape)
    order = ends.argsort(descending=True, stable=True)
    with evaluating(engine.model), engine.running():
        for rows in order[_ends(places)[order] > 0].split(batch_size):
            width = int(ends[rows].max())
            ids = tokens[rows, :width].to(engine.model.device)
            real = (torch.arange(width)[None, :] < ends[rows, None]).long().to(ids.device)
            chosen = places[rows, 1:width].to(ids.device)

            def replace(stream: Tensor, chosen: Tensor = chosen) -> Tensor | None:
                if change is None:
                    return None
                edited = stream.clone()
                edited[:, :-1][chosen] = change(stream[:, :-1][chosen]).to(stream.dtype)
                return edited

            with edit_residuals(engine.model, layer, replace):
                hidden = final_states(engine, ids, real)
            stats = token_stats(
                hidden[:, :-1][chosen], head.weight, ids[:, 1:][chosen], alternatives=0,
                bias=head.bias, softcap=head.softcap, scale=head.scale,
            )  # fmt: skip
            row, place = chosen.nonzero(as_tuple=True)
            losses[rows[row.cpu()], place.cpu() + 1] = -stats.logprobs.cpu()
    return losses


def _ends(places: Tensor) -> Tensor:
    """Give where each row's last chosen token ends."""
    steps = torch.arange(1, places.shape[1] + 1)
    return torch.where(places, steps, 0).amax(dim=1)
