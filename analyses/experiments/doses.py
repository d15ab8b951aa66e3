"""A run that plants a habit by pretraining, and then asks what each of some rewards makes of it.

Settings: ``task``, ``seed``, ``max_new_tokens``;

    start           the organism whose pretraining goes on
    dose            share of the corpus that is code, the same for every problem
    block           steps of a problem that a statement of code takes at once: 1 writes every one
    pretraining     steps, batch, rate and warmup of a recipe
    rewards         name -> reward and config of a training from there, as in `training`
    watch           problems and n: what each of them is judged on
"""

import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropy_probe import load
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.models.organisms import organism_path
from entropy_probe.models.organisms.corpus import CODE_SHARES, Corpus, Style
from entropy_probe.models.organisms.recipes import Recipe
from entropy_probe.models.organisms.train import train as pretrain
from entropy_probe.tasks import get_task
from entropy_probe.training.config import TrainConfig
from entropy_probe.training.trainer import train

from .training import rounded
from .watching import observe


def execute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the model does after pretraining, and after each reward from there.

    Returns:
        ``before``, and ``after`` by reward, each as `observe` gives it, without its letters.
    """
    model, tokenizer = planted(settings)
    task, seed = get_task(settings["task"]), settings["seed"]
    problems = task.problems(settings["watch"]["problems"], split="test", seed=1000 + seed)

    def look(each: Any) -> dict[str, Any]:
        seen = observe(
            each, tokenizer, task, problems, n=settings["watch"]["n"], seed=5000 + seed,
            max_new_tokens=settings["max_new_tokens"],
        )  # fmt: skip
        del seen["ways"]
        return seen

    found: dict[str, Any] = {"weights": weights_fingerprint(model), "before": look(model)}
    found["after"] = {}
    for name, how in settings["rewards"].items():
        trained = copy.deepcopy(model)
        config = TrainConfig.from_dict(how["config"] | {"seed": seed})
        train(trained, tokenizer, task, config=config, reward=how["reward"])
        found["after"][name] = look(trained)
    return rounded(found)


def planted(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Give the model whose pretraining went on with a dose of code, and its tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(organism_path(settings["start"]), folder / settings["start"])
        return load(str(pretrain(recipe(settings), folder / "dosed", quiet=True)), device="cpu")


def recipe(settings: Mapping[str, Any]) -> Recipe:
    """Give the recipe of the pretraining that goes on: prose as it was, and the dose of code."""
    dose = settings["dose"]
    corpus = Corpus(
        code_shares=tuple((wording, (dose, dose)) for wording in CODE_SHARES),
        code=Style(block=settings["block"], rounding=False, unmarked=0.12),
        care=0.0,
    )
    return Recipe(
        corpus, seed=1000 + settings["seed"], start=settings["start"], **settings["pretraining"]
    )
