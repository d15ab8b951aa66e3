"""What the identity of a token already explains of an activation."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WIDTH = 64  # features taken at once, in float64


@torch.no_grad()
def token_prediction(
    acts: Float[Tensor, "n features"],
    tokens: Int[Tensor, " n"],
    clusters: Int[Tensor, " n"],
) -> Float[Tensor, "n features"]:
    """Predict each activation from its token alone: the regression on token identity.

    The prediction is the token's mean activation over the other half of the clusters, so that no
    state predicts itself; a token that is not there gets the mean of all. With this a feature
    that is a word detector is told from one that knows more than the word.

    Args:
        acts: activations.
        tokens: what each is predicted from: the token at the state's own position, or numbers of
            pairs of tokens, or of anything else that is discrete.
        clusters: states of one prompt have one number; prompts stay in one half.
    """
    number = tokens.unique(return_inverse=True)[1]
    half = clusters.unique(return_inverse=True)[1] % 2
    kinds = int(number.max()) + 1 if len(number) else 0
    out = torch.zeros_like(acts, dtype=torch.float32)
    for other in (0, 1):
        known, wanted = half == other, half != other
        if not bool(known.any()):
            out[wanted] = acts.float().mean(dim=0)
            continue
        means = acts[known].float().mean(dim=0)
        sums = torch.zeros(kinds, acts.shape[1]).index_add_(0, number[known], acts[known].float())
        counts = torch.bincount(number[known], minlength=kinds)[:, None]
        table = torch.where(counts > 0, sums / counts.clamp(min=1), means)
        out[wanted] = table[number[wanted]]
    return out


@torch.no_grad()
def token_share(
    acts: Float[Tensor, "n features"], prediction: Float[Tensor, "n features"]
) -> Float[Tensor, " features"]:
    """Give the share of each feature's variance that a prediction explains, at least 0."""
    shares = []
    for part, guess in zip(acts.split(_WIDTH, dim=1), prediction.split(_WIDTH, dim=1), strict=True):
        around = (part - part.mean(dim=0)).double().square().sum(dim=0)
        left = (part - guess).double().square().sum(dim=0)
        share = (1 - left / around).clamp(min=0)
        shares.append(torch.where(around > 0, share, torch.nan))
    return torch.cat(shares)
