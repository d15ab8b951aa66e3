"""What others mean by "train on the top 20%": their choices as selections, with the facts."""

import dataclasses
from dataclasses import dataclass

from .options import Selection


@dataclass(frozen=True)
class Preset:
    """One implementation's choices."""

    selection: Selection
    """What to keep and what to divide by, as `keep_tokens` and `token_denominator` read it."""
    source: str
    """Where this was read."""
    selects: str
    """Which tokens are kept, in words."""
    divides: str
    """What the kept terms are divided by, in words."""
    differs: str
    """What a run with this preset still does otherwise than its source."""


_PAPER = Selection(
    scope="micro_batch",
    count="ceil_9999",
    entropy_source="current",
    average="micro_batch",
    mask_kl=False,
)
_TRL = Selection(
    scope="global_micro_batch",
    rule="threshold",
    quantile="linear",
    entropy_source="current",
    normalizer="valid",
    mask_kl=False,
)
_COUNT = "max(1, int(n·f + 0.9999)) tokens of each micro-batch of a rank; ties arbitrary there"

PRESETS = {
    "paper": Preset(
        _PAPER,
        "arXiv 2506.01939 v2, Eq. 6; Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR after 137d8d1",
        _COUNT,
        "the selected tokens of the micro-batch; micro-batches weigh by their rows",
        "no dual clip (c = 10 there); ties by row and position",
    ),
    "paper_v1": Preset(
        dataclasses.replace(_PAPER, normalizer="valid"),
        "arXiv 2506.01939 v1, Eq. 6; the selection and micro-batches of the authors' code",
        _COUNT,
        "all tokens of the micro-batch; micro-batches weigh by their rows",
        "no dual clip; no public code divides so",
    ),
    "trl": Preset(
        _TRL,
        'TRL 1.16.0, GRPOTrainer with top_entropy_quantile and loss_type="dapo" (its default)',
        "entropy >= the (1 - f) quantile (linear) of the micro-batch of all ranks; ties all kept",
        "all tokens of the step",
        "several steps a generation batch: there, their mean token count divides; a KL is weighted "
        "by the ratio there, unless use_bias_correction_kl=False",
    ),
    "swift": Preset(
        dataclasses.replace(_TRL, scope="micro_batch"),
        "ms-swift 2026-08, --top_entropy_quantile with loss_type dapo",
        "entropy >= the (1 - f) nanquantile (linear) of the micro-batch of one rank; ties all kept",
        "all tokens of the step",
        "there, cut rows that are left out of the loss still vote in the threshold",
    ),
    "lightrft": Preset(
        Selection(
            scope="sequence",
            count="floor",
            entropy_source="old",
            average="sequence",
            mask_kl=False,
        ),
        "opendilab/LightRFT 2026-08, --high_entropy_token_ratio",
        "max(1, int(n·f)) tokens of each row; entropy of the old policy at temperature 1",
        "the selected tokens of the row; rows weigh the same",
        "the ratio is clipped symmetrically there: pass clip_low = clip_high",
    ),
    "prime_rl": Preset(
        Selection(
            scope="micro_batch",
            rule="threshold",
            quantile="kth",
            count="floor",
            entropy_source="current",
            normalizer="valid",
            mask_kl=False,
        ),
        "PrimeIntellect-ai/prime-rl 2025-06 to 2025-07 (#384 to #642), highest_entropy_ratio_loss",
        "entropy >= the max(1, int(n·f))-th largest of the packed micro-batch; ties all kept",
        "all tokens of the step",
        "its default loss bounds the ratio at 8 without PPO's minimum",
    ),
}


def preset(name: str, *, fraction: float = 0.2, temperature: float = 1.0) -> Selection:
    """Give the selection that an implementation makes.

    Args:
        name: one of `PRESETS`.
        fraction: share kept.
        temperature: of sampling, at which most take the entropy too.

    Raises:
        ValueError: a name that is not known, or a temperature that this one would not read.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {name!r}")
    if name == "lightrft" and temperature != 1.0:
        raise ValueError(
            f"lightrft takes entropies at temperature 1 whatever the sampling: temperature="
            f"{temperature} would not be read; leave it out"
        )
    selection = PRESETS[name].selection
    return dataclasses.replace(selection, fraction=fraction, temperature=temperature)


def presets_table() -> str:
    """Give the presets as a Markdown table."""
    head = ("preset", "keeps", "entropy of", "divides by", "differs from its source in", "source")
    lines = [head, ("---",) * len(head)]
    for name, each in PRESETS.items():
        policy = f"the {each.selection.entropy_source} policy"
        facts = (each.selects, policy, each.divides, each.differs, each.source)
        lines.append((f"`{name}`", *facts))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
