"""What a capture will do: plans of sampling and of scoring, checked against the model first."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .compiled_step import check_compilable
from .hooks import find_blocks, resolve_layers
from .liger import check_head
from .models.engine import decoder_of, engine_of
from .models.fingerprint import model_name, weights_fingerprint
from .models.prompts import encode_prompts, stop_ids
from .models.unembedding import unembedding
from .rollout import Rollouts
from .sampling import Sampling
from .storage.plan import Plan
from .tasks import Problem, Task

# Rows a chunk: a few batches, so that slots freed by finished rows find work, and little enough
# that a killed run loses minutes.
_CHUNK_ROWS = 256
_NOT_SETTINGS = ("residual_layers", "stop", "head")
# What `Sampling` checks beyond the arguments of `score`.
_DRAWN = {"n": 1, "max_new_tokens": 1, "top_p": 1.0, "top_k": 0}


def plan_samples(
    model,
    tokenizer,
    prompts: Sequence[object],
    arguments: dict[str, Any],
    *,
    task: str | Task | None = None,
    chunk_prompts: int | None = None,
    revision: str | None = None,
) -> Plan:
    """Give the plan of a capture, every argument and prompt checked against the model.

    Args:
        model: what will be sampled from.
        tokenizer: its tokenizer.
        prompts: as for `sample`, or problems of ``task``.
        arguments: keyword arguments of `sample`, all of them.
        task: name of a task, or one, of whose problems the prompts are.
        chunk_prompts: prompts a chunk.
        revision: hub revision that the model was loaded at.
    """
    if arguments.get("compile"):
        check_compilable(engine_of(model))
    model = decoder_of(model)
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of prompts, got a single str: pass [text]")
    problems = [p for p in prompts if isinstance(p, Problem)]
    if problems and (task is None or len(problems) < len(prompts)):
        raise ValueError("problems need the task that verifies them: pass task=, and problems only")
    if task is not None and not problems:
        raise ValueError(
            "task= verifies its own problems, and the prompts are none: pass what task.problems() "
            "gives, or leave task= out"
        )
    layers = _checked_layers(model, arguments)
    settings = Sampling(**{k: v for k, v in arguments.items() if k not in _NOT_SETTINGS})
    stop_ids(model, tokenizer, arguments["stop"])
    inputs = [p.prompt if isinstance(p, Problem) else p for p in prompts]
    for i, ids in enumerate(encode_prompts(tokenizer, inputs)):
        _refuse_ids(model, f"prompt {i}", ids, more=1)
    rows = max(_CHUNK_ROWS, 4 * settings.batch_size)
    plan = Plan(
        kind="sample",
        model=model_name(model),
        weights=weights_fingerprint(model),
        inputs=inputs,
        arguments=arguments | {"residual_layers": layers},
        chunk=max(1, rows // settings.n) if chunk_prompts is None else chunk_prompts,
        threads=torch.get_num_threads(),
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        revision=revision,
        task=(task if isinstance(task, str) else task.name) if problems else None,
        problems=[{"id": p.id, "answer": p.answer, "facts": p.facts} for p in problems],
    )
    return _as_read(plan)


def plan_scores(
    model,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    *,
    task: str | None = None,
    problems: Sequence[Mapping[str, Any]] = (),
    origin: str | None = None,
    chunk_rows: int | None = None,
    revision: str | None = None,
) -> Plan:
    """Give the plan of scoring rows of tokens that exist already.

    Args:
        model: what will score them.
        rows: see `Plan.inputs`; `rows_of` makes them from a record.
        arguments: keyword arguments of `score`, all but tokens, masks, lengths and groups.
        task: name of the task that the rows' problems belong to.
        problems: id, answer and facts of each row's problem, where there is a task.
        origin: where the rows come from, in words.
        chunk_rows: rows a chunk.
        revision: hub revision that the model was loaded at.
    """
    model = decoder_of(model)
    layers = _checked_layers(model, arguments)
    check_head(arguments.get("head", "tiles"), unembedding(model), arguments["alternatives"])
    Sampling(**_DRAWN | {k: v for k, v in arguments.items() if k not in _NOT_SETTINGS})
    if not arguments["temperature"] > 0:
        raise ValueError(
            f"temperature must be above 0 for scoring, got {arguments['temperature']}: 1.0 gives "
            "the model's own distribution"
        )
    if not any(row["valid"] for row in rows):
        raise ValueError("there is no token to score: every row is empty")
    for i, row in enumerate(rows):
        _refuse_ids(model, f"row {i}", row["tokens"])
    plan = Plan(
        kind="score",
        model=model_name(model),
        weights=weights_fingerprint(model),
        inputs=list(rows),
        arguments=arguments | {"residual_layers": layers},
        chunk=_CHUNK_ROWS if chunk_rows is None else chunk_rows,
        threads=torch.get_num_threads(),
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        revision=revision,
        task=task,
        problems=list(problems),
        origin=origin,
    )
    return _as_read(plan)


def rows_of(rollouts: Rollouts) -> list[dict[str, Any]]:
    """Give the rows of a record as inputs of `plan_scores`."""
    rows = []
    for i, length in enumerate(rollouts.lengths.tolist()):
        edges = torch.nn.functional.pad(rollouts.valid[i].int(), (1, 1)).diff().nonzero()[:, 0]
        rows.append(
            {
                "tokens": rollouts.tokens[i, :length].tolist(),
                "valid": edges.view(-1, 2).tolist(),
                "prompt_length": int(rollouts.prompt_lengths[i]),
                "group": int(rollouts.groups[i]),
                "reward": _reward(rollouts, i),
            }
        )
    return rows


def _reward(rollouts: Rollouts, row: int) -> float | None:
    """Give a row's reward, None where there is none: JSON has no NaN."""
    value = math.nan if rollouts.rewards is None else float(rollouts.rewards[row])
    if math.isinf(value):
        raise ValueError(f"the reward of row {row} is {value}: a run holds finite ones only")
    return None if math.isnan(value) else value


def _checked_layers(model, arguments: dict[str, Any]) -> list[int]:
    """Give the layers counted from the first one; none where no states are kept."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if arguments["alternatives"] > vocabulary:
        raise ValueError(
            f"alternatives must be at most {vocabulary} (the vocabulary), "
            f"got {arguments['alternatives']}"
        )
    layers = resolve_layers(arguments["residual_layers"], len(find_blocks(model)))
    return [] if arguments["residual_positions"] == "none" else layers


def _refuse_ids(model, name: str, ids: Sequence[int], *, more: int = 0) -> None:
    """Raise where ids, and as many more, do not fit into the model's context or vocabulary."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and len(ids) + more > context:
        raise ValueError(
            f"{name} has {len(ids)} tokens, but the model's context is {context}: shorten it, or "
            "use a model with a longer context"
        )
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if not all(0 <= token < vocabulary for token in ids):
        raise ValueError(
            f"{name} has token ids outside 0 to {vocabulary - 1}: were they made by another "
            "tokenizer?"
        )


def _as_read(plan: Plan) -> Plan:
    """Give the plan as it will be read back, so that the two compare equal."""
    return Plan.from_dict(json.loads(json.dumps(plan.to_dict(), default=dict)))
