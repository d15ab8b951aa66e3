"""Where a record's numbers come from: model, versions, sampling and the entropy's basis."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: enough to repeat them, and to know what they mean."""

    model: str
    """Reference the model was loaded by, or its configuration's name."""
    source: str
    """"sample" (captured while generating), "score" (captured on given tokens), "import" (another
    tool's numbers) or "text" (another tool's texts, without numbers)."""
    revision: str | None = None
    """Hub commit, where there is one."""
    weights: str | None = None
    """Fingerprint of the weights in memory: SHA-256 over names, shapes and a strided sample."""
    dtype: str = "float32"
    """Type that the model computed in; statistics are float32 whatever it is."""
    seed: int | None = None
    """Seed of the sampling noise, which belongs to (seed, row, position)."""
    temperature: float | None = 1.0
    """Sampling temperature; 0 is greedy, None unknown."""
    top_p: float = 1.0
    """Nucleus mass kept when drawing; it does not touch the entropy."""
    top_k: int = 0
    """Candidates kept when drawing, 0 for all; it does not touch the entropy."""
    entropy_basis: str = "logits / temperature, full vocabulary, before top-k and top-p"
    """What distribution entropy, logprobs, ranks and alternatives are of."""
    entropy_temperature: float | None = 1.0
    """Temperature inside that basis: the sampling one, but 1 where decoding was greedy; None where
    an import does not tell."""
    capture: str = "none"
    """Which positions hold residuals, in words."""
    near_ties: int = 0
    """Draws whose perturbed top-two gap was under 1e-3 nats: only they may differ elsewhere."""
    edit: str | None = None
    """What changed the residual stream while the model ran, in words, where that is known."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Versions of what computed this."""
    computed_by: str | None = None
    """What computed it in place of the model's own steps and float32 tiles, and how that rounds."""
    origin: str | None = None
    """Where tokens come from that were scored or imported: a run, a file of another tool."""
    missing_mass: float | None = None
    """Mean probability outside the recorded alternatives, where the entropy comes from them alone
    and is then a lower bound; None where it is of the full vocabulary."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return dataclasses.asdict(self) | {"libraries": dict(self.libraries)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """Rebuild from `to_dict`; a field that this version does not know is an error."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"provenance has unknown fields {unknown}: it was written by a newer version; "
                "upgrade entropy-probe"
            )
        return cls(**values)
