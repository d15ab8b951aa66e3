"""What each of two processes runs in the tests of several: started by torchrun, with a name."""

import json
import sys
from pathlib import Path

import torch
from tiny import tiny_model, tiny_tokenizer
from updates import furthest, make_batch, plain_step, random_mask, take_gradients
from words import Words, quick

from entropy_probe.models.engine import engine_of
from entropy_probe.sampling import sample
from entropy_probe.training.distributed import in_lockstep, join, shard_model
from entropy_probe.training.options import Selection
from entropy_probe.training.sparse import policy_step
from entropy_probe.training.trainer import train


def training(out, options):
    """Train, as one process would."""
    options = dict(options)
    selection = Selection.from_dict(options.pop("selection", {}))
    model = tiny_model()
    result = train(
        model, tiny_tokenizer(), Words(), config=quick(selection=selection, **options),
        out=out / "run", resume=(out / "run").exists(),
    )  # fmt: skip
    if join().main:
        steps = [line for line in result.log if line["kind"] != "header"]
        (out / "log.json").write_text(json.dumps(steps))
        if not options.get("shard"):
            torch.save(model.state_dict(), out / "weights.pt")


def lockstep(out, options):
    """Sample rows of other lengths in each process from a sharded model."""
    ranks, model = join(), tiny_model()
    alone = engine_of(tiny_model())
    prompts = [["w3 w4 "], ["w7 w9 w11 ", "w5 "]][ranks.index]
    options = {"n": 2, "max_new_tokens": 4 if ranks.main else 30, "seed": 5, "alternatives": 0}
    expected = sample(alone, tiny_tokenizer(), prompts, **options)
    shard_model(model)
    engine = in_lockstep(engine_of(model), ranks)
    for _ in range(2):
        rows = sample(engine, tiny_tokenizer(), prompts, **options)
        assert torch.equal(rows.tokens, expected.tokens)
        assert rows.provenance.weights == expected.provenance.weights
    (out / f"done-{ranks.index}").write_text(str(rows.tokens.shape[1]))


def first(out, options):
    """Fail in the first process alone: the other one must not wait for it."""
    ranks = join()

    def work():
        raise ValueError("the disk is full")

    try:
        ranks.first(work)
    except (ValueError, RuntimeError) as error:
        (out / f"said-{ranks.index}").write_text(f"{type(error).__name__}: {error}")
    assert ranks.first(lambda: 7) == 7
    assert ranks.share(5) == [range(0, 2), range(2, 5)][ranks.index]
    assert [t.tolist() for t in ranks.gather(torch.arange(ranks.index + 1))] == [[0], [0, 1]]
    assert ranks.any(ranks.main)
    assert not ranks.all(ranks.main)


def failing(out, options):
    """Let the reward fail in the second process alone."""
    ranks = join()

    def reward(completions):
        if completions[0].step == 1 and not ranks.main:
            raise KeyError("boom")
        return [float(c.row % 2) for c in completions]

    try:
        train(
            tiny_model(), tiny_tokenizer(), Words(), config=quick(), reward=reward, out=out / "run"
        )
    except ValueError as error:
        (out / f"said-{ranks.index}").write_text(f"{type(error).__name__}: {error}")


def wrapped(out, options):
    """Take a step inside each wrapper, with half of the rows: the gradients of all rows."""
    ranks, model = join(), tiny_model()
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    _, expected = plain_step(model, batch, kept, 11.0)
    mine = torch.arange(len(batch))[ranks.index :: 2]  # five rows, and four
    part, own = batch.take(mine), kept[mine]
    replica = torch.nn.parallel.DistributedDataParallel(tiny_model())
    # It averages over the two processes.
    policy_step(replica, part, kept=own, denominator=11.0 / 2, micro_rows=2)
    apart = {"replica": furthest(take_gradients(replica.module), expected)}
    sharded = tiny_model()
    shard_model(sharded)
    policy_step(sharded, part, kept=own, denominator=11.0, micro_rows=2, share=False, passes=3)
    found = {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}
    apart["sharded"] = furthest(found, expected)
    (out / f"apart-{ranks.index}").write_text(json.dumps(apart))


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
