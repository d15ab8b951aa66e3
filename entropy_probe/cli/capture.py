"""`probe capture`: sample from a model into a run directory."""

import click

from .machines import Choice, Filling, running
from .options import count_option, model_options, speaking, writing_options
from .prompts import read_prompts
from .running import check_out, conclude, fill, go_on, goes_on_alone, layer_numbers, require_model


@click.command()
@model_options(required=False)
@click.option("-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="Repeatable.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="One a line, or JSON lines with prompt or messages; - for standard input.",
)
@click.option("--task", metavar="NAME", help="Problems of a task; each answer gets its reward.")
@count_option("--limit", None, "Prompts to take at most.  [default: all; 16 problems of a task]")
@count_option("--n", 1, "Samples a prompt.")
@count_option("--max-new-tokens", 256, "Tokens after which a sample is cut.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="0 is greedy.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Nucleus to draw from; it does not touch the entropy.",
)
@count_option("--top-k", 0, "Candidates to draw from, 0 for all; nor does this.", least=0)
@click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends a sample; repeatable.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@count_option("--batch-size", 64, "Samples decoded together.")
@click.option(
    "--compile", is_flag=True, help="Run decoding steps through torch.compile; worth it on CUDA."
)
@count_option("--chunk-prompts", None, "Prompts that are saved together.")
@writing_options
@speaking
@click.pass_context
def capture(
    context: click.Context, model: str | None, device: str | None, dtype: str | None,
    revision: str | None, texts: tuple[str, ...], prompts: str | None, task: str | None,
    limit: int | None, n: int, max_new_tokens: int, temperature: float, top_p: float, top_k: int,
    stop: tuple[str, ...], seed: int, batch_size: int, compile: bool, chunk_prompts: int | None,
    layers: tuple[int, ...] | str | None, activations: str, alternatives: int, fraction: float,
    max_disk: int | None, shard: tuple[int, int] | None, ray: str | None, resume: bool,
    overwrite: bool, out: str | None,
) -> None:  # fmt: skip
    """Sample from a model into a run directory.

    Entropy, alternatives and (with --layers) activations are captured in the pass that
    generates, and saved chunk by chunk; a capture that was cut off goes on with --resume.
    """
    how = Filling(resume, overwrite, shard, max_disk)
    choice = Choice(model, device, dtype, revision)
    if goes_on_alone(context):
        conclude(go_on(out, "sample", choice, how, ray))
        return
    model = require_model(model)
    inputs = read_prompts(texts, prompts, task, limit)
    path, begun = check_out(out, model, how, ray)
    with running(choice, ray, begun and begun.threads) as where:
        arguments = {
            "n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
            "top_k": top_k, "residual_layers": layer_numbers(where, layers, activations),
            "residual_positions": activations, "alternatives": alternatives, "seed": seed,
            "batch_size": batch_size, "stop": list(stop), "fraction": fraction,
            **({"compile": True} if compile else {}),
        }  # fmt: skip
        chunk = chunk_prompts or (begun and begun.chunk)
        options = {"task": task, "chunk_prompts": chunk, "revision": revision}
        plan = where.plan_samples(inputs, arguments, options)
        run = fill(where, plan, path, how)
    conclude(run)
