"""How much disk a plan may take: an upper bound, before anything is computed."""

import json

from .plan import Plan

# Bytes on disk, zstd-compressed Parquet. Measured with ids and numbers drawn uniformly at random
# from a vocabulary of 150,000, which compress worst: 31 a token, 16 an alternative, 19 a prompt
# token (4 where 16 rows share the prompt), 300 a sample, 9 kB the frames of a chunk's files.
_TOKEN, _ALTERNATIVE, _PROMPT_TOKEN, _SAMPLE, _CHUNK = 40, 18, 24, 600, 20_000
_WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def estimate_bytes(plan: Plan, *, d_model: int) -> int:
    """Give the bytes that a run takes if every row goes on to its last allowed token.

    Args:
        plan: what is to be computed.
        d_model: width of the residual stream.
    """
    described, prompts = _tokens(plan)
    arguments = plan.arguments
    table = described * (_TOKEN + _ALTERNATIVE * arguments["alternatives"])
    table += prompts * _PROMPT_TOKEN + plan.samples * _SAMPLE + plan.chunks * _CHUNK
    kept = {"none": 0.0, "all": 1.0, "forks": min(1.0, 2 * arguments["fraction"])}
    # Shares are rounded up in each chunk, for forks and for the others beside them.
    states = described * kept[arguments["residual_positions"]] + 2 * plan.chunks
    width = d_model * _WIDTHS.get(plan.dtype, 4) * len(arguments["residual_layers"])
    manifest = len(json.dumps([plan.inputs, plan.problems], default=dict))
    return int(table + states * width + manifest)


def words_for(size: int) -> str:
    """Say a number of bytes in the unit that suits it, powers of 1000.

    >>> words_for(1_234_567)
    '1.2 MB'
    """
    amount, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"


def _tokens(plan: Plan) -> tuple[int, int]:
    """Count (tokens with statistics, prompt tokens without) at most."""
    if plan.kind == "score":
        described = sum(stop - start for row in plan.inputs for start, stop in row["valid"])
        return described, sum(len(row["tokens"]) for row in plan.inputs) - described
    prompts = sum(len(p) if _is_ids(p) else _most_tokens(p) for p in plan.inputs)
    return plan.samples * plan.arguments["max_new_tokens"], plan.rows_per_input * prompts


def _most_tokens(prompt: object) -> int:
    """Bound the tokens of a text or of messages: two bytes each, and what a template adds."""
    return (
        len(json.dumps(prompt, default=dict, ensure_ascii=False).encode(errors="replace")) // 2 + 64
    )


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
