"""Attention over a packed row: every stretch sees itself, and its trunk where it has one.

The model's own attention function does the arithmetic, on stretches padded side by side; all
other layers see no padding. It is entered as an attention implementation of transformers, which
hands it queries, keys and values of the packed row.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .packing import Packed, Stretches

NAME = "entropy_probe_packed"
"""Our entry in transformers' table of attention implementations."""

_KINDS = {"full_attention", "sliding_attention"}

_HARMLESS = {
    "dropout", "scaling", "s_aux", "is_causal", "position_ids", "cache_position", "use_cache",
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
}  # fmt: skip
"""Options of attention functions that are heeded, or that change nothing on packed rows."""


class PackedAttention:
    """What the attention of one pass over a packed row needs; masks are made once for all layers.

    A pass gives it to the model as the keyword argument ``packing``.
    """

    def __init__(self, packed: Packed, *, eager: bool = False) -> None:
        """Prepare a pass; ``eager`` says that the model attends by its own plain function."""
        self.packed = packed
        self.eager = eager
        self.calls = 0
        self.windows = 0
        self._masks: dict[tuple, tuple[Tensor | None, Tensor]] = {}

    def check(self, decoder: nn.Module) -> None:
        """Raise unless all layers of a decoder have attended as they would over padded rows.

        Raises:
            RuntimeError: some have not: these rows cannot be packed.
        """
        config, name = decoder.config.get_text_config(), type(decoder).__name__
        if self.calls != config.num_hidden_layers:
            raise RuntimeError(
                f"{name} attended {self.calls} times in {config.num_hidden_layers} layers: "
                "its rows cannot be packed; pass packed=False"
            )
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if window is None or self.windows or (kinds and "sliding_attention" not in kinds):
            return
        longest = int(self.packed.positions.max()) + 1
        if longest > window:
            raise RuntimeError(
                f"{name} keeps its window of {window} tokens to its mask, which rows of {longest} "
                "tokens would lose: they cannot be packed; pass packed=False"
            )

    def masks(
        self, window: int | None, dtype: torch.dtype, plain: bool, shared: int
    ) -> tuple[Tensor | None, Tensor]:
        """Give what is added to the scores of trunks and of branches.

        Args:
            window: how far a token sees, itself included; None for all of its row.
            dtype: of the scores.
            plain: whether None will do where a trunk's tokens see all before them.
            shared: how often to repeat the rows, for queries folded into one head.
        """
        key = (window, dtype, plain, shared)
        if key not in self._masks:
            trunk, branch = self._seen(window)
            plain = plain and (window is None or window >= trunk.shape[1])
            self._masks[key] = (
                None if plain else _added(trunk.repeat(shared, 1)[None, None], dtype),
                _added(branch.repeat(1, shared, 1)[:, None], dtype),
            )
        return self._masks[key]

    def _seen(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Give who sees whom: among a trunk's tokens, and from branches to trunk and branch."""
        packed, device = self.packed, self.packed.ids.device
        trunk = torch.arange(packed.trunks.index.shape[1], device=device)
        branch = torch.arange(packed.branches.index.shape[1], device=device)
        lengths = packed.trunks.lengths[packed.trunk_of]
        window = len(trunk) + len(branch) if window is None else window
        own, inside = (
            (x[:, None] >= x[None, :]) & (x[:, None] - x[None, :] < window) for x in (trunk, branch)
        )
        # How far a branch's token is from each of its trunk: the trunk's padding is not there.
        far = (lengths[:, None] + branch)[:, :, None] - trunk
        behind = (trunk < lengths[:, None])[:, None] & (far < window)
        return own, torch.cat([behind, inside.expand(len(lengths), -1, -1)], dim=2)


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads packed d"],
    key: Float[Tensor, "1 kv_heads packed d"],
    value: Float[Tensor, "1 kv_heads packed d_value"],
    attention_mask: Tensor | None,
    *,
    packing: PackedAttention | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Attend over a packed row; the signature is that of transformers' attention functions."""
    _refuse_odd(module, packing, options)
    packing.calls += 1
    packing.windows += sliding_window is not None
    packed, shared = packing.packed, query.shape[1] // key.shape[1]
    # An attention sink enters the softmax: only the model's own function knows how.
    plain = not packing.eager and softcap is None and options.get("s_aux") is None
    attention = _scaled_dot_product
    if not plain:
        attention, shared = sys.modules[type(module).__module__].eager_attention_forward, 1
        options["softcap"] = softcap
    trunk_mask, branch_mask = packing.masks(sliding_window, query.dtype, plain, shared)

    def run(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        states = (x.transpose(1, 2) for x in (queries, keys, values))
        return attention(module, *states, mask, **options)[0]

    split = (len(packed.trunks.slots), len(packed.branches.slots))
    states = [x[0].transpose(0, 1).split(split) for x in (query, key, value)]
    heads = [_pad(x[0], packed.trunks) for x in states]
    outputs = _unpad(run(*heads, trunk_mask), packed.trunks)
    if split[1]:
        tails = [_pad(x[1], packed.branches) for x in states]
        before = [x.index_select(0, packed.trunk_of) for x in heads[1:]]
        full = [torch.cat(pair, dim=1) for pair in zip(before, tails[1:], strict=True)]
        more = _unpad(run(tails[0], *full, branch_mask), packed.branches)
        outputs = torch.cat([outputs, more])
    return outputs[None], None


def why_not_packed(model: nn.Module) -> str | None:
    """Say why a model's rows cannot be packed, or None where they can.

    Packing relies on what transformers asks of models that run flash attention: all that a
    token gets from another goes through the attention function, which is told the window.
    """
    config = model.config.get_text_config()
    name = type(model).__name__
    if not (
        getattr(model, "_supports_attention_backend", False)
        and getattr(model, "_supports_flash_attn", False)
    ):
        return f"{name} does not take other attention functions"
    odd = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if odd:
        return f"{name} has layers of another kind: {', '.join(sorted(odd))}"
    capped = getattr(config, "attn_logit_softcapping", None)
    if capped and config._attn_implementation == "sdpa":
        return f"{name} leaves its softcap out in 'sdpa': load it with attn_implementation='eager'"
    return None


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[bool]:
    """Let a decoder attend over packed rows, backward passes included; it is left as it was.

    Yields:
        Whether the model attends by its own plain ("eager") function otherwise.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield model.config.get_text_config() and "eager" in before.values()
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _scaled_dot_product(
    module: nn.Module,
    query: Float[Tensor, "rows heads some d"],
    key: Float[Tensor, "rows kv_heads all d"],
    value: Float[Tensor, "rows kv_heads all d_value"],
    mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Float[Tensor, "rows some heads d_value"], None]:
    """Attend by torch's own function; keys and values are not repeated for their query heads."""
    shared = query.shape[1] // key.shape[1]
    options = {"dropout_p": dropout, "scale": scaling}
    if mask is None or shared == 1:
        found = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=shared > 1,
            **options,
        )  # fmt: skip
        return found.transpose(1, 2), None
    # The query heads of a key's as further queries of one head: faster than enable_gqa.
    folded = query.unflatten(1, (-1, shared)).flatten(2, 3)
    found = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask, **options
    )
    return found.unflatten(2, (shared, -1)).flatten(1, 2).transpose(1, 2), None


def _refuse_odd(
    module: nn.Module, packing: PackedAttention | None, options: Mapping[str, object]
) -> None:
    """Raise where a layer is not told of packed rows, or attends otherwise than we know.

    Raises:
        RuntimeError: no ``packing``, or an option such as a bias on the scores or a choice of keys.
    """
    odd = sorted(k for k, v in options.items() if v is not None and k not in _HARMLESS)
    if packing is None or odd:
        reason = f"attends with {', '.join(odd)}" if odd else "does not pass on what it is given"
        raise RuntimeError(
            f"{type(module).__name__} {reason}: its rows cannot be packed; pass packed=False"
        )


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Give 0 where something is seen, and the lowest number elsewhere."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)


def _pad(states: Tensor, stretches: Stretches) -> Tensor:
    """Put stretches side by side."""
    if stretches.index.numel() == len(states):
        return states.unflatten(0, stretches.index.shape)
    return _Pad.apply(states, stretches.index, stretches.slots)


def _unpad(states: Tensor, stretches: Stretches) -> Tensor:
    """Put stretches behind each other."""
    states = states.flatten(0, 1)
    if len(stretches.slots) == len(states):
        return states
    return _Unpad.apply(states, stretches.slots)


class _Pad(torch.autograd.Function):
    """Tokens to their slots; what stands in the padding gives no gradient."""

    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return states.index_select(0, index.flatten()).unflatten(0, index.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.flatten(0, 1).index_select(0, *ctx.saved_tensors), None, None


class _Unpad(torch.autograd.Function):
    """Slots to their tokens; the padding gets a gradient of zero."""

    @staticmethod
    def forward(ctx, states: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.shape = states.shape
        return states.index_select(0, slots)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.new_zeros(ctx.shape).index_copy_(0, *ctx.saved_tensors, gradient), None
