"""All analyses, in the order of the plan and of the README."""

import importlib

from .analysis import Analysis

NAMES = (
    "forking_tokens",
    "fork_rl",
    "spurious_rewards",
    "misaligned_rewards",
    "capability_boundary",
    "pretraining_dose",
)


def every_analysis() -> list[Analysis]:
    """Give what each module of `NAMES` declares."""
    return [importlib.import_module(f"analyses.{name}").ANALYSIS for name in NAMES]
