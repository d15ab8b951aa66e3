"""Every forward hook of the project: read and edit the residual stream of a Hugging Face decoder.

Hooks are context managers. They leave the model as it was, also after an exception, and they run
in the order in which they were entered: a reader entered after an edit sees the edited stream.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .editing import under_way


class HooksSkipped(RuntimeError):
    """The model ran without calling our hooks as often as it ran tokens."""


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Give the decoder's blocks, in order, found by structure rather than by name.

    They are the list of modules as long as the configuration says the decoder is deep; where a
    model has several such lists (a vision tower), the one inside its decoder, nearest the top.

    Raises:
        ValueError: no such list.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ValueError(
            f"expected a Hugging Face model with a config, got {type(model).__name__}; "
            "wrap the network as a PreTrainedModel, or pass the model inside the wrapper"
        )
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for root in (decoder, model):
        lists = [
            (name.count("."), module)
            for name, module in root.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth
        ]
        if lists:
            return min(lists, key=lambda item: item[0])[1]
    raise ValueError(
        f"found no list of {depth} blocks in {type(model).__name__}: it is not a decoder of the "
        "usual build (embedding, blocks, norm, unembedding)"
    )


def resolve_layers(layers: Sequence[int], depth: int) -> list[int]:
    """Give layers as indices 0..depth-1, negatives counted from the end; refuse others."""
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(
                f"layer {layer} is out of range: the model has layers 0 to {depth - 1}"
            )
    resolved = [layer % depth for layer in layers]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"layers {list(layers)} name a layer twice")
    return resolved


class ResidualReader:
    """What passed through chosen blocks: copies, in the order in which they passed.

    ``reader[layer]`` is ``[batch, seq, d_model]``, the pieces of a prefill and of each step
    joined along ``seq``. With `generate`, position t of it is the state *at* token t, which
    predicted token t + 1; the last token generated never ran and has no state.
    """

    def __init__(self, layers: Sequence[int], *, last: bool = False) -> None:
        """Prepare to read some layers, all positions or the last one of each pass."""
        self.layers = list(layers)
        self.last = last
        self.paused = False  # while True, what passes is not kept
        self.traced: dict[int, Tensor] | None = None  # where a compiled step finds what passes
        self._pieces: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        self._seen: dict[int, int] = dict.fromkeys(self.layers, 0)

    def __getitem__(self, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """Join what passed through a layer so far."""
        if not self._pieces[layer]:
            raise HooksSkipped(f"nothing has passed through layer {layer} yet")
        return torch.cat(self._pieces[layer], dim=1)

    def take(self, *, tokens: int) -> dict[int, Float[Tensor, "batch seq d_model"]]:
        """Give and forget what passed, after checking it against the tokens that ran.

        Raises:
            HooksSkipped: the hooks saw another number of tokens (batch times positions): a
                compiled graph, a replayed cache or a wrapper ran the model without them.
        """
        self.check(tokens=tokens)
        taken = {layer: self[layer] for layer in self.layers}
        self.clear()
        return taken

    def check(self, *, tokens: int) -> None:
        """Raise `HooksSkipped` unless every layer saw exactly this many tokens."""
        for layer, seen in self._seen.items():
            if seen != tokens:
                raise HooksSkipped(
                    f"layer {layer} saw {seen} tokens while the model ran {tokens}: hooks were "
                    "skipped or ran twice (torch.compile after hooks, CUDA graphs, gradient "
                    "checkpointing); capture on the uncompiled model"
                )

    def clear(self) -> None:
        """Forget what passed."""
        self._pieces = {layer: [] for layer in self.layers}
        self._seen = dict.fromkeys(self.layers, 0)

    def _record(self, layer: int, stream: Tensor) -> None:
        if self.traced is not None:
            self.traced[layer] = stream[:, -1:]
            return
        if self.paused or _in_backward():
            return
        self._seen[layer] += stream.shape[0] * stream.shape[1]
        part = stream[:, -1:] if self.last else stream
        # A copy: the model may edit its stream in place, and a view would pin the whole of it.
        self._pieces[layer].append(part.detach().clone())


@contextmanager
def read_residuals(
    model: nn.Module, layers: Sequence[int], *, last: bool = False
) -> Iterator[ResidualReader]:
    """Read the residual stream after some blocks while the model runs.

    Args:
        model: a Hugging Face decoder; it is left as it was.
        layers: which blocks, 0 the first; negatives count from the end (the reader's keys are
            the resolved, non-negative ones).
        last: keep only the last position of each pass (what predicts the next token when
            prompts are left-padded).

    Yields:
        A `ResidualReader`; ``reader[layer]`` is ``[batch seq d_model]``.

    Raises:
        ValueError: a layer out of range, or a model whose blocks are not found.
    """
    blocks = find_blocks(model)
    reader = ResidualReader(resolve_layers(layers, len(blocks)), last=last)
    with ExitStack() as stack:
        for layer in reader.layers:
            stack.enter_context(
                _hook(blocks[layer], lambda stream, layer=layer: reader._record(layer, stream))
            )
        yield reader


@contextmanager
def edit_residuals(
    model: nn.Module, layer: int, edit: Callable[[Tensor], Tensor | None], *,
    about: str | None = None,
) -> Iterator[None]:  # fmt: skip
    """Change the residual stream after a block while the model runs.

    Args:
        model: a Hugging Face decoder; it is left as it was.
        layer: which block, 0 the first.
        edit: gets the stream ``[batch seq d_model]`` of each pass and returns its replacement
            (same shape), or None to leave it alone. It must not edit in place.
        about: what the provenance of a record of the edited model says of it.

    Raises:
        ValueError: a layer out of range, or an edit that changes the shape.
    """
    blocks = find_blocks(model)
    (index,) = resolve_layers([layer], len(blocks))

    def replace(stream: Tensor) -> Tensor | None:
        edited = edit(stream)
        if edited is not None and edited.shape != stream.shape:
            raise ValueError(
                f"the edit at layer {index} turned {tuple(stream.shape)} into "
                f"{tuple(edited.shape)}; it must keep the shape"
            )
        return edited

    words = f"a function after layer {index}" if about is None else about
    with under_way(blocks[index], words), _hook(blocks[index], replace):
        yield


@contextmanager
def _hook(block: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Run a function on a block's output stream, whether the block gives a tensor or a tuple."""

    def forward_hook(module: nn.Module, inputs: tuple, output: object) -> object:
        if isinstance(output, tuple):
            changed = change(output[0])
            return None if changed is None else (changed, *output[1:])
        return change(output)

    handle = block.register_forward_hook(forward_hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def read_output(module: nn.Module) -> Iterator[list]:
    """Read what a module gives while a model runs it.

    Yields:
        A list, to which each run adds the module's output.
    """
    outputs: list = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def watch_inputs(module: nn.Module, see: Callable[[Mapping[str, object]], None]) -> Iterator[None]:
    """Show a function the arguments of each run of a module, by name, before it runs."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        see(dict(zip(names, args, strict=False)) | kwargs)

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off while sampling, and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def replace_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Run another function where a module's forward would run, inside all hooks and wrappers.

    Those of DistributedDataParallel and `fully_shard` see the pass as they see any other.
    """
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def watch_passes(
    module: nn.Module,
    before: Callable[[Mapping[str, object]], None],
    after: Callable[[Mapping[str, object], object], None],
) -> Iterator[None]:
    """Show functions the arguments of each run of a module, before it, and its output after it.

    What a backward pass runs again, under gradient checkpointing, is not shown; ``after`` is
    called without autograd.
    """
    names = list(inspect.signature(type(module).forward).parameters)[1:]

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not _in_backward():
            before(dict(zip(names, args, strict=False)) | kwargs)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if not _in_backward():
            with torch.no_grad():
                after(dict(zip(names, args, strict=False)) | kwargs, output)

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def _in_backward() -> bool:
    """Tell whether a backward pass runs what runs now, as gradient checkpointing makes it do."""
    return torch._C._current_graph_task_id() != -1
