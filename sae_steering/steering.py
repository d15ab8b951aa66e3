"""Steer a model while it runs: change features, or directions, of its residual stream."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from entropy_probe.editing import edits_of
from entropy_probe.hooks import (
    HooksSkipped,
    edit_residuals,
    find_blocks,
    resolve_layers,
    watch_inputs,
)
from entropy_probe.models.engine import Engine, body_of, engine_of
from entropy_probe.rollout import Rollouts

from .edits import Dictionary, Direction, Edit, feature_directions, require_mode
from .forks import ForkSteps, Threshold, fork_threshold
from .places import (
    Places,
    all_places,
    at_opening,
    columns_before,
    generated_places,
    places_of,
    prompt_places,
)
from .whole import Whole

WHERE: dict[str, Callable[[Places], Tensor]] = {
    "all": all_places,
    "prompt": prompt_places,
    "opening": at_opening,
    "generated": generated_places,
}
"""Choices of places that have a name, besides those that are decided by entropy."""

ENTROPIC = ("forks", "non-forks")
"""Names of those."""

Where = str | Callable[[Places], Bool[Tensor, "batch seq"]]


@dataclass(frozen=True)
class Steered(Engine):
    """A model that is steered: for `sample` and `score`, which then know, and record, the edit."""

    steps: ForkSteps | None = None
    """What was decided step by step, where the places are the forks."""

    def sampling(self, rows: int, steps: int) -> AbstractContextManager:
        """Give what is entered around the sampling of some rows, while the context lasts."""
        self._require_open()
        return super().sampling(rows, steps)

    def scoring(self, rows: Tensor, prompt_lengths: Tensor) -> AbstractContextManager:
        """Give what is entered around a pass over whole rows, while the context lasts."""
        self._require_open()
        return super().scoring(rows, prompt_lengths)

    def _require_open(self) -> None:
        """Refuse to run as if the model were steered when it no longer is."""
        if self.editor is not None and self.edit not in edits_of(self.model):
            raise ValueError(
                f"the context has ended that steered the model ({self.edit}): sample and score "
                "inside `with steer(...) as steered`, or pass the model itself for an unsteered run"
            )


@contextmanager
def steer(
    model,
    sae: Dictionary | None,
    features: Mapping[int | Direction, float | int],
    *,
    layer: int | None = None,
    mode: str = "add",
    where: Where = "all",
    threshold: float | int | Rollouts | str | Path | Threshold | None = None,
) -> Iterator[Steered]:
    """Change features of a dictionary, or plain directions, in the stream after one block.

    With x a state, f its activations, d the decoder's directions (any rescaling of the dictionary
    undone) and s the strengths, a chosen state becomes

    - ``add``: x + sum s d. Directions: the same, d the vector as it is.
    - ``clamp``: x + sum (s - f) d, so that each activation becomes s; 0 is no identity but takes
      the feature out.
    - ``ablate``: x - sum s f d; s is the share taken out, 1 is all of it. Directions: x less the
      share s of its part along the vector.
    - ``replace``: the smallest change that makes the component of x along each d / |d| equal to s
      (the steering of arXiv 2503.18878's code); 0 projects the direction out.

    What the dictionary does not reconstruct stays, and other states are not touched: an empty set
    of features, and strength 0 in ``add`` and ``ablate``, leave every bit as it was.

    ``where`` says which states. "prompt": at tokens of the prompt; "opening": at the last of them,
    which decides the first generated token; "generated": at generated ones; or a function of the
    `Places` of a pass. "forks" is decided while sampling: a step whose entropy, before the edit
    and on the prefix steered so far, reaches the threshold is run again with the edit at its last
    position before its token is drawn; "non-forks" edits the other steps, as a control.
    That needs `sample` on what this gives; a model's own `generate` cannot roll its cache back,
    and is refused.

    Args:
        model: as for `entropy_probe.sample`; it is left as it was.
        sae: the dictionary whose features are named by number, or None for directions alone.
        features: feature or `Direction` -> strength.
        layer: which block, 0 the first, negatives from the end; by default the dictionary's.
        mode: see above.
        where: a name of those, or a function of `Places`.
        threshold: nats, where entropy decides: a number, or an unsteered run (its record or its
            folder), whose 80th percentile is taken and recorded.

    Yields:
        The steered model, for `sample` and `score`; the model itself is steered too, in `generate`
        and every other pass, while the context lasts. Records of both name all edits under way.

    Raises:
        ValueError: an argument that makes no sense, or places that cannot be known.

    >>> from entropy_probe import load, sample
    >>> model, tokenizer = load("organism:amenable")
    >>> push = Direction(torch.ones(128), "ones")
    >>> with steer(model, None, {push: 0.1}, layer=1) as steered:
    ...     rollouts = sample(steered, tokenizer, ["Compute 473, plus 8."], max_new_tokens=4)
    >>> rollouts.provenance.edit
    'add ones 0.1 after layer 1, where=all'
    """
    engine = engine_of(model)
    if engine.editor is not None:
        raise ValueError("the model is steered already: pass the model itself to a second steer")
    edit = edit_of(sae, features, mode)
    index = _layer(engine.model, sae, layer)
    width = engine.model.config.get_text_config().hidden_size
    if len(edit.strengths) and edit.directions.shape[1] != width:
        raise ValueError(
            f"the directions have {edit.directions.shape[1]} numbers, but the stream of the model "
            f"has {width}: they belong to another model"
        )
    forks = _forks(where, threshold)
    place = where if isinstance(where, str) else getattr(where, "__name__", "chosen")
    about = f"{edit.describe()} after layer {index}, where={place}"
    about = about if forks is None else f"{about}, {forks.threshold.describe()}"
    if edit.is_nothing:
        yield _engine(engine, None, None, "nothing")
        return
    editor = forks or Whole(WHERE[where] if isinstance(where, str) else where)
    with ExitStack() as stack:
        if forks is not None:
            engine = forks.around(engine)
        seen = stack.enter_context(_editing(engine.model, index, edit, editor, about))
        yield _engine(engine, editor, forks, about)
        seen.check()


def edit_of(
    sae: Dictionary | None, features: Mapping[int | Direction, float | int], mode: str
) -> Edit:
    """Give the change of states that features and strengths stand for.

    Raises:
        ValueError: features that the dictionary does not have, strengths that are not finite,
            numbers without a dictionary, or numbers and directions together.
    """
    keys, strengths = list(features), [float(s) for s in features.values()]
    if not all(map(math.isfinite, strengths)):
        raise ValueError(f"strengths must be finite, got {strengths}")
    plain = [key for key in keys if isinstance(key, Direction)]
    require_mode(mode, sae is not None and not plain)
    if plain and len(plain) < len(keys):
        raise ValueError(
            "features and directions are changed one after the other: nest two steer contexts"
        )
    if plain:
        vectors = torch.stack([torch.as_tensor(key.vector).float() for key in plain])
        if mode != "add" and bool((vectors.norm(dim=1) == 0).any()):
            raise ValueError(f"mode={mode!r} needs directions that are not zero")
        return Edit(mode, vectors, torch.tensor(strengths), tuple(key.name for key in plain))
    if not keys:
        return Edit(mode, torch.zeros(0, 0), torch.zeros(0), ())
    if sae is None:
        raise ValueError(
            f"features {keys} are numbers of a dictionary, and there is none: pass sae, or "
            "Direction(vector) in their place"
        )
    count = sae.W_dec.shape[0]
    if wrong := [k for k in keys if isinstance(k, bool) or not isinstance(k, int)]:
        raise ValueError(f"features must be whole numbers or Directions, got {wrong}")
    if wrong := [k for k in keys if not 0 <= k < count]:
        raise ValueError(f"the dictionary has features 0 to {count - 1}, got {wrong}")
    names = tuple(f"feature {key}" for key in keys)
    with torch.no_grad():
        directions = feature_directions(sae, keys)
    return Edit(mode, directions, torch.tensor(strengths), names, sae, tuple(keys))


@dataclass
class _Seen:
    """How much the model ran, and how much of it passed our hook."""

    ran: int = 0
    """Tokens that entered the model."""
    passed: int = 0
    """Tokens that came out of the block."""

    def check(self) -> None:
        """Raise where nothing that the model ran passed the edit."""
        if self.ran and not self.passed:
            raise HooksSkipped(
                f"the model ran {self.ran} tokens, but none passed the edit: hooks were skipped "
                "(torch.compile, CUDA graphs); steer the uncompiled model"
            )


@contextmanager
def _editing(model, layer: int, edit: Edit, editor, about: str) -> Iterator[_Seen]:
    """Edit what the editor chooses, in every pass."""
    body = body_of(model)
    inputs: dict[str, object] = {}
    cached: int | None = None
    seen = _Seen()

    def look(arguments: Mapping[str, object]) -> None:
        nonlocal inputs, cached
        inputs, cached = dict(arguments), columns_before(arguments)
        given = arguments.get("input_ids")
        given = arguments.get("inputs_embeds") if given is None else given
        seen.ran += given.shape[0] * given.shape[1] if isinstance(given, Tensor) else 0

    def change(stream: Tensor) -> Tensor | None:
        seen.passed += stream.shape[0] * stream.shape[1]
        chosen = editor.choose_places(places_of(inputs, stream, cached))
        if not bool(chosen.any()):
            return None
        edited = stream.clone()
        edited[chosen] = edit(stream[chosen])
        return edited

    with watch_inputs(body, look), edit_residuals(model, layer, change, about=about):
        yield seen


def _engine(engine: Engine, editor, steps: ForkSteps | None, about: str) -> Steered:
    """Give an engine that knows of the edit."""
    parts = {f.name: getattr(engine, f.name) for f in fields(Engine)}
    return Steered(**parts | {"editor": editor, "edit": about, "steps": steps})


def _forks(where: Where, threshold: object) -> ForkSteps | None:
    """Give what decides on forks, if they are asked for."""
    if where not in ENTROPIC:
        if isinstance(where, str) and where not in WHERE:
            names = (*WHERE, *ENTROPIC)
            raise ValueError(f"where must be one of {names} or a function, got {where!r}")
        if threshold is not None:
            raise ValueError("threshold belongs to where='forks' and 'non-forks', and there only")
        return None
    if threshold is None:
        raise ValueError(
            f"where={where!r} needs threshold=: nats, or an unsteered run (record or folder) whose "
            "80th percentile is taken"
        )
    return ForkSteps(fork_threshold(threshold), below=where == "non-forks")


def _layer(model: nn.Module, sae: Dictionary | None, layer: int | None) -> int:
    """Give the block to edit after."""
    layer = getattr(sae, "layer", None) if layer is None else layer
    if layer is None:
        raise ValueError("layer is missing: which block's output is to be changed?")
    return resolve_layers([layer], len(find_blocks(model)))[0]
