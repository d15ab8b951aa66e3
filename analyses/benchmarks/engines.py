"""The five ways to generate and capture that the benchmark compares, each as its users write it.

Every function gets (model, tokenizer, prompts, work, batch, seed), generates, keeps what it
captures for the run's duration, and returns how many tokens it made up to each row's stop.
"""

import torch

BACKENDS = {"transformer_lens": "transformer_lens", "nnsight": "nnsight"}
"""Engine -> backend of `load`, where it is not the plain model."""


def ours(model, tokenizer, prompts, work, batch, seed, *, compile=False):
    """Sample with entropy, log-probability, rank, 5 alternatives, and one layer at the forks."""
    from entropy_probe import sample

    config = model.generation_config
    ends = config.eos_token_id
    config.eos_token_id = -1 if work.fixed else ends  # no token has that id
    try:
        rollouts = sample(
            model, tokenizer, prompts, n=work.n, max_new_tokens=work.tokens, seed=seed,
            batch_size=batch, residual_layers=[model.config.num_hidden_layers // 2],
            compile=compile,
        )  # fmt: skip
    finally:
        config.eos_token_id = ends
    return int(rollouts.valid.sum())


def generate(model, tokenizer, prompts, work, batch, seed):
    """Hugging Face generate, nothing captured."""
    return _generate(model, tokenizer, prompts, work, batch)


def generate_outputs(model, tokenizer, prompts, work, batch, seed):
    """Hugging Face generate with all logits and hidden states, reduced to entropies afterwards."""
    return _generate(
        model, tokenizer, prompts, work, batch,
        return_dict_in_generate=True, output_logits=True, output_hidden_states=True,
    )  # fmt: skip


def transformer_lens(model, tokenizer, prompts, work, batch, seed):
    """TransformerLens: generate, then run_with_cache over what came out."""
    made, hook = 0, f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"
    for ids, mask in _batches(tokenizer, prompts, work, batch):
        ids, mask = ids.repeat_interleave(work.n, 0), mask.repeat_interleave(work.n, 0)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=work.tokens, do_sample=True, temperature=1.0,
            stop_at_eos=not work.fixed, verbose=False, return_type="tokens", prepend_bos=False,
        )  # fmt: skip
        full = torch.cat([mask, mask.new_ones(len(mask), out.shape[1] - mask.shape[1])], dim=1)
        with torch.no_grad():
            logits, cache = model.run_with_cache(
                out, attention_mask=full, names_filter=[hook], prepend_bos=False
            )
        _entropies(logits[:, ids.shape[1] - 1 : -1])
        made += _made(out[:, ids.shape[1] :], tokenizer, work)
    return made


def nnsight(model, tokenizer, prompts, work, batch, seed):
    """Generate under nnsight, one layer and the entropy saved at every step."""
    made, layer = 0, model.config.num_hidden_layers // 2
    for ids, mask in _batches(tokenizer, prompts, work, batch):
        rows = {"input_ids": ids, "attention_mask": mask}
        rows = {name: value.repeat_interleave(work.n, 0) for name, value in rows.items()}
        steps = {"max_new_tokens": work.tokens, "do_sample": True, "top_k": 0, "temperature": 1.0}
        if work.fixed:
            steps["min_new_tokens"] = work.tokens
        with model.generate(**steps) as tracer:
            with tracer.invoke(rows):
                states, entropies = list().save(), list().save()
                for _ in tracer.iter[: work.tokens]:
                    states.append(model.model.layers[layer].output[:, -1].clone())
                    entropies.append(_entropies(model.lm_head.output[:, -1]))
            with tracer.invoke():
                out = tracer.result.save()
        made += _made(out[:, ids.shape[1] :], tokenizer, work)
    return made


def generate_static(model, tokenizer, prompts, work, batch, seed):
    """Hugging Face generate with a cache of fixed size, which it compiles on a GPU."""
    return _generate(model, tokenizer, prompts, work, batch, cache_implementation="static")


def _generate(model, tokenizer, prompts, work, batch, **more):
    made = 0
    for ids, mask in _batches(tokenizer, prompts, work, batch):
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=work.n, max_new_tokens=work.tokens,
            min_new_tokens=work.tokens if work.fixed else None,
            pad_token_id=tokenizer.pad_token_id, **more,
        )  # fmt: skip
        if "output_logits" in more:
            for logits in out.logits:
                _entropies(logits)
            out = out.sequences
        made += _made(out[:, ids.shape[1] :], tokenizer, work)
    return made


def _batches(tokenizer, prompts, work, batch):
    """Give left-padded ids and masks, as many prompts as fill the batch with their n rows."""
    step = max(1, batch // work.n)
    for start in range(0, len(prompts), step):
        some = prompts[start : start + step]
        width = max(map(len, some))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        yield ids, mask


def _entropies(logits):
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def _made(rows, tokenizer, work):
    """Count tokens up to and with each row's first end-of-text token."""
    if work.fixed:
        return rows.numel()
    ended = (rows == tokenizer.eos_token_id).int()
    first = torch.where(ended.any(1), ended.argmax(1) + 1, rows.shape[1])
    return int(first.sum())


ENGINES = {
    "ours": ours,
    "generate": generate,
    "generate+outputs": generate_outputs,
    "transformer_lens": transformer_lens,
    "nnsight": nnsight,
}
"""Name -> engine."""
