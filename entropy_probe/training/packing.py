"""Which rows run together, and where their tokens lie: no padding, and each prompt once.

A micro-batch is one row of tokens without padding: first *trunks*, each complete in itself (a
prompt, or a whole row that shares its prompt with no other), then *branches*, each the rest of a
row behind its trunk. A row runs up to the token before the last one that the loss reads.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Stretches:
    """Stretches that follow each other, and where their tokens lie when padded to one width."""

    lengths: Int[Tensor, " stretches"]
    """Tokens in each."""
    index: Int[Tensor, "stretches width"]
    """Padded to unpadded: a token's place; beyond a stretch's end, that of its last token."""
    slots: Int[Tensor, " tokens"]
    """Unpadded to padded: each token's place, rows one behind the other."""

    @classmethod
    def of(cls, lengths: Int[Tensor, " stretches"]) -> "Stretches":
        """Lay out stretches of these lengths."""
        steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
        starts = lengths.cumsum(0) - lengths
        index = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        return cls(lengths, index, (steps < lengths[:, None]).flatten().nonzero()[:, 0])

    def to(self, device: torch.device | str) -> "Stretches":
        """Give the same on a device."""
        return Stretches(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class Packed:
    """One micro-batch without padding."""

    rows: Int[Tensor, " rows"]
    """Which rows of the batch these are."""
    ids: Int[Tensor, "1 packed"]
    """Tokens, trunks first."""
    positions: Int[Tensor, "1 packed"]
    """Each one's position in its row."""
    trunks: Stretches
    """What attends to itself alone."""
    branches: Stretches
    """What attends to a trunk, too."""
    trunk_of: Int[Tensor, " branches"]
    """Each branch's trunk."""
    starts: Int[Tensor, "2 rows"]
    """Where each row's position 0 lies for tokens of its trunk, and of its branch."""
    prefixes: Int[Tensor, " rows"]
    """How many tokens of a row lie in its trunk."""

    def places(
        self, row: Int[Tensor, " some"], position: Int[Tensor, " some"]
    ) -> Int[Tensor, " some"]:
        """Give where tokens of rows (numbered within the micro-batch) lie in the packed row."""
        inside = position < self.prefixes[row]
        return torch.where(inside, self.starts[0, row], self.starts[1, row]) + position

    def to(self, device: torch.device | str) -> "Packed":
        """Give the same on a device."""
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})


def number_prompts(
    tokens: Int[Tensor, "batch seq"], prompt_lengths: Int[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """Give equal prompts equal numbers."""
    width = int(prompt_lengths.max()) if len(tokens) else 0
    if not width:
        return torch.zeros(len(tokens), dtype=torch.long)
    inside = torch.arange(width) < prompt_lengths[:, None]
    return torch.unique(tokens[:, :width].where(inside, -1), dim=0, return_inverse=True)[1]


def run_lengths(read: Bool[Tensor, "batch seq"]) -> Int[Tensor, " batch"]:
    """Give how many tokens of each row run: those before the last one that is read."""
    steps = torch.arange(read.shape[1])
    return torch.where(read, steps, 0).amax(dim=1) if read.shape[1] else read.sum(dim=1)


def split_rows(
    lengths: Int[Tensor, " batch"],
    prompts: Int[Tensor, " batch"],
    prompt_lengths: Int[Tensor, " batch"],
    *,
    most_rows: int | None = None,
    most_tokens: int | None = None,
    share: bool = True,
) -> list[Int[Tensor, " rows"]]:
    """Split rows into micro-batches; rows that run nothing are left out.

    With ``share`` the rows of a prompt stay together, the prompts with the longest rows first,
    and tokens are counted as packed. Without it, rows are sorted by length and tokens counted as
    padded to the longest.

    Args:
        lengths: tokens of each row that run.
        prompts: number of each row's prompt.
        prompt_lengths: tokens of the prompt.
        most_rows: rows in a micro-batch at most.
        most_tokens: tokens in one at most; a row longer than that is alone.
        share: whether a prompt is computed once for its rows.

    Raises:
        ValueError: a limit below 1.
    """
    for name, most in (("most_rows", most_rows), ("most_tokens", most_tokens)):
        if most is not None and most < 1:
            raise ValueError(f"{name} must be 1 or more, got {most}")
    runs = [i for i, length in enumerate(lengths.tolist()) if length > 0]
    length, prompt, head = lengths.tolist(), prompts.tolist(), prompt_lengths.tolist()
    longest: dict[int, int] = {}
    for i in runs if share else ():
        longest[prompt[i]] = max(longest.get(prompt[i], 0), length[i])
    runs.sort(key=lambda i: (-longest.get(prompt[i], 0), prompt[i] if share else 0, -length[i], i))
    found: list[list[int]] = []
    tokens = 0
    for i in runs:
        if share:
            shared = bool(found) and prompt[found[-1][-1]] == prompt[i]
            after = tokens + (max(length[i] - head[i], 0) if shared else length[i])
        else:
            # Sorted: the first row of a micro-batch is its longest.
            after = (len(found[-1]) + 1) * length[found[-1][0]] if found else length[i]
        full = not found or (most_rows is not None and len(found[-1]) >= most_rows)
        if full or (most_tokens is not None and after > most_tokens):
            found.append([])
            after = length[i]
        found[-1].append(i)
        tokens = after
    return [torch.tensor(rows) for rows in found]


def pack(
    tokens: Int[Tensor, "batch seq"],
    rows: Int[Tensor, " rows"],
    lengths: Int[Tensor, " batch"],
    prompts: Int[Tensor, " batch"],
    prompt_lengths: Int[Tensor, " batch"],
    *,
    share: bool = True,
) -> Packed:
    """Lay out some rows, each cut to its length, without padding.

    Args:
        tokens: of the whole batch.
        rows: those that run, in any order.
        lengths: tokens of each row of the batch that run.
        prompts: number of each row's prompt.
        prompt_lengths: tokens of the prompt.
        share: whether a prompt is computed once for its rows.
    """
    runs, own = lengths[rows], torch.arange(len(rows))
    heads = torch.minimum(prompt_lengths[rows], runs)
    _, number, counts = torch.unique(prompts[rows], return_inverse=True, return_counts=True)
    alone = (counts[number] < 2) | (heads == 0) | (not share)
    prefixes = torch.where(alone, runs, heads)
    trunk = torch.unique(torch.where(alone, -1 - own, number), return_inverse=True)[1]
    longest = runs.new_zeros(int(trunk.max()) + 1).scatter_reduce_(0, trunk, prefixes, "amax")
    owner = torch.zeros_like(longest).scatter_(0, trunk, own)
    branch = (runs > prefixes).nonzero()[:, 0]
    # Stretches of the packed row: whose tokens, from which position, how many.
    source = torch.cat([owner, branch])
    first = torch.cat([torch.zeros_like(longest), prefixes[branch]])
    sizes = torch.cat([longest, (runs - prefixes)[branch]])
    starts = sizes.cumsum(0) - sizes
    which = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    offset = torch.arange(len(which)) - starts[which]
    position = offset + first[which]
    begins = torch.stack([starts[trunk], torch.zeros_like(runs)])
    begins[1, branch] = starts[len(longest) :] - prefixes[branch]
    return Packed(
        rows=rows,
        ids=tokens[rows[source[which]], position][None],
        positions=position[None],
        trunks=Stretches.of(longest),
        branches=Stretches.of(sizes[len(longest) :]),
        trunk_of=trunk[branch],
        starts=begins,
        prefixes=prefixes,
    )
