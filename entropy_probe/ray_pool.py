"""A pool of model actors on Ray: chunks of a plan, computed wherever there is room for a model."""

import math
import re
import socket
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .storage.errors import RunError

if TYPE_CHECKING:
    from .computing import Loaded
    from .rollout import Rollouts
    from .storage.plan import Plan

TRIES = 3
"""How often a chunk is begun before its failure is taken to be its own, not a machine's."""


class _Worker:
    """One model, in a process of its own; everything it does is a call of the library."""

    def __init__(self, model: dict[str, Any], threads: int) -> None:
        """Keep what to load; it is loaded by `ready`, whose errors come back as they are."""
        self.arguments, self.threads = model, threads

    def ready(self) -> None:
        """Load the model."""
        import torch

        from .models import load

        torch.set_num_threads(self.threads)
        self.model, self.tokenizer = load(**self.arguments)

    def describe(self) -> "Loaded":
        """Say what the model is, here."""
        from .computing import describe

        return describe(self.model)

    def depth(self) -> int:
        """Count the model's blocks."""
        from .hooks import find_blocks

        return len(find_blocks(self.model))

    def plan_samples(self, prompts: Sequence[object], arguments: dict, options: dict) -> "Plan":
        """Plan a capture where the model is."""
        from .planning import plan_samples

        return plan_samples(self.model, self.tokenizer, prompts, arguments, **options)

    def plan_scores(self, rows: Sequence[dict], arguments: dict, options: dict) -> "Plan":
        """Plan a scoring where the model is."""
        from .planning import plan_scores

        return plan_scores(self.model, rows, arguments, **options)

    def run_chunk(self, plan: "Plan", index: int) -> "Rollouts":
        """Compute a chunk; a machine whose copy of the model is another one computes nothing."""
        from .computing import refuse_another_model, run_chunk

        refuse_another_model(plan, self.describe())
        return run_chunk(self.model, self.tokenizer, plan, index)


class RayPool:
    """Model actors on a Ray cluster, used as a context manager.

    Each holds the model and computes one chunk at a time with the plan's thread count, so that
    the result is the single process's. A chunk whose actor or machine dies goes to another one;
    a replacement is asked for and takes part once there is room for it.
    """

    def __init__(
        self,
        address: str,
        model: dict[str, Any],
        *,
        threads: int,
        actors: int | None = None,
    ) -> None:
        """Connect, and learn how many models fit.

        Args:
            address: "local" for this machine, "auto" or ``ray://…`` for a running cluster.
            model: keyword arguments of `load`.
            threads: CPU threads of an actor, and the cores that it takes.
            actors: how many models at most; by default one a GPU, or else as many as the
                machines' cores allow.

        Raises:
            RunError: Ray is not installed, there is no cluster at the address, or none of its
                machines has the cores (and the GPU, where there are any) that a model takes.
        """
        self.ray = _import_ray()
        self.model, self.threads = model, threads
        self.deaths = 0
        """Actors that died so far, with whatever they were computing."""
        self._alive: list[Any] = []
        self._asked: list[Any] = []
        self._mine = not self.ray.is_initialized()
        if self._mine:
            _connect(self.ray, address)
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.gpus = 1 if any(machine.get("GPU", 0) >= 1 for machine in machines) else 0
        try:
            room = _room(machines, threads, self.gpus)
        except RunError:
            self.__exit__()
            raise
        self.actors = room if actors is None else max(1, actors)

    def __enter__(self) -> "RayPool":
        """Give the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the actors go, and the cluster if it was started here."""
        for actor in [*self._alive, *self._asked]:
            self._kill(actor)
        if self._mine:
            self.ray.shutdown()

    def call(self, method: str, *arguments: object) -> Any:
        """Run a method of one worker, after loading the model there, and give its result.

        Raises:
            LoadError: the model cannot be loaded there.
            ValueError: what the method says of bad arguments.
        """
        if not self._alive:
            self.start(1)
        return self._value(getattr(self._alive[0], method).remote(*arguments))

    def start(self, count: int | None = None) -> None:
        """Load models until there are ``count``, all that fit by default, and wait for them.

        Without it the first chunk begins as soon as one model is loaded.

        Raises:
            LoadError: the model cannot be loaded there.
        """
        asked = [self._ask() for _ in range((count or self.actors) - len(self._alive))]
        for actor, ready in [(actor, actor.ready.remote()) for actor in asked]:
            self._value(ready)
            self._asked.remove(actor)
            self._alive.append(actor)

    def chunks(self, plan: "Plan", indices: Sequence[int]) -> "Iterator[tuple[int, Rollouts]]":
        """Compute chunks of a plan, given as (index, rows) in the order in which they finish.

        Raises:
            RunError: a chunk failed `TRIES` times because its actor died.
        """
        waiting, tries = deque(indices), Counter()
        shared = self.ray.put(plan)
        idle = list(self._alive)
        running: dict[Any, tuple[Any, int | None]] = {}
        while len(self._alive) + len(self._asked) < min(self.actors, len(waiting)):
            self._ask_ready(running)
        while waiting or any(index is not None for _, index in running.values()):
            while waiting and idle:
                actor, index = idle.pop(), waiting.popleft()
                running[actor.run_chunk.remote(shared, index)] = (actor, index)
            (ready,), _ = self.ray.wait(list(running), num_returns=1)
            actor, index = running.pop(ready)
            try:
                rollouts = self._value(ready)
            except self._lost as error:
                self._bury(actor)
                if index is not None:
                    tries[index] += 1
                    _refuse_hopeless(index, tries[index], error)
                    waiting.appendleft(index)
                self._ask_ready(running)
                continue
            if actor in self._asked:
                self._asked.remove(actor)
                self._alive.append(actor)
            idle.append(actor)
            if index is not None:
                yield index, rollouts

    @property
    def _lost(self) -> tuple[type[Exception], ...]:
        """Give the errors that mean a dead process or machine, not a wrong argument."""
        e = self.ray.exceptions
        return (e.RayActorError, e.NodeDiedError, e.WorkerCrashedError, e.ObjectLostError)

    def _ask(self) -> Any:
        """Ask for an actor; it exists once there is room for it."""
        remote = self.ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0)
        actor = remote(_Worker).remote(self.model, self.threads)
        self._asked.append(actor)
        return actor

    def _ask_ready(self, running: dict) -> None:
        """Ask for an actor, and wait for its model like for a chunk."""
        actor = self._ask()
        running[actor.ready.remote()] = (actor, None)

    def _bury(self, actor: Any) -> None:
        """Forget an actor that died."""
        self.deaths += 1
        for known in (self._alive, self._asked):
            if actor in known:
                known.remove(actor)
        self._kill(actor)

    def _kill(self, actor: Any) -> None:
        with suppress(*self._lost, ValueError):
            self.ray.kill(actor)

    def _value(self, reference: Any) -> Any:
        """Give the value of a call, or raise what the library raised there."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _refuse_hopeless(index: int, tries: int, error: Exception) -> None:
    """Raise where a chunk has killed too many actors for chance."""
    if tries >= TRIES:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"chunk {index} was begun {tries} times and its actor died each time",
            first,
            "look for out-of-memory kills; a smaller --batch-size needs less; go on with --resume",
        )


def _room(machines: Sequence[Mapping[str, float]], threads: int, gpus: int) -> int:
    """Count the models that fit, each whole on a machine; raise where Ray would wait for ever."""
    fit = [m for m in machines if m.get("GPU", 0) >= gpus]
    room = sum(int(min(m.get("CPU", 0) // threads, m["GPU"] if gpus else math.inf)) for m in fit)
    if not room:
        most = int(max((m.get("CPU", 0) for m in fit), default=0))
        with_gpu = " with a GPU" if gpus else ""
        raise RunError(
            f"no machine of the Ray cluster has room for a model: it takes {threads} cores"
            + " and a GPU" * gpus,
            f"the most cores of a machine{with_gpu} are {most}",
            f"join one with {threads} cores to the cluster; a new run takes fewer with "
            f"OMP_NUM_THREADS={max(1, most)}, and one that is there goes on without --ray",
        )
    return room


def _import_ray() -> Any:
    """Import Ray, or say how to install it."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RunError(
            "Ray is not installed", str(error), "pip install 'entropy-probe[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Start Ray on this machine, or join a cluster."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        # With no address Ray would join whatever cluster runs here already, someone else's too.
        ray.init(address="local", include_dashboard=False, **options)
        return
    try:
        _knock(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"no Ray cluster at {address!r}",
            str(error).splitlines()[0],
            "start one with `ray start --head`, or pass --ray local",
        ) from None


def _knock(address: str) -> None:
    """Raise at once where nothing listens; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/:]+):([0-9]+)", address)
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
