"""Which features belong to forks, to a strategy, to right answers, to reasoning words, to a shift.

Every score is a function of activations and masks, and stands beside what the tokens alone give:
lexical features look like features of reasoning until they are compared on equal tokens
(arXiv 2601.05679). Intervals are 95%, a feature at a time: whoever picks the best of many features
has to measure them again on other prompts.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contrast import contrast
from .identity import token_prediction, token_share
from .intervals import bootstrap, cluster_sums, renumbered
from .tables import FeatureTable


def fork_selectivity(
    acts: Float[Tensor, "n features"],
    forks: Bool[Tensor, " n"],
    *,
    tokens: Int[Tensor, " n"],
    clusters: Int[Tensor, " n"],
) -> FeatureTable:
    """Score features by how well they tell states at forks from the others.

    Args:
        acts: activations.
        forks: the states whose next token is a fork.
        tokens: the token at each state's own position.
        clusters: states of one prompt have one number.

    Returns:
        The columns of `contrast`; matched states have one token.
    """
    columns = contrast(acts, forks, clusters=clusters, tokens=tokens)
    return FeatureTable("fork", columns, _counts(forks))


def strategy_selectivity(
    acts: Float[Tensor, "n features"],
    strategy: Bool[Tensor, " n"],
    *,
    tokens: Int[Tensor, " n"],
    positions: Int[Tensor, " n"],
    clusters: Int[Tensor, " n"],
) -> FeatureTable:
    """Score features by how well they tell the states of one strategy from those of another.

    Args:
        acts: activations at states of both strategies, the choice itself left out.
        strategy: True where the completion follows the one, False where it follows the other.
        tokens: the token at each state's own position.
        positions: how many tokens of the completion each state has seen.
        clusters: states of one prompt have one number.

    Returns:
        The columns of `contrast`; matched states have one token and one position.
    """
    columns = contrast(acts, strategy, clusters=clusters, tokens=tokens, positions=positions)
    return FeatureTable("strategy", columns, _counts(strategy))


def outcome_selectivity(
    acts: Float[Tensor, "n features"],
    right: Bool[Tensor, " n"],
    *,
    tokens: Int[Tensor, " n"],
    positions: Int[Tensor, " n"],
    clusters: Int[Tensor, " n"],
) -> FeatureTable:
    """Score features by how well they tell completions with a right answer from wrong ones.

    Args:
        acts: activations.
        right: whether the completion that a state belongs to ends right.
        tokens: the token at each state's own position.
        positions: how many tokens of the completion each state has seen.
        clusters: states of one prompt have one number.

    Returns:
        The columns of `contrast`; matched states have one token and one position.
    """
    columns = contrast(acts, right, clusters=clusters, tokens=tokens, positions=positions)
    return FeatureTable("outcome", columns, _counts(right))


def choice_selectivity(
    acts: Float[Tensor, "n features"],
    probability: Float[Tensor, " n"],
    *,
    given: Int[Tensor, " n"],
) -> FeatureTable:
    """Score features by how they rank the probability of a choice, before it is made.

    Args:
        acts: activations at the state that makes the choice, one a prompt.
        probability: the model's own, of one way to begin.
        given: what is visible in the words, such as the wording: a number a kind.

    Returns:
        ``spearman``; ``partial``, the correlation of the ranks that are left once each kind's
        mean rank is taken away; both with intervals by Fisher's transformation, for ranks as
        Bonett and Wright have it (Psychometrika 65, 2000); ``kind_share``, the part of the
        activations' variance that the kinds explain. In ``about``, the correlation that the kinds
        alone have with the probability: the word without the relation.
    """
    kinds = renumbered(given)
    ranks = torch.cat([_ranks(acts), _ranks(probability[:, None])], dim=1)
    rest = ranks - _by_kind(ranks, kinds)
    n, count = len(acts), int(kinds.max()) + 1
    columns = {}
    for name, values, less in (("spearman", ranks, 0), ("partial", rest, count - 1)):
        centred = values - values.mean(dim=0)
        sizes = centred.square().sum(dim=0)
        product = (centred[:, :-1] * centred[:, -1:]).sum(dim=0)
        found = product / (sizes[:-1] * sizes[-1]).sqrt()
        step = 1.96 * ((1 + found.square() / 2) / max(n - 3 - less, 1)).sqrt()
        middle = found.clamp(-1 + 1e-9, 1 - 1e-9).atanh()
        columns |= {name: found, f"{name}_low": (middle - step).tanh()}
        columns[f"{name}_high"] = (middle + step).tanh()
    columns["kind_share"] = token_share(acts.double(), _by_kind(acts.double(), kinds))
    alone = _ranks(_by_kind(probability[:, None].double(), kinds))
    word = torch.corrcoef(torch.cat([alone, ranks[:, -1:]], dim=1).T)[0, 1]
    about = {"states": n, "kinds": count, "spearman of the kind alone": float(word)}
    return FeatureTable("choice", {k: c.float() for k, c in columns.items()}, about)


def model_shift(
    before: Float[Tensor, "n features"],
    after: Float[Tensor, "n features"],
    *,
    tokens: Int[Tensor, " n"],
    clusters: Int[Tensor, " n"],
) -> FeatureTable:
    """Score features by how another model's activations differ on the very same tokens.

    Args:
        before: activations of the one model, by the dictionary that is used for both.
        after: activations of the other, state by state, from `score` on the same tokens.
        tokens: the token at each state's own position.
        clusters: states of one prompt have one number.

    Returns:
        ``shift``, the mean difference; ``effect``, it in standard deviations of the difference;
        ``rate_before`` and ``rate_after``; ``token_share``, how much of the difference the token
        explains: 1 where the model changed at some words alone.
    """
    owner = renumbered(clusters)
    difference = after.double() - before.double()
    size = before.shape[1]
    one = torch.ones(len(before), 1, dtype=torch.float64)
    each = [one, difference, difference.square(), (before != 0).double(), (after != 0).double()]
    sums = cluster_sums(torch.cat(each, dim=1), owner)

    def statistic(totals: Tensor) -> Tensor:
        n = totals[..., :1]
        mean, square, first, second = (totals[..., 1:] / n).split(size, dim=-1)
        spread = (square - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, mean / spread, first, second], dim=-1)

    columns = {}
    for suffix, values in zip(("", "_low", "_high"), bootstrap(sums, statistic), strict=True):
        for name, part in zip(_SHIFT, values.split(size), strict=True):
            columns[name + suffix] = part.float()
    predicted = token_prediction(difference.float(), tokens, clusters)
    columns["token_share"] = token_share(difference, predicted).float()
    return FeatureTable("shift", columns, {"states": len(before)})


_SHIFT = ("shift", "effect", "rate_before", "rate_after")


def _counts(mask: Tensor) -> dict[str, int]:
    return {"states": len(mask), "positive": int(mask.sum())}


def _ranks(values: Tensor) -> Tensor:
    """Give the ranks in each column, ties at the mean of theirs."""
    ordered, order = values.double().sort(dim=0)
    n = len(values)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    place = torch.arange(n).view(-1, *([1] * (values.dim() - 1))).expand_as(ordered)
    first = torch.where(new, place, 0).cummax(dim=0).values
    ends = torch.ones_like(new)
    ends[:-1] = new[1:]
    last = torch.where(ends, place, n).flip(0).cummin(dim=0).values.flip(0)
    return torch.zeros_like(ordered).scatter(0, order, (first + last).double() / 2 + 1)


def _by_kind(values: Tensor, kinds: Tensor) -> Tensor:
    """Give each line the mean of its kind."""
    count = torch.bincount(kinds)[:, None]
    sums = torch.zeros(len(count), values.shape[1], dtype=values.dtype)
    return (sums.index_add_(0, kinds, values) / count)[kinds]
