"""The five ways to generate and capture that the benchmark compares, each as its users write it.

Every function gets (model, tokenizer, prompts, args, batch, seed), generates, keeps what it
captures for the run's duration, and returns how many tokens it made before each row's stop.
"""

import torch


def ours(model, tokenizer, prompts, args, batch, seed):
    """Sample with entropy, log-probability, rank, 5 alternatives, and one layer at the forks."""
    from entropy_probe import sample

    rollouts = sample(
        model, tokenizer, prompts, n=args.n, max_new_tokens=args.tokens, seed=seed,
        batch_size=batch, residual_layers=[model.config.num_hidden_layers // 2],
    )  # fmt: skip
    return int(rollouts.valid.sum())


def generate(model, tokenizer, prompts, args, batch, seed):
    """Hugging Face generate, nothing captured."""
    return _generate(model, tokenizer, prompts, args, batch)


def generate_outputs(model, tokenizer, prompts, args, batch, seed):
    """Hugging Face generate with all logits and hidden states, reduced to entropies afterwards."""
    return _generate(
        model, tokenizer, prompts, args, batch,
        return_dict_in_generate=True, output_logits=True, output_hidden_states=True,
    )  # fmt: skip


def transformer_lens(model, tokenizer, prompts, args, batch, seed):
    """TransformerLens: generate, then run_with_cache over what came out."""
    made = 0
    layer = model.cfg.n_layers // 2
    for inputs in _batches(tokenizer, prompts, args, batch):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        ids, mask = ids.repeat_interleave(args.n, 0), mask.repeat_interleave(args.n, 0)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=args.tokens, do_sample=True, temperature=1.0,
            stop_at_eos=not args.fixed, verbose=False, return_type="tokens", prepend_bos=False,
        )  # fmt: skip
        full = torch.cat([mask, mask.new_ones(len(mask), out.shape[1] - mask.shape[1])], dim=1)
        with torch.no_grad():
            logits, cache = model.run_with_cache(
                out, attention_mask=full, names_filter=[f"blocks.{layer}.hook_resid_post"],
                prepend_bos=False,
            )  # fmt: skip
        _entropies(logits[:, ids.shape[1] - 1 : -1])
        made += _made(out[:, ids.shape[1] :], tokenizer, args)
    return made


def nnsight(model, tokenizer, prompts, args, batch, seed):
    """Generate under nnsight, one layer and the logits saved at every step."""
    made, layers = 0, model.model.layers
    layer = len(layers) // 2
    for inputs in _batches(tokenizer, prompts, args, batch):
        rows = {k: v.repeat_interleave(args.n, 0) for k, v in inputs.items()}
        steps = {"max_new_tokens": args.tokens, "do_sample": True, "top_k": 0, "temperature": 1.0}
        if args.fixed:
            steps["min_new_tokens"] = args.tokens
        with model.generate(**steps) as tracer:
            with tracer.invoke(rows):
                states, entropies = list().save(), list().save()
                for _ in tracer.iter[: args.tokens]:
                    states.append(model.model.layers[layer].output[:, -1].clone())
                    entropies.append(_entropies(model.lm_head.output[:, -1]))
            with tracer.invoke():
                out = tracer.result.save()
        made += _made(out[:, rows["input_ids"].shape[1] :], tokenizer, args)
    return made


def _generate(model, tokenizer, prompts, args, batch, **outputs):
    made = 0
    for inputs in _batches(tokenizer, prompts, args, batch):
        out = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=args.n, max_new_tokens=args.tokens,
            min_new_tokens=args.tokens if args.fixed else None,
            pad_token_id=tokenizer.pad_token_id, **outputs,
        )  # fmt: skip
        if outputs:
            for logits in out.logits:
                _entropies(logits)
            out = out.sequences
        made += _made(out[:, inputs["input_ids"].shape[1] :], tokenizer, args)
    return made


def _batches(tokenizer, prompts, args, batch):
    """Give left-padded inputs, as many prompts as fill the batch with their n rows."""
    tokenizer.padding_side = "left"
    step = max(1, batch // args.n)
    for start in range(0, len(prompts), step):
        inputs = tokenizer(prompts[start : start + step], return_tensors="pt", padding=True)
        yield {k: inputs[k] for k in ("input_ids", "attention_mask")}


def _entropies(logits):
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def _made(rows, tokenizer, args):
    """Count tokens up to and with each row's first end-of-text token."""
    if args.fixed:
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
