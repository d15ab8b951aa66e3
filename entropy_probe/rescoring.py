"""Score into a run directory: texts, records and runs, another model's or another tool's."""

from collections.abc import Sequence
from pathlib import Path

from .filling import Progress, carry_out
from .planning import plan_scores
from .retokenizing import rows_to_score
from .rollout import Rollouts
from .storage.run import Run
from .storage.writing import find_run


def capture_scores(
    model,
    tokenizer,
    source: Run | Rollouts | Sequence[object],
    out: str | Path,
    *,
    temperature: float | None = None,
    residual_layers: Sequence[int] = (),
    residual_positions: str = "forks",
    alternatives: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    fraction: float = 0.2,
    head: str = "tiles",
    include_prompts: bool = False,
    chunk_rows: int | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Give a model's exact entropies and states on tokens that exist already, as a run directory.

    Rows keep their prompts, groups, rewards and problems. Their token ids are kept where the
    model's tokenizer has the same tokens, after a prompt that is tokenized where an import has it
    as text; otherwise, and where the source has text only, the text is tokenized anew. The run's
    provenance says which.

    Args:
        model: any Hugging Face decoder; it is left as it was.
        tokenizer: its tokenizer.
        source: a run or a record, or texts (or whatever else `sample` takes as prompts), of which
            every token but the first is scored.
        out: the run directory.
        temperature: of the entropy's basis; the default is the source's, and 1 for texts and for
            imports that do not tell theirs.
        residual_layers: blocks whose output stream to keep, negatives from the end.
        residual_positions: "forks", "all" or "none".
        alternatives: most probable tokens to record at each position.
        seed: seed of the choice of random positions beside the forks.
        batch_size: rows a pass.
        fraction: share of each chunk's tokens that are forks.
        head: what computes the statistics, as in `score`.
        include_prompts: score the prompts of a run or record as well.
        chunk_rows: rows a chunk.
        revision: hub revision that the model was loaded at, for whoever goes on with the run.
        resume: go on with the run that is there, if there is one.
        overwrite: replace the run that is there.
        max_disk: bytes that the run may take at most, by the estimate.
        progress: called with (rows done, rows of the run).

    Raises:
        ValueError: nothing to score, or an argument that makes no sense; nothing has been
            written then.
        RunConflict: as in `capture`.
        DiskFull: no space left; whole chunks are kept.

    >>> from entropy_probe import capture_scores, load, open_run
    >>> model, tokenizer = load("organism:amenable")
    >>> run = open_run("runs/mine")  # doctest: +SKIP
    >>> capture_scores(model, tokenizer, run, "runs/scored", residual_layers=[-1])  # doctest: +SKIP
    """
    existing = find_run(Path(out), resume=resume, overwrite=overwrite)
    if resume and existing is not None and existing.plan and chunk_rows is None:
        chunk_rows = existing.plan.chunk
    given = rows_to_score(tokenizer, source)
    rows = given.rows
    if include_prompts:
        rows = [row | {"valid": [[1, len(row["tokens"])]]} for row in rows]
    arguments = {
        "temperature": (given.temperature or 1.0) if temperature is None else temperature,
        "residual_layers": list(residual_layers), "residual_positions": residual_positions,
        "alternatives": alternatives, "seed": seed, "batch_size": batch_size,
        "fraction": fraction, **({} if head == "tiles" else {"head": head}),
    }  # fmt: skip
    plan = plan_scores(
        model, rows, arguments, task=given.task, problems=given.problems, origin=given.origin,
        chunk_rows=chunk_rows, revision=revision,
    )  # fmt: skip
    return carry_out(
        model, tokenizer, plan, out, resume=resume, overwrite=overwrite, max_disk=max_disk,
        progress=progress,
    )  # fmt: skip
