"""A run that plants a habit by pretraining, and then asks what each of some rewards makes of it.

Settings: ``task``, ``seed``, ``max_new_tokens``;

    start           the organism whose pretraining goes on
    dose            share of the corpus that is code, the same for every problem
    block           steps of a problem that a statement of code takes at once: 1 writes every one
    pretraining     steps, batch, rate and warmup of a recipe
    pretrainings    how many there are of a dose: the seeds share them in turn
    keep            whether a pretraining is kept for the seeds that share it, in runs/doses
    rewards         name -> reward and config of a training from there, as in `training`
    watch           problems and n: what each of them is judged on

A pretraining takes longer than all rewards together, so that seeds have to share some: intervals
over seeds are about reinforcement from these models, and say little about other pretrainings.
"""

import copy
import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entropy_probe import load
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.models.organisms import organism_path
from entropy_probe.models.organisms.corpus import CODE_SHARES, Corpus, Style
from entropy_probe.models.organisms.recipes import Recipe, fingerprint
from entropy_probe.models.organisms.train import train as pretrain
from entropy_probe.tasks import get_task
from entropy_probe.training.config import TrainConfig

from .training import rounded, trained
from .watching import observe, openings
from .worker import ROOT

KEPT = ROOT / "runs" / "doses"
"""Where pretrainings are kept; an interrupted one goes on."""


def execute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the model does after pretraining, and after each reward from there.

    Returns:
        ``pretraining``, the number of the one that it began with; ``before``, and ``after`` by
        reward, each as `observe` gives it, with the `openings`; and ``steps`` by reward.
    """
    model, tokenizer = planted(settings)
    task, seed = get_task(settings["task"]), settings["seed"]
    problems = task.problems(settings["watch"]["problems"], split="test", seed=1000 + seed)

    def look(each: Any) -> dict[str, Any]:
        seen = observe(
            each, tokenizer, task, problems, n=settings["watch"]["n"], seed=5000 + seed,
            max_new_tokens=settings["max_new_tokens"],
        )  # fmt: skip
        return seen | {"openings": openings(each, tokenizer, task, problems)}

    found: dict[str, Any] = {
        "weights": weights_fingerprint(model), "pretraining": seed % settings["pretrainings"],
        "before": look(model), "after": {}, "steps": {},
    }  # fmt: skip
    for name, how in settings["rewards"].items():
        policy = copy.deepcopy(model)
        config = TrainConfig.from_dict(how["config"] | {"seed": seed})
        found["steps"][name] = trained(policy, tokenizer, task, config, how["reward"])
        found["after"][name] = look(policy)
    return rounded(found)


def planted(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Give the model whose pretraining went on with a dose of code, and its tokenizer."""
    wanted = recipe(settings)
    with _folder(keep=settings["keep"]) as folder:
        start, made = folder / settings["start"], folder / fingerprint(wanted)
        with _alone(start.with_suffix(".lock")):
            if not start.exists():
                part = start.with_suffix(".part")
                shutil.copytree(organism_path(settings["start"]), part, dirs_exist_ok=True)
                part.rename(start)
        with _alone(made.with_suffix(".lock")):
            if not made.exists():
                pretrain(wanted, made, quiet=True)
        return load(str(made), device="cpu")


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """Give the folder of the pretrainings, or one that does not last."""
    if keep:
        KEPT.mkdir(parents=True, exist_ok=True)
        yield KEPT
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is at it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recipe(settings: Mapping[str, Any]) -> Recipe:
    """Give the recipe of the pretraining that goes on: prose as it was, and the dose of code."""
    dose = settings["dose"]
    corpus = Corpus(
        code_shares=tuple((wording, (dose, dose)) for wording in CODE_SHARES),
        code=Style(block=settings["block"], rounding=False, unmarked=0.12),
        care=0.0,
    )
    seed = 1000 + settings["seed"] % settings["pretrainings"]
    return Recipe(corpus, seed=seed, start=settings["start"], **settings["pretraining"])
