"""What a model says of one row alone, without padding, cache or hooks."""

import torch


@torch.no_grad()
def assert_true_of_each_row(rollouts, model, *, temperature: float = 1.0, atol: float = 1e-4):
    """Compare every number of a record with one plain forward pass a row, in float64."""
    depth = model.config.get_text_config().num_hidden_layers
    packed = rollouts.captured.nonzero()
    for row, length in enumerate(rollouts.lengths.tolist()):
        out = model(input_ids=rollouts.tokens[row : row + 1, :length], output_hidden_states=True)
        places = rollouts.valid[row].nonzero()[:, 0]
        # The distribution that produced token t was computed at position t - 1.
        logp = (out.logits[0, places - 1].double() / temperature).log_softmax(-1)
        _assert_stats(rollouts, row, places, logp, atol)
        mine = packed[:, 0] == row
        for layer in set(rollouts.residuals) - {depth - 1}:  # the last entry is post-norm
            states = out.hidden_states[layer + 1][0, packed[mine, 1] - 1]
            found = rollouts.residuals[layer][mine]
            assert ((found - states).norm(dim=-1) <= atol * states.norm(dim=-1)).all()


def _assert_stats(rollouts, row: int, places, logp, atol: float) -> None:
    tokens = rollouts.tokens[row, places]
    own = logp.gather(1, tokens[:, None])
    entropy = -(logp.exp() * logp.clamp(min=-1e9)).sum(-1)
    close = {"rtol": 0, "atol": atol}
    torch.testing.assert_close(rollouts.entropy[row, places].double(), entropy, **close)
    torch.testing.assert_close(rollouts.logprobs[row, places].double(), own[:, 0], **close)
    ranks = rollouts.ranks[row, places]
    assert ((logp > own + atol).sum(-1) <= ranks).all()
    assert ((logp > own - atol).sum(-1) > ranks).all()
    ids = rollouts.alternatives.ids[row, places].long()
    values = rollouts.alternatives.logprobs[row, places].double()
    torch.testing.assert_close(values, logp.gather(1, ids), **close)
    torch.testing.assert_close(values, logp.topk(ids.shape[1], dim=-1).values, **close)
