"""Several processes that train one model: who does what, sums over all, and ranks in lockstep."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from entropy_probe.hooks import find_blocks, replace_forward
from entropy_probe.models.engine import Engine

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The processes of a training run, seen from one of them."""

    index: int = 0
    """Which of them this is."""
    count: int = 1
    """How many there are."""
    device: torch.device | None = None
    """Where this one computes; None leaves the model where it is."""

    @property
    def main(self) -> bool:
        """Tell whether this is the process that writes."""
        return self.index == 0

    def share(self, count: int) -> range:
        """Give which of ``count`` things are this process's: neighbours, as many as any other's."""
        ends = [count * i // self.count for i in range(self.count + 1)]
        return range(ends[self.index], ends[self.index + 1])

    def objects(self, mine: Any) -> list[Any]:
        """Give every process's object, in order."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, mine)
        return found

    def gather(self, mine: Tensor) -> list[Tensor]:
        """Give every process's tensor, in order; their lengths may differ."""
        if self.count == 1:
            return [mine]
        return [each.to(mine.device) for each in self.objects(mine.cpu())]

    @property
    def gatherer(self) -> Callable[[Tensor], list[Tensor]] | None:
        """Give `gather`, or None where there is one process."""
        return self.gather if self.count > 1 else None

    def any(self, mine: bool) -> bool:
        """Tell whether it is true in any process."""
        return any(self.objects(mine))

    def all(self, mine: bool) -> bool:
        """Tell whether it is true in every process."""
        return all(self.objects(mine))

    def first(self, work: Callable[[], Result]) -> Result:
        """Do something in the first process alone, and give its result to every one.

        Raises:
            RuntimeError: it failed there; the first process raises the error itself.
        """
        found, failed = None, None
        if self.main:
            try:
                found = work()
            except (ValueError, RuntimeError, OSError) as error:
                failed = error
        ok, told = self.objects((failed is None, str(failed) if failed else found))[0]
        if failed is not None:
            raise failed
        if not ok:
            raise RuntimeError(f"the first process failed: {told}")
        return told

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of every process in each; they are not divided."""
        if self.count == 1:
            return
        works = []
        for parameter in parameters:
            if parameter.grad is None:  # nothing of this batch was here
                parameter.grad = torch.zeros_like(parameter)
            works.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in works:
            work.wait()


def join(device: torch.device | None = None, *, bf16: bool = False) -> Ranks:
    """Give the processes that `accelerate launch` or torchrun began, or this one alone.

    Args:
        device: where the model is; one on the CPU stays there.
        bf16: whether products in bfloat16 are wanted.

    Raises:
        ModuleNotFoundError: accelerate is not installed.
        ValueError: accelerate was told to do what is done here otherwise.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    found = Accelerator()
    plain = (
        DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU,
        DistributedType.MULTI_XPU, DistributedType.MULTI_NPU,
    )  # fmt: skip
    if found.distributed_type not in plain:
        raise ValueError(
            f"accelerate was launched for {found.distributed_type.value}, which is not used here: "
            "launch it for plain data parallel, and pass shard=True to shard the model"
        )
    if found.mixed_precision not in ("no", "bf16") or (found.mixed_precision == "bf16") > bf16:
        raise ValueError(
            f"accelerate was launched with mixed precision {found.mixed_precision}: leave it out, "
            "and pass bf16=True for products in bfloat16"
        )
    if found.num_processes == 1:
        return Ranks()
    device = device if device is not None and device.type == "cpu" else found.device
    return Ranks(found.process_index, found.num_processes, device)


def shard_model(model: nn.Module) -> None:
    """Shard a model's weights over the processes, block by block, in place (FSDP2).

    Gradients become sums over the processes, as `Ranks.sum_gradients` makes them elsewhere.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for block in find_blocks(model):
        fully_shard(block)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def with_bf16(engine: Engine) -> Engine:
    """Give an engine whose blocks multiply in bfloat16; the unembedding stays as it is."""

    @contextmanager
    def running() -> Iterator[None]:
        head = engine.model.get_output_embeddings()
        kind = engine.model.device.type

        def exact(states: Tensor) -> Tensor:
            with torch.autocast(kind, enabled=False):
                return nn.functional.linear(states.to(head.weight.dtype), head.weight, head.bias)

        with engine.running(), torch.autocast(kind, torch.bfloat16), replace_forward(head, exact):
            yield

    return replace(engine, running=running)


def in_lockstep(engine: Engine, ranks: Ranks) -> Engine:
    """Give an engine for sharded models: every process runs as often as the longest-running one.

    Each pass of a sharded model gathers weights from all processes, so that one that is done
    decoding has to go on with idle passes until all are done.
    """

    def run(**inputs: Any) -> Tensor:
        _anyone(ranks, True)
        return engine.run(**inputs)

    @contextmanager
    def running() -> Iterator[None]:
        with engine.running():
            yield
            idle = torch.zeros(1, 1, dtype=torch.long, device=engine.model.device)
            while _anyone(ranks, False):
                engine.run(input_ids=idle, use_cache=False)

    return replace(engine, run=run, running=running)


def _anyone(ranks: Ranks, mine: bool) -> bool:
    """Tell whether any process has something to run."""
    flag = torch.tensor(float(mine), device=ranks.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)
