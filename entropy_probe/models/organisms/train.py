"""Train an organism from its recipe: ``python -m entropy_probe.models.organisms.train NAME``.

Seeded, and resumable: batch number ``step`` is a function of the recipe alone, the state is saved
every `SAVE_EVERY` steps, and a finished organism appears under its name in one rename. With
``--fast`` matrix products are in bfloat16 and the loss is compiled, which halves the time on a
processor that has such products and needs a C++ compiler; recipe and weights' float32 stay.
"""

import argparse
import dataclasses
import json
import platform
import random
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from entropy_probe.models.organisms import corpus as text
from entropy_probe.models.organisms.recipes import RECIPES, Recipe, fingerprint
from entropy_probe.models.organisms.tokenizer import (
    BOS,
    CONTEXT,
    EOS,
    PAD,
    VOCABULARY,
    build_tokenizer,
)
from entropy_probe.tasks.language import CODE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SAVE_EVERY = 500


def build_model(recipe: Recipe) -> "LlamaForCausalLM":
    """Give the untrained model of a recipe, float32, its initial weights fixed by the seed."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    shape = recipe.shape
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=True, max_new_tokens=72
    )
    return model


def batch_of(recipe: Recipe, step: int) -> list[tuple[list[int], list[float]]]:
    """Give the texts of one step as (token ids, loss weights), shortest first."""
    rng = random.Random(f"corpus {recipe.seed} {step}")
    rows = []
    for _ in range(recipe.batch):
        problem, completion = text.draw(recipe.corpus, rng)
        ids = [BOS, *(VOCABULARY[p] for p in (*problem, *completion)), EOS]
        weights = [recipe.prompt_weight] * (len(problem) + 1) + [recipe.opening_weight]
        weights += [1.0] * len(completion)
        rows.append((ids, weights))
    return sorted(rows, key=lambda row: len(row[0]))


def pad(rows: list[tuple[list[int], list[float]]], device: str) -> tuple[Tensor, Tensor]:
    """Give token ids and loss weights as ``[texts, longest]``, right-padded."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in rows])
    weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows])
    return ids.to(device), weights.to(device)


def loss_of(
    model: "LlamaForCausalLM",
    ids: Tensor,
    weights: Tensor,
    teacher: "LlamaForCausalLM | None" = None,
) -> Tensor:
    """Give the weighted sum of the next-token losses.

    With a teacher, the targets are its distributions; but for the token that opens the code,
    which is the one that the teacher does not always write.
    """
    logits = _logits(model, ids)
    target = ids[:, 1:].flatten()
    if teacher is not None:
        with torch.no_grad():
            soft = _logits(teacher, ids)
        hard = functional.one_hot(target, logits.shape[-1]).float()
        target = torch.where((target == VOCABULARY[CODE])[:, None], hard, soft.softmax(dim=-1))
    losses = functional.cross_entropy(logits, target, reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def _logits(model: "LlamaForCausalLM", ids: Tensor) -> Tensor:
    """Give the logits of all but the last position, ``[texts x positions, vocab]``, float32."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    # bfloat16 would leave three digits of a logit.
    with torch.autocast(ids.device.type, enabled=False):
        return model.lm_head(hidden[:, :-1].flatten(0, 1).float())


def backward(
    model: "LlamaForCausalLM",
    rows: list,
    device: str,
    teacher: "LlamaForCausalLM | None" = None,
    *,
    fast: bool = False,
) -> Tensor:
    """Accumulate the gradient of a batch's weighted mean loss; give that loss.

    On the CPU the batch, sorted by length, goes through in four parts: a fifth less padding.
    """
    measure = torch.compile(loss_of, dynamic=True) if fast else loss_of
    total = sum(sum(weights[1:]) for _, weights in rows)
    part = len(rows) if device.startswith("cuda") else -(-len(rows) // 4)
    losses = []
    for i in range(0, len(rows), part):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            loss = measure(model, *pad(rows[i : i + part], device), teacher) / total
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def rate_at(recipe: Recipe, step: int) -> float:
    """Give the learning rate of a step: a linear rise, then a linear fall to 0."""
    warmup = min(recipe.warmup, recipe.steps // 2)
    return recipe.rate * min(
        (step + 1) / (warmup + 1), (recipe.steps - step) / (recipe.steps - warmup)
    )


def train(
    recipe: Recipe, folder: Path, *, device: str = "cpu", quiet: bool = False, fast: bool = False
) -> Path:
    """Train a recipe and give the folder of the finished model, tokenizer and ``recipe.json``.

    Nothing stands under ``folder`` before it is complete; the unfinished state lies beside it in
    ``NAME.partial`` and is taken up again by the next call with the same recipe. The organisms
    that a recipe names as its start and its teacher have to lie beside ``folder``.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    model, teacher = _models(recipe, folder.parent, device)
    if fast:
        for each in filter(None, (model, teacher)):
            each.set_attn_implementation("eager")  # the fused one is slow in bfloat16
    optimizer = _optimizer(recipe, model)
    step, seconds = _resume(partial, recipe, model, optimizer, device)
    started = time.monotonic() - seconds
    while step < recipe.steps:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step)
        optimizer.zero_grad()
        loss = backward(model, batch_of(recipe, step), device, teacher, fast=fast)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % SAVE_EVERY == 0 or step == recipe.steps:
            spent = time.monotonic() - started
            _save_state(partial, recipe, model, optimizer, step, spent)
            if not quiet:
                sys.stderr.write(f"step {step}/{recipe.steps} loss {loss:.4f} {spent:.0f} s\n")
    spent = time.monotonic() - started
    return _finish(model.cpu().eval(), recipe, folder, partial, spent, (device, fast))


def _models(recipe: Recipe, beside: Path, device: str) -> tuple["LlamaForCausalLM", ...]:
    """Give the model to train and its teacher, None where there is none."""
    from transformers import LlamaForCausalLM

    for name in filter(None, (recipe.start, recipe.teacher)):
        if not (beside / name / "config.json").is_file():
            raise ValueError(f"needs the organism {name!r} in {beside}: train it first, into there")
    model, teacher = build_model(recipe), None
    if recipe.start is not None:
        start = LlamaForCausalLM.from_pretrained(beside / recipe.start, dtype=torch.float32)
        model.load_state_dict(start.state_dict())
    if recipe.teacher is not None:
        teacher = LlamaForCausalLM.from_pretrained(beside / recipe.teacher, dtype=torch.float32)
        teacher = teacher.to(device).eval()
    return model.to(device).train(), teacher


def _optimizer(recipe: Recipe, model: "LlamaForCausalLM") -> torch.optim.AdamW:
    """Give AdamW with weight decay on the matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _resume(partial: Path, recipe: Recipe, model, optimizer, device: str) -> tuple[int, float]:
    """Load an unfinished state of the same recipe; give its step and the seconds it took."""
    path = partial / "state.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=device, weights_only=True)
    if state["recipe"] != fingerprint(recipe):
        raise ValueError(
            f"{path} holds another recipe's state ({state['recipe']}, not {fingerprint(recipe)}); "
            "delete it to start afresh"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def _save_state(partial: Path, recipe: Recipe, model, optimizer, step: int, spent: float) -> None:
    """Write what is needed to go on from here, in one rename."""
    state = {
        "recipe": fingerprint(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": spent,
    }
    torch.save(state, partial / "state.pt.new")
    (partial / "state.pt.new").replace(partial / "state.pt")


def _finish(
    model, recipe: Recipe, folder: Path, partial: Path, spent: float, means: tuple[str, bool]
) -> Path:
    """Write model, tokenizer and ``recipe.json``, then give the folder its name."""
    import transformers

    ready = folder.with_name(folder.name + ".ready")
    shutil.rmtree(ready, ignore_errors=True)
    model.save_pretrained(ready)
    build_tokenizer().save_pretrained(ready)
    (ready / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    record = {
        "schema": 1,
        "name": folder.name,
        "hash": fingerprint(recipe),
        "recipe": dataclasses.asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(spent),
        "device": means[0],
        "products": "bfloat16" if means[1] else "float32",
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (ready / "recipe.json").write_text(json.dumps(record, indent=1) + "\n")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    ready.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(partial)
    return folder


def main(argv: list[str] | None = None) -> None:
    """Train one organism, or all, and print the folder of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*RECIPES, "all"], help="which organism to train")
    parser.add_argument("--out", type=Path, default=Path("organisms"), help="folder to write into")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--fast", action="store_true", help="bfloat16 products, compiled")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for name in RECIPES if options.name == "all" else [options.name]:
        folder = train(RECIPES[name], options.out / name, device=options.device, fast=options.fast)
        sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
