"""Entropy from the most probable tokens alone: a lower bound, with the mass that it misses."""

import math
from collections.abc import Sequence

ROUNDING = 0.01
"""Excess of total probability over 1 that rounding may explain."""


def entropy_bound(logprobs: Sequence[float]) -> tuple[float, float]:
    """Give (lower bound of the entropy in nats, missing mass) of a distribution known in part.

    Everything that is not known counts as one token: splitting a mass can only add entropy.

    Args:
        logprobs: log-probabilities of different tokens.

    Raises:
        ValueError: the probabilities add up to more than 1.

    >>> bound, missing = entropy_bound([math.log(0.5), math.log(0.25)])
    >>> round(bound / math.log(2), 6), missing
    (1.5, 0.25)
    """
    probabilities = [math.exp(value) for value in logprobs]
    total = math.fsum(probabilities)
    if total > 1 + ROUNDING:
        raise ValueError(f"probabilities of one position add up to {total:.4g}, more than 1")
    missing = max(0.0, 1.0 - total)
    terms = (p * v for p, v in zip(probabilities, logprobs, strict=True) if p > 0)
    rest = missing * math.log(missing) if missing > 0 else 0.0
    return max(0.0, -math.fsum(terms) - rest), missing
