"""ReasonScore: features of a list of reasoning words (arXiv 2503.18878), beside random words.

With R the words, mu_ij the mean activation of feature i around word j, mu_i+ its mean around any
of them and mu_i- elsewhere,

    score_i = mu_i+ / sum_k mu_k+ * H_i ** alpha - mu_i- / sum_k mu_k-

where H_i is the entropy of mu_ij over j, in shares of log |R|: a feature of a single word gets
nothing. Around a word are the states that have read it, one before and two after.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_probe.rollout import Rollouts

from .intervals import bootstrap, renumbered
from .tables import FeatureTable

WORDS = (
    "alternatively", "hmm", "maybe", "wait", "perhaps", "let me", "therefore", "however", "but",
    "another",
)  # fmt: skip
"""The published list; case and surrounding space make no difference."""
ALPHA = 0.7
WINDOW = (1, 2)
"""Tokens before and after a word that count as around it."""


def word_tokens(rollouts: Rollouts, words: Sequence[str] = WORDS) -> Int[Tensor, "batch seq"]:
    """Find whole words in the text: the number of the word at each of its tokens, else -1.

    Args:
        rollouts: the record; prompts are searched, too.
        words: words, or phrases with single spaces; case makes no difference.

    Raises:
        ValueError: no words, or an empty one.
    """
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"expected words to look for, got {list(words)}")
    spelled = (r"\s+".join(map(re.escape, word.split())) for word in words)
    groups = "|".join(f"({word})" for word in spelled)
    pattern = re.compile(rf"(?<!\w)(?:{groups})(?!\w)".encode(), re.IGNORECASE)
    found = torch.full(rollouts.tokens.shape, -1)
    for row in range(len(rollouts)):
        ids = rollouts.tokens[row, : int(rollouts.lengths[row])].tolist()
        pieces = [rollouts.pieces.get(i, b"") for i in ids]
        owner = [t for t, piece in enumerate(pieces) for _ in piece]
        for match in pattern.finditer(b"".join(pieces)):
            found[row, sorted(set(owner[match.start() : match.end()]))] = match.lastindex - 1
    return found


def around(
    words: Int[Tensor, " n"],
    rows: Int[Tensor, " n"],
    places: Int[Tensor, " n"],
    *,
    window: tuple[int, int] = WINDOW,
) -> Int[Tensor, " n"]:
    """Spread the number of each word over the states around it, nearer words first.

    Args:
        words: the word that each state has just read, -1 for none.
        rows: which sample each state belongs to.
        places: where in the sample.
        window: how many states before and after a word count as around it.
    """
    out, key = words.clone(), rows.long() * (2**32) + places.long()
    order = key.argsort()
    for step in sorted((s for s in range(-window[0], window[1] + 1) if s), key=abs):
        at = torch.searchsorted(key[order], key - step).clamp(max=len(key) - 1)
        there = order[at]
        hit = (key[there] == key - step) & (words[there] >= 0) & (out < 0)
        out[hit] = words[there][hit]
    return out


def reason_score(
    acts: Float[Tensor, "n features"],
    words: Int[Tensor, " n"],
    *,
    rows: Int[Tensor, " n"],
    places: Int[Tensor, " n"],
    tokens: Int[Tensor, " n"],
    clusters: Int[Tensor, " n"],
    names: Sequence[str] = WORDS,
    alpha: float = ALPHA,
    window: tuple[int, int] = WINDOW,
    nulls: int = 100,
    seed: int = 0,
) -> FeatureTable:
    """Score features by their activity around reasoning words, beside random words.

    Args:
        acts: activations, not negative, at all states of whole samples.
        words: the word that each state has just read, counted in ``names``; -1 for none.
        rows: which sample each state belongs to.
        places: where in the sample.
        tokens: the token that each state has just read.
        clusters: states of one prompt have one number.
        names: the words.
        alpha: weight of the entropy over words.
        window: states before and after a word that count as around it.
        nulls: how many lists of other words to draw: for each token of the list another one of
            like frequency.
        seed: of those draws.

    Returns:
        ``score`` with its interval; ``inside`` and ``outside``, mean activation around the words
        and elsewhere; ``entropy``, H; ``null`` and ``null_high``, mean and 95th percentile of the
        scores of random words; ``p``, the share of lists that score at least as high.

    Raises:
        ValueError: none of the words is there.
    """
    if not bool((words >= 0).any()):
        raise ValueError(f"none of the words {', '.join(names)} is in the text: pass other words")
    count, owner = len(names), renumbered(clusters)
    spread = around(words, rows, places, window=window)
    sums = torch.stack([_sums(acts, spread == j, owner) for j in (*range(count), -1)])
    flat = sums.permute(1, 0, 2).reshape(sums.shape[1], -1)

    def statistic(totals: Tensor) -> Tensor:
        return _scores(totals.unflatten(-1, (count + 1, -1)), alpha)[..., 0, :]

    value, low, high = bootstrap(flat, statistic, draws=200)
    parts = _scores(sums.sum(dim=1), alpha)
    other = _null_scores(acts, words, rows, places, tokens, count, alpha, window, nulls, seed)
    columns = {
        "score": value, "score_low": low, "score_high": high,
        "inside": parts[1], "outside": parts[2], "entropy": parts[3],
    }  # fmt: skip
    if len(other):
        columns["null"] = other.mean(dim=0)
        columns["null_high"] = other.quantile(0.95, dim=0)
        columns["p"] = (1 + (other >= value).sum(dim=0)) / (1 + len(other))
    seen = {name: int((words == j).sum()) for j, name in enumerate(names)}
    about = {"states": len(words), "words": seen, "alpha": alpha, "nulls": len(other)}
    return FeatureTable("reason", {k: c.float() for k, c in columns.items()}, about)


def _sums(acts: Tensor, mask: Tensor, owner: Tensor) -> Tensor:
    """Give per cluster the number of chosen states and their summed activations."""
    chosen = torch.zeros(int(owner.max()) + 1, 1 + acts.shape[1], dtype=torch.float64)
    columns = torch.cat([torch.ones(int(mask.sum()), 1), acts[mask].float()], dim=1)
    return chosen.index_add_(0, owner[mask], columns.double())


def _scores(totals: Tensor, alpha: float) -> Tensor:
    """Give score, inside, outside and entropy from sums ``[..., words and elsewhere, 1 + f]``."""
    inside, elsewhere = totals[..., :-1, :], totals[..., -1, :]
    each = inside[..., 1:] / inside[..., :1].clamp(min=1)
    mean = inside[..., 1:].sum(dim=-2) / inside[..., :1].sum(dim=-2).clamp(min=1)
    outside = elsewhere[..., 1:] / elsewhere[..., :1].clamp(min=1)
    share = each / each.sum(dim=-2, keepdim=True).clamp(min=1e-30)
    entropy = torch.special.entr(share).sum(dim=-2) / math.log(max(each.shape[-2], 2))
    normal = [x / x.sum(dim=-1, keepdim=True).clamp(min=1e-30) for x in (mean, outside)]
    return torch.stack([normal[0] * entropy**alpha - normal[1], mean, outside, entropy], dim=-2)


def _null_scores(
    acts: Tensor, words: Tensor, rows: Tensor, places: Tensor, tokens: Tensor, count: int,
    alpha: float, window: tuple[int, int], nulls: int, seed: int,
) -> Tensor:  # fmt: skip
    """Score lists of random tokens: for each token of a word one of like frequency instead."""
    noise = torch.Generator().manual_seed(seed)
    ids, number, seen = tokens.unique(return_inverse=True, return_counts=True)
    inside = words >= 0
    ours = dict(zip(number[inside].tolist(), words[inside].tolist(), strict=True))
    free = torch.tensor([i for i in range(len(ids)) if i not in ours])
    near: Mapping[int, Tensor] = {
        token: (seen[free].log() - seen[token].log()).abs().argsort()[:10] for token in ours
    }
    nobody = torch.zeros_like(number)
    everything = _sums(acts, nobody == 0, nobody)[0]
    scores = [torch.empty(0, acts.shape[1])]
    for _ in range(nulls if len(free) else 0):
        table = torch.full((len(ids),), -1)
        for token, word in ours.items():
            pick = near[token][torch.randint(len(near[token]), (1,), generator=noise)]
            table[free[pick]] = word
        other = around(table[number], rows, places, window=window)
        sums = torch.stack([_sums(acts, other == j, nobody)[0] for j in range(count)])
        totals = torch.cat([sums, (everything - sums.sum(dim=0))[None]])
        scores.append(_scores(totals, alpha)[:1])
    return torch.cat(scores)
