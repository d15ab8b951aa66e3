"""The entropy of a distribution known in part: never above the whole one's, exact at its end."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.importing.truncated import entropy_bound


@given(weights=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30), data=st.data())
def test_it_is_a_lower_bound_that_grows_with_what_is_known(weights, data):
    whole = torch.distributions.Categorical(torch.tensor(weights, dtype=torch.float64))
    logprobs = sorted(whole.logits.tolist(), reverse=True)
    exact = float(whole.entropy())
    bounds = [entropy_bound(logprobs[:k]) for k in range(len(logprobs) + 1)]
    entropies = [bound for bound, _ in bounds]
    assert all(entropy <= exact + 1e-9 for entropy in entropies)
    assert all(a <= b + 1e-9 for a, b in zip(entropies, entropies[1:], strict=False))
    assert math.isclose(entropies[-1], exact, abs_tol=1e-9)
    k = data.draw(st.integers(0, len(logprobs)))
    mass = 1 - sum(math.exp(value) for value in logprobs[:k])
    assert math.isclose(bounds[k][1], mass, abs_tol=1e-9)


def test_the_rest_counts_as_one_token():
    bound, missing = entropy_bound([math.log(0.5), math.log(0.25)])
    assert math.isclose(bound, 1.5 * math.log(2))
    assert missing == 0.25
    # One probable token and a thousand others of the same mass have far more than ln 2.
    assert math.isclose(entropy_bound([math.log(0.5)])[0], math.log(2))


def test_nothing_known_and_everything_known_are_zero():
    assert entropy_bound([]) == (0.0, 1.0)
    assert entropy_bound([0.0]) == (0.0, 0.0)
    assert entropy_bound([0.0, -9999.0]) == (0.0, 0.0)


def test_rounding_is_forgiven_and_contradiction_is_not():
    assert entropy_bound([1e-7])[1] == 0.0
    with pytest.raises(ValueError, match=r"add up to 1\.5"):
        entropy_bound([0.0, math.log(0.5)])
