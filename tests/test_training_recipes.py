"""The recipes for other loops: one of them in a loop, the others as the tensors they give."""

import inspect

import pytest
import torch
from tiny import tiny_model

from entropy_probe import forking_mask, token_entropy
from entropy_probe.loss import masked_policy_loss
from entropy_probe.training.recipes import plain_loss, prime_rl_weights, verl_advantages

IDS = torch.randint(3, 97, (4, 13), generator=torch.Generator().manual_seed(6))
VALID = torch.ones(4, 12, dtype=torch.bool)
VALID[:, :4] = False
VALID[2, 9:] = False


def losses(model):
    logits = model(input_ids=IDS).logits[:, :-1]
    own = torch.nn.functional.cross_entropy(logits.mT, IDS[:, 1:], reduction="none")
    return own, logits


@pytest.mark.parametrize("normalizer", ["selected", "valid"])
def test_a_plain_loop_trains_only_the_forks(normalizer):
    """The gradient is that of a loop over the sorted tokens, written out."""
    model = tiny_model()
    own, logits = losses(model)
    plain_loss(own, logits, VALID, normalizer=normalizer).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    own, logits = losses(model)
    scores = logits.detach().double().log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    places = sorted(VALID.nonzero().tolist(), key=lambda at: -float(entropy[tuple(at)]))
    kept = places[: -(-len(places) // 5)]
    count = len(kept) if normalizer == "selected" else len(places)
    (sum(own[tuple(at)] for at in kept) / count).backward()
    for mine, other in zip(found, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert any(bool(g.any()) for g in found)


def test_a_loop_of_two_lines_learns():
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    seen = []
    for _ in range(8):
        own, logits = losses(model)
        forks = forking_mask(token_entropy(logits), VALID, fraction=0.2)
        loss = (own * forks).sum() / forks.sum()
        same = plain_loss(own, logits, VALID, normalizer="selected")
        assert torch.equal(loss, same)
        seen.append(float(own.detach()[VALID].mean()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen[-1] < seen[0]


def test_micro_batches_add_up_with_the_whole_count():
    model = tiny_model()
    own, logits = (values.detach() for values in losses(model))
    whole = forking_mask(token_entropy(logits), VALID, fraction=1.0).sum()
    parts = [
        plain_loss(
            own[rows], logits[rows], VALID[rows], normalizer="selected", fraction=1.0,
            denominator=whole,
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), own[VALID].mean())


@pytest.mark.parametrize("normalizer", ["selected", "valid"])
def test_verls_token_mean_becomes_the_masked_loss(normalizer):
    """verl's token mean of the clipped terms with these advantages, against our own loss."""
    logprobs = -torch.rand(4, 12)
    old = logprobs + 0.3 * torch.randn(4, 12)
    advantages = torch.randn(4, 1).expand(4, 12)
    kept = forking_mask(torch.rand(4, 12), VALID, fraction=0.3)
    given = verl_advantages(advantages, kept, VALID, normalizer=normalizer)
    assert not given[~kept].any()
    ratio = (logprobs - old).exp()
    terms = -torch.minimum(ratio * given, ratio.clamp(0.8, 1.28) * given)
    expected = masked_policy_loss(
        logprobs, old, advantages[:, 0], VALID, kept, normalizer=normalizer
    ).loss
    torch.testing.assert_close(terms[VALID].sum() / VALID.sum(), expected)


def test_prime_rls_weights_are_one_at_the_forks():
    kept = forking_mask(torch.rand(4, 12), VALID, fraction=0.25)
    weights = prime_rl_weights(kept, VALID)
    assert [[w == 1.0 for w in row] for row in weights] == kept.tolist()
    assert sum(map(sum, weights)) == -(-int(VALID.sum()) // 4)


def test_masks_that_would_mislead_are_refused():
    users = inspect.unwrap(verl_advantages)  # without the tests' own check of types
    with pytest.raises(ValueError, match=r"valid must be a bool mask, got torch.int64"):
        users(torch.ones(4, 12), VALID, VALID.long(), normalizer="valid")
    with pytest.raises(ValueError, match="kept holds tokens that are not valid"):
        prime_rl_weights(torch.ones_like(VALID), VALID)
    with pytest.raises(ValueError, match="normalizer must be one of"):
        verl_advantages(torch.ones(4, 12), VALID, VALID, normalizer="all")
    with pytest.raises(ValueError, match="normalizer must be one of"):
        plain_loss(torch.ones(4, 12), torch.ones(4, 12, 3), VALID, normalizer="all")
