"""What an update reads: completions that exist, with their old log-probabilities and advantages."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class UpdateBatch:
    """Rows of an optimizer step; row t of every matrix belongs to what produced token t."""

    tokens: Int[Tensor, "batch seq"]
    """Prompt and completion, right-padded with anything."""
    valid: Bool[Tensor, "batch seq"]
    """The tokens that take part: completions. Position 0 has nothing that produced it."""
    prompt_lengths: Int[Tensor, " batch"]
    """Tokens of the prompt in each row."""
    groups: Int[Tensor, " batch"]
    """Which prompt a row belongs to."""
    old_logprobs: Float[Tensor, "batch seq"]
    """Log-probabilities of the policy that the ratio is taken against, nats; read where valid."""
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch seq"]
    """One a row, or one a token."""
    reference_logprobs: Float[Tensor, "batch seq"] | None = None
    """Log-probabilities of the policy that the KL is taken against, nats."""

    def __post_init__(self) -> None:
        """Refuse masks that are not bool, shapes that differ and tokens that nothing produced."""
        if self.valid.dtype != torch.bool:
            raise ValueError(f"valid must be a bool mask, got {self.valid.dtype}: pass .bool()")
        rows, width = self.tokens.shape
        shapes = {
            "valid": [(rows, width)], "prompt_lengths": [(rows,)], "groups": [(rows,)],
            "old_logprobs": [(rows, width)], "advantages": [(rows,), (rows, width)],
            "reference_logprobs": [(rows, width)],
        }  # fmt: skip
        for name, known in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) not in known:
                raise ValueError(
                    f"tokens are {(rows, width)}, so {name} must be "
                    f"{' or '.join(map(str, known))}, got {tuple(value.shape)}"
                )
        if width and bool(self.valid[:, 0].any()):
            raise ValueError(
                "position 0 is valid in some row, but nothing produced the first token: prepend "
                "the beginning-of-text token, or leave it out of valid"
            )

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.tokens)

    def take(self, rows: Int[Tensor, " some"]) -> "UpdateBatch":
        """Give some of the rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return UpdateBatch(**{k: v if v is None else v[rows] for k, v in values.items()})

    def to(self, device: torch.device | str) -> "UpdateBatch":
        """Give the same rows on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return UpdateBatch(**{k: v if v is None else v.to(device) for k, v in values.items()})

    @property
    def token_advantages(self) -> Float[Tensor, "batch seq"]:
        """Give each token's advantage."""
        if self.advantages.dim() == 2:
            return self.advantages
        return self.advantages[:, None].expand(self.tokens.shape)
