"""Two kinds of states compared on every feature: AUROC, effect size, firing rates, token nulls."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .auroc import auroc
from .identity import token_prediction, token_share
from .intervals import bootstrap, cluster_sums, renumbered

_CELLS = 2**23  # activations held at once, in double precision: 64 MB, and a few copies
_COLUMNS = 2**21  # sums of clusters held at once: 8 bytes each, and as many again a draw


def contrast(
    acts: Float[Tensor, "n features"],
    positive: Bool[Tensor, " n"],
    *,
    clusters: Int[Tensor, " n"],
    tokens: Int[Tensor, " n"],
    positions: Int[Tensor, " n"] | None = None,
) -> dict[str, Float[Tensor, " features"]]:
    """Compare positive states with the others, feature by feature.

    Args:
        acts: activations, not negative.
        positive: the states that are expected to activate more.
        clusters: states of one prompt have one number.
        tokens: the token at each state's own position.
        positions: where given, matched states have one position, too.

    Returns:
        Columns ``auroc``, of all states; ``token``, the AUROC that the token alone gives (see
        `token_prediction`); ``matched``, the AUROC among states of one token (and position), 0.5
        where the token was all there was to it; ``effect``, the difference of means in pooled
        standard deviations; ``rate`` and ``rate_other``, the shares of states at which the
        feature is active; ``token_share``, how much of the activation the token explains. The
        measured ones have intervals, ``_low`` and ``_high``, prompts taken as independent.
    """
    found = {}
    strata = tokens if positions is None else pairs(tokens, positions)
    for name, groups in (("auroc", None), ("matched", strata)):
        result = auroc(acts, positive, clusters=clusters, strata=groups)
        found |= {name: result.value, f"{name}_low": result.low, f"{name}_high": result.high}
    predicted = token_prediction(acts, tokens, clusters)
    found["token"] = auroc(predicted, positive, clusters=clusters).value
    found |= _moments(acts, positive, clusters)
    found["token_share"] = token_share(acts, predicted)
    return {name: column.float() for name, column in found.items()}


def pairs(first: Int[Tensor, " n"], second: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Number the pairs of two numbers."""
    low = second.min() if len(second) else 0
    span = (second.max() - low + 1) if len(second) else 1
    return renumbered(first.long() * span + (second.long() - low))


def _moments(acts: Tensor, positive: Tensor, clusters: Tensor) -> dict[str, Tensor]:
    """Give effect sizes and firing rates with their intervals."""
    owner = renumbered(clusters)
    width = max(1, min(_COLUMNS // (6 * (int(owner.max()) + 1)), _CELLS // max(len(acts), 1)))
    kinds = torch.stack([positive, ~positive], dim=1).double()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in acts.split(width, dim=1):
        size = part.shape[1]
        columns = [cluster_sums(kinds, owner)]
        for kind in (positive, ~positive):
            own = part.double() * kind[:, None]
            columns += [cluster_sums(x, owner) for x in (own, own.square(), (own != 0).double())]

        def statistic(totals: Tensor, size: int = size) -> Tensor:
            n, other = totals[..., :1], totals[..., 1:2]
            s1, q1, f1, s0, q0, f0 = totals[..., 2:].split(size, dim=-1)
            spread = (q1 - s1.square() / n + q0 - s0.square() / other) / (n + other - 2)
            effect = (s1 / n - s0 / other) / spread.clamp(min=0).sqrt()
            return torch.cat([effect, f1 / n, f0 / other], dim=-1)

        parts.append(bootstrap(torch.cat(columns, dim=1), statistic))
    out: dict[str, Tensor] = {}
    widths = [part.shape[1] for part in acts.split(width, dim=1)]
    for i, name in enumerate(("effect", "rate", "rate_other")):
        for suffix, which in (("", 0), ("_low", 1), ("_high", 2)):
            pieces = [p[which].split(w)[i] for p, w in zip(parts, widths, strict=True)]
            out[name + suffix] = torch.cat(pieces)
    return out
