"""From prompts to a run directory: a plan of fixed chunks, each computed and committed whole."""

from collections.abc import Sequence
from pathlib import Path

from .filling import Progress, carry_out
from .planning import plan_samples
from .storage.run import Run
from .storage.writing import find_run
from .tasks import Task


def capture(
    model,
    tokenizer,
    prompts: Sequence[object],
    out: str | Path,
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    residual_layers: Sequence[int] = (),
    residual_positions: str = "forks",
    alternatives: int = 5,
    seed: int = 0,
    batch_size: int = 64,
    stop: Sequence[str | int] = (),
    fraction: float = 0.2,
    compile: bool = False,
    task: str | Task | None = None,
    chunk_prompts: int | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Sample into a run directory, chunk by chunk, so that a killed run can be gone on with.

    Every chunk is computed as `sample` computes it alone; forks to keep states at are chosen
    within each chunk. Resuming computes whole missing chunks with the plan's thread count, and
    gives bit for bit what an unbroken run would have.

    Args:
        model: any Hugging Face decoder; it is left as it was.
        tokenizer: its tokenizer.
        prompts: as for `sample`, or problems of ``task``.
        out: the run directory.
        n: completions a prompt.
        max_new_tokens: see `sample`, as for all arguments up to ``fraction``.
        temperature: 0 is greedy.
        top_p: nucleus mass kept when drawing.
        top_k: candidates kept when drawing, 0 for all.
        residual_layers: blocks whose output stream to keep, negatives from the end.
        residual_positions: "forks", "all" or "none".
        alternatives: most probable tokens to record at each position.
        seed: seed of the sampling noise.
        batch_size: rows decoded together.
        stop: texts and token ids that end a row.
        fraction: share of each chunk's tokens that are forks.
        compile: run decoding steps through `torch.compile`, as in `sample`.
        task: name of a task, or one, whose verifier gives the rewards of its problems.
        chunk_prompts: prompts a chunk; the default makes chunks of a few batches.
        revision: hub revision that the model was loaded at, for whoever goes on with the run.
        resume: go on with the run that is there, if there is one.
        overwrite: replace the run that is there.
        max_disk: bytes that the run may take at most, by the estimate.
        progress: called with (rows done, rows of the run).

    Raises:
        ValueError: an argument that makes no sense; nothing has been written then.
        RunConflict: the directory is taken, the run there has another plan or other weights, or
            the estimate is above ``max_disk``.
        DiskFull: no space left; whole chunks are kept.

    >>> from entropy_probe import capture, load
    >>> model, tokenizer = load("organism:amenable")
    >>> capture(model, tokenizer, ["Compute"], "runs/mine", n=2)  # doctest: +SKIP
    """
    existing = find_run(Path(out), resume=resume, overwrite=overwrite)
    if resume and existing is not None and existing.plan and chunk_prompts is None:
        chunk_prompts = existing.plan.chunk
    arguments = {
        "n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
        "top_k": top_k, "residual_layers": list(residual_layers),
        "residual_positions": residual_positions, "alternatives": alternatives, "seed": seed,
        "batch_size": batch_size, "fraction": fraction,
        "stop": stop if isinstance(stop, str) else list(stop),
        **({"compile": True} if compile else {}),
    }  # fmt: skip
    plan = plan_samples(
        model, tokenizer, prompts, arguments, task=task, chunk_prompts=chunk_prompts,
        revision=revision,
    )  # fmt: skip
    return carry_out(
        model, tokenizer, plan, out, task=task, resume=resume, overwrite=overwrite,
        max_disk=max_disk, progress=progress,
    )  # fmt: skip
