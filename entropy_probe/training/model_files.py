"""A model's files in Hugging Face format, written whatever its generation configuration says."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from entropy_probe.models import no_weights_bar

GENERATION = "generation_config.json"


def save_model(model, tokenizer: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a model and its tokenizer.

    The generation configuration is written as it is: transformers loads one with values that it
    would not read, such as a temperature without sampling, but refuses to save it once changed.

    Args:
        model: a Hugging Face model.
        tokenizer: its tokenizer.
        folder: where to.
        weights: its whole state dictionary, on the CPU.
    """
    kept = getattr(model, "generation_config", None)
    try:
        if kept is not None:
            model.generation_config = type(kept)()
        with no_weights_bar():
            model.save_pretrained(folder, state_dict=dict(weights))
    finally:
        if kept is not None:
            model.generation_config = kept
    if (folder / GENERATION).exists():
        plain = copy.deepcopy(kept)
        plain.compile_config = None  # of this process; there is no JSON of it
        plain.to_json_file(folder / GENERATION)
    tokenizer.save_pretrained(folder)


def check_configuration(model) -> None:
    """Raise where a model's configuration could not be written, or not be loaded again.

    Raises:
        ValueError: with what to do about it.
    """
    try:
        if (generation := getattr(model, "generation_config", None)) is not None:
            generation.validate()
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "the model's configuration cannot be saved, and so no checkpoint could be: "
            f"{str(error).splitlines()[0]}; change model.config or model.generation_config"
        ) from error
