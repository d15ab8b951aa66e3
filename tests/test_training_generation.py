"""Entropies read while `generate` runs: those of scoring the same tokens, and no pass more."""

import pytest
import torch
from test_hooks import hooks_on
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import score
from entropy_probe.hooks import HooksSkipped
from entropy_probe.training.generation import read_generation

IDS = torch.randint(3, 97, (4, 7), generator=torch.Generator().manual_seed(4))
MASK = torch.ones_like(IDS)
MASK[1, :3] = 0


def generate(model, **options):
    made = model.generate(
        input_ids=IDS, attention_mask=MASK, do_sample=True, top_k=0, pad_token_id=0, **options
    )[:, IDS.shape[1] :]
    return [row[: stop + 1] for row in made.tolist() for stop in [row.index(5) if 5 in row else 99]]


@pytest.mark.parametrize("most", [1, 12])
def test_entropies_are_those_of_scoring_the_same_tokens(most):
    model = tiny_model()
    model.generation_config.eos_token_id = 5
    with torch.no_grad():
        model.lm_head.weight[5] *= 3  # so that rows end early
    before = hooks_on(model)
    with read_generation(model, temperature=1.4) as generation:
        completions = generate(model, max_new_tokens=most, temperature=1.4)
    assert hooks_on(model) == before
    lengths = [len(row) for row in completions]
    assert most == 1 or len(set(lengths)) > 1
    entropy, logprobs = generation.statistics(completions)
    assert entropy.shape == logprobs.shape == (4, max(lengths))
    for i, row in enumerate(completions):
        prompt = IDS[i, MASK[i].bool()].tolist()
        tokens = torch.tensor([prompt + row])
        valid = (torch.arange(tokens.shape[1]) >= len(prompt))[None]
        again = score(model, tiny_tokenizer(), tokens, valid, temperature=1.4)
        count = len(row)
        for mine, theirs in ((entropy, again.entropy), (logprobs, again.logprobs)):
            torch.testing.assert_close(mine[i, :count], theirs[valid], rtol=0, atol=5e-4)
            assert not mine[i, count:].any()


def test_what_did_not_pass_is_an_error():
    model = tiny_model()
    with read_generation(model, temperature=1.0) as generation:
        pass
    with pytest.raises(HooksSkipped, match="0 rows passed .* while 2 were generated"):
        generation.statistics([[1], [2]])
    with read_generation(model, temperature=1.0) as generation:
        model.generate(input_ids=IDS, max_new_tokens=3, pad_token_id=0)
    with pytest.raises(HooksSkipped, match="3 tokens a row passed .* while 5 were generated"):
        generation.statistics([[1] * 5] * 4)
