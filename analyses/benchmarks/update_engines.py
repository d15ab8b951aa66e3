"""The ways to make an update's gradients that the benchmark compares.

Each gets (model, tokenizer, batch, entropies, micro-batch rows) and gives a function that adds the
gradients of one update over all rows to ``.grad``.
"""

import tempfile

import torch

from analyses.benchmarks.update_batches import FRACTION, GROUP


def ours(model, tokenizer, batch, entropy, micro_rows, **options):
    """Ours: the mask from the rollouts' entropies, then the sparse step."""
    from entropy_probe.training.sparse import policy_step

    def update():
        kept = _kept(batch, entropy)
        count = float(kept.sum())
        policy_step(
            model, batch, kept=kept, denominator=count, micro_rows=micro_rows, micro_tokens=None,
            **options,
        )  # fmt: skip

    return update


def ours_current(model, tokenizer, batch, entropy, micro_rows):
    """Ours with the mask from the current policy's entropies: one pass more, without gradients."""
    from entropy_probe.training.sparse import current_statistics

    def update():
        found, _ = current_statistics(model, batch, micro_rows=micro_rows, micro_tokens=None)
        ours(model, tokenizer, batch, found, micro_rows)()

    return update


def ours_dense(model, tokenizer, batch, entropy, micro_rows):
    """Ours with the logits of every token, rows padded, nothing shared or skipped."""
    return ours(model, tokenizer, batch, entropy, micro_rows, sparse=False, packed=False)


def ours_bf16(model, tokenizer, batch, entropy, micro_rows):
    """Ours with the blocks' products in bfloat16."""
    return ours(model, tokenizer, batch, entropy, micro_rows, precision="bfloat16")


def trl(model, tokenizer, batch, entropy, micro_rows, *, bf16=False):
    """TRL's GRPOTrainer as it is, fed the completions: its own masks and training step."""
    trainer = trl_trainer(model, tokenizer, len(batch), micro_rows, bf16=bf16, fixed=batch)

    def update():
        for _ in range(len(batch) // micro_rows):
            trainer.training_step(model, None, None)

    return update


def trl_bf16(model, tokenizer, batch, entropy, micro_rows):
    """TRL's trainer with bf16=True."""
    return trl(model, tokenizer, batch, entropy, micro_rows, bf16=True)


def trl_fused(model, tokenizer, batch, entropy, micro_rows):
    """A plain loop around TRL's fused head, which is fed the completions' tokens alone."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    from entropy_probe.loss import policy_terms

    def update():
        for start in range(0, len(batch), micro_rows):
            part = batch.take(torch.arange(start, min(start + micro_rows, len(batch))))
            width = int((part.valid * torch.arange(part.tokens.shape[1])).max()) + 1
            mask = (torch.arange(width) < _ends(part)[:, None]).long()
            hidden = model.base_model(part.tokens[:, :width], attention_mask=mask)[0]
            read = part.valid[:, 1:width]
            logprobs, found, *_ = ChunkedLogProbFunction.apply(
                hidden[:, :-1][read], model.get_output_embeddings().weight, None,
                part.tokens[:, 1:width][read], 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0,
                ("log_probs", "entropy"),
            )  # fmt: skip
            kept = found >= torch.quantile(found.detach(), 1 - FRACTION)
            gains = part.token_advantages[:, 1:width][read]
            terms = policy_terms(logprobs, logprobs.detach(), gains)
            ((terms * kept).sum() / float(batch.valid.sum())).backward()

    return update


def trl_trainer(
    model, tokenizer, rows, micro_rows, *, bf16=False, fixed=None, prompts=None, longest=128,
    reward=None,
):  # fmt: skip
    """Give TRL's trainer; with ``fixed`` it does not generate but takes that batch."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            made = super()._generate_and_score_completions if fixed is None else _as_trl
            return made(inputs if fixed is None else fixed)

    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=bf16, report_to=[], save_strategy="no",
        gradient_checkpointing=False, per_device_train_batch_size=micro_rows,
        gradient_accumulation_steps=rows // micro_rows, num_generations=GROUP,
        top_entropy_quantile=FRACTION, optim="sgd", learning_rate=1e-7, use_vllm=False,
        disable_tqdm=True, max_completion_length=longest, logging_strategy="no", max_steps=1,
    )  # fmt: skip
    texts = prompts or ["x"] * (rows // GROUP)
    trainer = Trainer(
        model=model, args=args, processing_class=tokenizer,
        reward_funcs=reward or (lambda completions, **_: [0.0] * len(completions)),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = rows // micro_rows
    return trainer


def _as_trl(batch):
    """Give a batch as TRL's generation gives it: prompts padded on the left, the rest right."""
    heads, ends = batch.prompt_lengths, _ends(batch)
    before = torch.arange(int(heads.max())) - (heads.max() - heads)[:, None]
    after = torch.arange(int((ends - heads).max())) + heads[:, None]
    masks = {"prompt": before >= 0, "completion": after < ends[:, None]}
    last = batch.tokens.shape[1] - 1
    places = {"prompt": before.clamp(min=0), "completion": after.clamp(max=last)}
    found = {"advantages": batch.advantages, "num_items_in_batch": batch.valid.sum()}
    for name, mask in masks.items():
        found[f"{name}_ids"] = batch.tokens.gather(1, places[name]).where(mask, 0)
        found[f"{name}_mask"] = mask.long()
    return found


def _ends(batch):
    return torch.where(batch.valid, torch.arange(batch.tokens.shape[1]) + 1, 0).amax(dim=1)


def _kept(batch, entropy):
    """Keep the most uncertain fifth of all tokens."""
    from entropy_probe.training import Selection, keep_tokens

    rows = torch.arange(len(batch))
    return keep_tokens(
        Selection(fraction=FRACTION), entropy, batch.valid, rows=rows, groups=batch.groups
    ).mask


ENGINES = {
    "ours": ours,
    "ours current": ours_current,
    "ours dense": ours_dense,
    "trl": trl,
    "trl fused": trl_fused,
    "ours bf16": ours_bf16,
    "trl bf16": trl_bf16,
}
"""Name -> engine."""
