"""The preset `trl` against TRL's own functions, on a real trainer of a tiny model."""

import importlib
import os

import pytest
import torch
from ranks import on_ranks
from tiny import VOCAB, tiny_model, tiny_tokenizer

from entropy_probe.entropy import token_entropy
from entropy_probe.loss import masked_policy_loss
from entropy_probe.training import keep_tokens, preset, token_denominator

pytestmark = pytest.mark.slow
FRACTION, TEMPERATURE, BETA = 0.2, 0.7, 0.05
ROWS, PROMPT, LENGTH = 4, 3, 11


def needs_trl():
    """Give TRL, or skip where it is missing and nothing says that it must be there."""
    try:
        return importlib.import_module("trl")
    except ImportError as error:
        if os.environ.get("PROBE_REQUIRE_TRL"):
            raise
        pytest.skip(f"needs trl: {error}")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    trl, datasets = needs_trl(), pytest.importorskip("datasets")
    # From a folder: with a beta, TRL loads the reference model by name.
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", spread=2.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    args = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[],
        save_strategy="no", gradient_checkpointing=False, per_device_train_batch_size=ROWS,
        num_generations=ROWS, max_completion_length=LENGTH, top_entropy_quantile=FRACTION,
        temperature=TEMPERATURE, beta=BETA, epsilon=0.2, epsilon_high=0.28,
        use_bias_correction_kl=False,
    )  # fmt: skip
    made = trl.GRPOTrainer(
        model=str(folder), args=args, processing_class=tiny_tokenizer(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=datasets.Dataset.from_list([{"prompt": "w1 w2"}] * ROWS),
    )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    return made


def ours(entropy, mask, gather=None, *, rows=None):
    rows = torch.arange(len(mask)) if rows is None else rows
    return keep_tokens(
        preset("trl", fraction=FRACTION), entropy, mask.bool(), rows=rows,
        groups=torch.zeros_like(rows), micro_batches=torch.zeros_like(rows), gather=gather,
    ).mask  # fmt: skip


@pytest.mark.parametrize("kind", ["random", "tied", "equal", "empty"])
def test_the_mask_is_trls(trainer, kind):
    for seed in range(10):
        random = torch.Generator().manual_seed(seed)
        entropy = torch.rand(6, 40, generator=random) * 3
        if kind != "random":
            entropy = (entropy * (0 if kind == "equal" else 1)).round()
        lengths = torch.randint(0, 40, (6,), generator=random) * (kind != "empty")
        mask = (torch.arange(40) < lengths[:, None]).long()
        theirs = trainer.get_high_entropy_mask(entropy, mask, 1 - FRACTION)
        assert torch.equal(ours(entropy, mask), theirs)
        if kind in ("tied", "equal"):  # all ties are kept: more than a fifth
            assert theirs.sum() > 0.3 * mask.sum()


def test_over_ranks_the_threshold_is_that_of_the_gathered_micro_batch(trainer):
    entropy, mask = torch.rand(8, 30), (torch.rand(8, 30) < 0.7).long()
    theirs = trainer.get_high_entropy_mask(entropy, mask, 1 - FRACTION)
    parts = [slice(0, 3), slice(3, 8)]
    inputs = [
        {"entropy": entropy[part], "mask": mask[part], "rows": torch.arange(8)[part]}
        for part in parts
    ]
    found = on_ranks(ours, inputs)
    assert torch.equal(torch.cat(found), theirs)


def test_the_loss_and_the_gradient_are_trls(trainer):
    torch.manual_seed(1)
    model = trainer.model.train()
    prompt = torch.randint(3, VOCAB, (ROWS, PROMPT))
    completion = torch.randint(3, VOCAB, (ROWS, LENGTH))
    lengths = torch.tensor([11, 4, 9, 7])
    valid = torch.arange(LENGTH) < lengths[:, None]
    tokens = torch.cat([prompt, completion], dim=1)
    attention = torch.cat([torch.ones_like(prompt), valid.long()], dim=1)

    def scores():
        logits = model(input_ids=tokens, attention_mask=attention).logits
        logits = logits[:, PROMPT - 1 : -1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(-1, completion[..., None])[..., 0]
        return logprobs, token_entropy(logits.detach())

    logprobs, entropy = scores()
    old = logprobs.detach() + torch.randn(ROWS, LENGTH) / 3
    reference = logprobs.detach() + torch.randn(ROWS, LENGTH) / 3
    advantages = torch.tensor([1.0, -0.5, 0.7, -1.2])
    theirs = trainer._compute_loss(
        model,
        {
            "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt),
            "completion_ids": completion, "completion_mask": valid.long(),
            "advantages": advantages, "old_per_token_logps": old,
            "ref_per_token_logps": reference, "num_items_in_batch": valid.sum(),
        },
    )  # fmt: skip
    model.zero_grad()
    theirs.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    selection = preset("trl", fraction=FRACTION, temperature=TEMPERATURE)
    kept = ours(entropy, valid)
    assert 0.15 < kept.sum() / valid.sum() < 0.3
    loss = masked_policy_loss(
        logprobs, old, advantages, valid, kept, normalizer=selection.normalizer,
        denominator=token_denominator(selection, kept, valid), beta=BETA,
        reference_logprobs=reference, mask_kl=selection.mask_kl,
    ).loss  # fmt: skip
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in wanted:
            gap = (parameter.grad - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-12)
            assert gap < 1e-4, name
    assert float(torch.stack([g.norm() for g in wanted.values()]).norm()) > 1e-3
