"""How much disk a plan may take: an upper bound, before anything is computed."""

from .plan import Plan

# Measured on runs of the shipped organism and of random models, zstd-compressed Parquet: a token
# with k alternatives took 9 to 14 + 5 to 9 k bytes; rounded up for vocabularies of 150,000.
_TOKEN, _ALTERNATIVE, _SAMPLE = 24, 16, 400
_WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def estimate_bytes(plan: Plan, *, d_model: int) -> int:
    """Give the bytes that a run takes if every row goes on to its last allowed token.

    Args:
        plan: what is to be computed.
        d_model: width of the residual stream.
    """
    described, given = _tokens(plan)
    arguments = plan.arguments
    table = (described + given) * _TOKEN + described * arguments["alternatives"] * _ALTERNATIVE
    kept = {"none": 0.0, "all": 1.0, "forks": min(1.0, 2 * arguments["fraction"])}
    states = described * kept[arguments["residual_positions"]] * len(arguments["residual_layers"])
    width = d_model * _WIDTHS.get(plan.dtype, 4)
    return int(table + states * width + plan.samples * _SAMPLE)


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
    # A token of text is a byte at least; three bytes is usual.
    lengths = (len(p) if _is_ids(p) else 1 + len(str(p)) // 3 for p in plan.inputs)
    rows = plan.samples
    return rows * plan.arguments["max_new_tokens"], plan.rows_per_input * sum(lengths)


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
