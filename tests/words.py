"""A task for the tiny model: continue with a word of even number. And runs of it that are quick."""

import inspect
from dataclasses import dataclass

from entropy_probe.tasks import Problem
from entropy_probe.training.config import TrainConfig


@dataclass(frozen=True)
class Words:
    """Right is a completion whose first word has an even number."""

    name: str = "words"

    def problems(self, limit, *, split="test", seed=0):
        first = 0 if split == "train" else 46
        count = min(limit, 46)
        return [
            Problem(f"w{first + i} w{(i * 7 + seed) % 90} ", "even", f"{split} {i}")
            for i in range(count)
        ]

    def verify(self, problem, completion):
        word = completion.split(" ")[0]
        return float(word.startswith("w") and int(word[1:]) % 2 == 0)


def quick(**options) -> TrainConfig:
    """Give a configuration of short runs."""
    settings = {
        "steps": 3, "prompts": 4, "n": 4, "max_new_tokens": 8, "problems": 40, "optimizer": "sgd",
        "lr": 0.01, "rollouts_every": 0, "checkpoint_every": 2, "seed": 3,
    }  # fmt: skip
    config = object.__new__(TrainConfig)
    # Without the tests' own check of types, as users have it.
    inspect.unwrap(TrainConfig.__init__)(config, **settings | options)
    return config
