"""The updates on a batch, against the loss with every logit there is."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from words import Words, quick

from entropy_probe.loss import masked_policy_loss
from entropy_probe.models.engine import engine_of
from entropy_probe.training.collecting import Source, collect
from entropy_probe.training.distributed import Ranks
from entropy_probe.training.learning import Learner
from entropy_probe.training.matching import gradient_norm
from entropy_probe.training.options import Selection
from entropy_probe.training.presets import preset
from entropy_probe.training.rewards import correct
from entropy_probe.training.selection import keep_tokens


def collected_for(config, model):
    problems = Words().problems(config.problems, split="train", seed=config.seed)
    source = Source(tiny_tokenizer(), Words(), problems, correct(Words()), config, Ranks())
    return collect(engine_of(model), source, step=0, before=0)


def learner_for(config, model, reference=None):
    optimizer = torch.optim.SGD(model.parameters(), config.lr)
    return Learner(model, optimizer, config, Ranks(), reference)


def logprobs_of(model, tokens):
    logprobs = model(input_ids=tokens).logits[:, :-1].log_softmax(dim=-1)
    own = logprobs.gather(2, tokens[:, 1:, None]).squeeze(2)
    return torch.nn.functional.pad(own, (1, 0))


def dense_norm(model, reference, config, collected, kept):
    """Give the length of the gradient by the plain loss."""
    batch, rows = collected.batch, collected.batch.rollouts
    own = kept.sum() if config.selection.normalizer == "selected" else rows.valid.sum()
    with torch.no_grad():
        before = logprobs_of(reference, rows.tokens)
    loss = masked_policy_loss(
        logprobs_of(model, rows.tokens), rows.logprobs, batch.advantages, rows.valid, kept,
        normalizer=config.selection.normalizer, denominator=own, beta=config.beta,
        kl_denominator=own if config.selection.mask_kl else rows.valid.sum(),
        reference_logprobs=before, mask_kl=config.selection.mask_kl,
    ).loss  # fmt: skip
    loss.backward()
    norm = gradient_norm(model.parameters())
    model.zero_grad()
    return norm


@pytest.mark.parametrize("mask_kl", [True, False])
@pytest.mark.parametrize("normalizer", ["selected", "valid"])
def test_the_kl_is_counted_as_asked(mask_kl, normalizer):
    config = quick(beta=5.0, selection=Selection(mask_kl=mask_kl, normalizer=normalizer))
    model, reference = tiny_model(), tiny_model()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.02)
    collected = collected_for(config, model)
    rows = collected.batch.rollouts
    kept = keep_tokens(
        config.selection, rows.entropy, rows.valid, rows=collected.batch.rows, groups=rows.groups
    ).mask
    expected = dense_norm(model, reference, config, collected, kept)
    learnt = learner_for(config, model, reference).learn(collected, step=0)
    assert torch.equal(learnt.kept, kept)
    assert learnt.norms == [pytest.approx(expected, rel=1e-4)]
    free = replace(config, beta=0.0)
    same = learner_for(free, tiny_model()).learn(collected, step=0)
    assert same.norms != [pytest.approx(expected, rel=1e-2)]


def test_each_update_keeps_its_share_of_its_own_rows():
    config = quick(updates=3, epochs=2, prompts=5)
    model = tiny_model()
    collected = collected_for(config, model)
    learner = learner_for(config, model)
    learnt = learner.learn(collected, step=0)
    assert (learner.updates, len(learnt.norms), len(learnt.losses)) == (6, 6, 6)
    groups = collected.batch.rollouts.groups
    for part, prompts in enumerate(([0, 3], [1, 4], [2])):
        mine = torch.isin(groups, torch.tensor(prompts))
        valid = int(learnt.valid[mine].sum())
        assert int(learnt.kept[mine].sum()) == -(-valid // 5), part
    assert learnt.counters["kept"] <= 2 * int(learnt.kept.sum())


def test_rows_that_were_dropped_have_no_vote():
    config = quick(overlong="drop", prompts=8, seed=1)
    model = tiny_model()
    collected = collected_for(config, model)
    done = collected.batch.finished
    assert 0 < int(done.sum()) < len(done)
    learnt = learner_for(config, model).learn(collected, step=0)
    assert not bool(learnt.valid[~done].any())
    assert int(learnt.kept.sum()) == -(-int(learnt.valid.sum()) // 5)


@pytest.mark.parametrize("name", ["paper", "trl", "swift", "lightrft", "prime_rl"])
def test_presets_train(name):
    rows = 8 if "micro_batch" in f"{preset(name).scope} {preset(name).average}" else None
    config = quick(selection=preset(name), micro_batch_rows=rows)
    model = tiny_model()
    collected = collected_for(config, model)
    learnt = learner_for(config, model).learn(collected, step=0)
    assert learnt.norms[0] > 0
    assert int(learnt.kept.sum()) / int(learnt.valid.sum()) == pytest.approx(0.2, abs=0.1)


def test_the_mask_of_a_model_that_has_not_moved_is_the_same():
    config = quick(lr=0.0)
    model = tiny_model()
    collected = collected_for(config, model)
    learner = learner_for(config, model)
    learnt = learner.learn(collected, step=0)
    count = int(learnt.kept.sum())
    assert learner.overlap(collected, learnt, step=0) == (count, count)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    both, either = learner.overlap(collected, learnt, step=0)
    assert both < count < either


def test_chance_chooses_anew_in_each_update():
    config = quick(selection=Selection(select="random"), epochs=2)
    model = tiny_model()
    collected = collected_for(config, model)
    learner = learner_for(config, model)
    first = learner.learn(collected, step=0).kept
    assert not torch.equal(first, learner.learn(collected, step=1).kept)
    again = learner_for(config, tiny_model()).learn(collected, step=0).kept
    assert torch.equal(first, again)
