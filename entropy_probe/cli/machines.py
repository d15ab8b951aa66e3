"""Where a model runs, in this process or on a Ray cluster: the same calls for both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import note

if TYPE_CHECKING:
    from entropy_probe.ray_pool import RayPool
    from entropy_probe.storage.plan import Plan
    from entropy_probe.storage.run import Run

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """Which model, and how it is loaded."""

    reference: str | None
    """Hub id, folder, file or organism; None only where a run says which."""
    device: str | None
    """Where to put it; None for the default."""
    dtype: str | None
    """What it computes in; None for the default."""
    revision: str | None
    """Hub revision; None for the default."""

    def arguments(self) -> dict[str, str | None]:
        """Give the arguments of `load`."""
        return dict(vars(self))


@dataclass(frozen=True)
class Filling:
    """How a run directory is filled."""

    resume: bool = False
    """Go on with the run that is there."""
    overwrite: bool = False
    """Replace the run that is there."""
    shard: tuple[int, int] | None = None
    """Compute the i-th of n shares alone."""
    max_disk: int | None = None
    """Bytes that the run may take at most."""


class Here:
    """A model in this process."""

    def __init__(self, choice: Choice) -> None:
        """Load it."""
        from entropy_probe.models import load

        note(f"loading {choice.reference}")
        self.model, self.tokenizer = load(**choice.arguments())

    def depth(self) -> int:
        """Count the model's blocks."""
        from entropy_probe.hooks import find_blocks

        return len(find_blocks(self.model))

    def width(self) -> int:
        """Give the width of its residual stream."""
        return self.model.config.get_text_config().hidden_size

    def plan_samples(self, prompts: Sequence[Any], arguments: dict, options: dict) -> "Plan":
        """Plan a capture."""
        from entropy_probe.planning import plan_samples

        return plan_samples(self.model, self.tokenizer, prompts, arguments, **options)

    def plan_scores(self, rows: Sequence[dict], arguments: dict, options: dict) -> "Plan":
        """Plan a scoring."""
        from entropy_probe.planning import plan_scores

        return plan_scores(self.model, rows, arguments, **options)

    def carry_out(self, plan: "Plan", out: Path, how: Filling, report: Report) -> "Run":
        """Compute what a run lacks."""
        from entropy_probe.filling import carry_out

        return carry_out(
            self.model, self.tokenizer, plan, out, resume=how.resume, overwrite=how.overwrite,
            shard=how.shard, max_disk=how.max_disk, progress=report,
        )  # fmt: skip


class OnRay:
    """Models on a Ray cluster; the files are written by this process."""

    def __init__(self, pool: "RayPool", choice: Choice) -> None:
        """Keep the pool, and load the tokenizer here."""
        from entropy_probe.models import load_tokenizer

        self.pool = pool
        self.tokenizer = load_tokenizer(choice.reference, revision=choice.revision)

    def depth(self) -> int:
        """Count the model's blocks."""
        return self.pool.call("depth")

    def width(self) -> int:
        """Give the width of its residual stream."""
        return self.pool.call("describe").width

    def plan_samples(self, prompts: Sequence[Any], arguments: dict, options: dict) -> "Plan":
        """Plan a capture."""
        return self.pool.call("plan_samples", prompts, arguments, options)

    def plan_scores(self, rows: Sequence[dict], arguments: dict, options: dict) -> "Plan":
        """Plan a scoring."""
        return self.pool.call("plan_scores", rows, arguments, options)

    def carry_out(self, plan: "Plan", out: Path, how: Filling, report: Report) -> "Run":
        """Compute what a run lacks."""
        from entropy_probe.filling import carry_out_on_ray

        return carry_out_on_ray(
            self.pool, plan, out, resume=how.resume, overwrite=how.overwrite,
            max_disk=how.max_disk, progress=report,
        )  # fmt: skip


@contextmanager
def running(choice: Choice, ray: str | None, threads: int | None = None) -> Iterator[Here | OnRay]:
    """Give the model where it was asked for.

    Args:
        choice: which one.
        ray: address of a Ray cluster, "local" for one on this machine; None for this process.
        threads: CPU threads of a model on Ray; by default as many as this process would use.
    """
    if ray is None:
        yield Here(choice)
        return
    import torch

    from entropy_probe.ray_pool import RayPool

    note(f"connecting to Ray ({ray})")
    threads = threads or torch.get_num_threads()
    with RayPool(ray, choice.arguments(), threads=threads) as pool:
        note(f"room for {pool.actors} of {choice.reference}, {threads} threads each")
        yield OnRay(pool, choice)
