"""Token texts that break careless renderers, and small records made of them."""

from collections.abc import Sequence

import torch

from entropy_probe.rollout import Alternatives, Provenance, Rollouts

HOSTILE: tuple[bytes, ...] = (
    b"<script>document.title='owned'</script>",
    b"</script><script>document.title='owned'</script>",
    b"<img src=x onerror=document.title='owned'>",
    b"\"><svg onload=document.title='owned'>",
    b"' onmouseover='document.title=1",
    b"<!--<script>",
    b"</style><style>*{display:none}",
    b"<iframe src='http://192.0.2.1/'></iframe>",
    b"<link rel=stylesheet href=//192.0.2.1/x.css>",
    b"javascript:document.title=1",
    b"[/INST]",
    b"[bold red]x[/bold red]",
    b"[click](http://192.0.2.1) ![x](//192.0.2.1/y.png)",
    b"| a | b |\n|---|---|",
    b"$\\href{http://192.0.2.1}{x}$",
    b"&lt;b&gt;&amp;&#60;",
    b"{{ 7*7 }}{% raw %}",
    b"__proto__",
    b'=HYPERLINK("http://192.0.2.1")',
    b"+1+1",
    b"-2+3",
    b"@SUM(1)",
    b"\t=1+1",
    b"\r=1+1",
    b"\x00nul",
    b"\x1b[31mred\x1b]0;owned\x07",
    b"\x9b31m",
    "\u202egnp.exe".encode(),
    "\u2066\u2067isolate".encode(),
    "zero\u200bwidth\u200d\ufeff\u00ad".encode(),
    "\u2028line\u2029paragraph".encode(),
    "\u0085next\u009bcsi".encode(),
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xff\xfe\xc0\xaf",
    "\U000e0041tag".encode(),
    "e\u0301\u0301\u0301".encode(),
    "\u0301alone".encode(),
    "\ue000private\uffff".encode(),
    "\u3164filler\u2800".encode(),
    "\ufe0f\U000e0100selector".encode(),
    "\u05e9\u05dc\u05d5\u05dd".encode(),
    "\u26a1\U0001f642".encode(),
    b"\n\n",
    b"    ",
    b"\r\n",
    b"",
)
"""Markup, template, Markdown, spreadsheet and terminal injections, and bytes that hide."""


def record_of(
    pieces: Sequence[bytes],
    *,
    alternatives: int = 3,
    prompt: Sequence[bytes] = (b"start",),
    rewards: bool = True,
    rows: int = 2,
    model: str = "organism:test",
) -> Rollouts:
    """Give rows of the same pieces with known numbers: entropy (1 + row + t) / 16 at position t.

    The distribution of position t is uniform-looking: every number tells where it belongs.
    """
    vocabulary = [*prompt, *pieces]
    length = len(vocabulary)
    position = torch.arange(length, dtype=torch.float32)
    row = torch.arange(rows, dtype=torch.float32)[:, None]
    valid = (position >= len(prompt)).expand(rows, length).clone()
    entropy = (1 + row + position) / 16 * valid
    logprobs = -(2 + row + position) / 32 * valid
    ids = (torch.arange(length)[:, None] + torch.arange(alternatives)) % length
    ids = ids.expand(rows, length, alternatives) * valid[..., None]
    steps = torch.arange(alternatives, dtype=torch.float32)
    others = (logprobs[..., None] - steps / 4) * valid[..., None]
    return Rollouts(
        tokens=torch.arange(length).expand(rows, length).clone(),
        valid=valid,
        prompt_lengths=torch.full((rows,), len(prompt)),
        groups=torch.zeros(rows, dtype=torch.long),
        entropy=entropy,
        logprobs=logprobs,
        ranks=torch.zeros(rows, length, dtype=torch.long),
        alternatives=Alternatives(ids.contiguous(), others),
        provenance=Provenance(model=model, source="sample", seed=7),
        captured=torch.zeros_like(valid),
        controls=torch.zeros_like(valid),
        rewards=torch.linspace(0, 1, rows) if rewards else None,
        pieces=dict(enumerate(vocabulary)),
    )


def empty_record() -> Rollouts:
    """Give a record without rows."""
    record = record_of([b"a"])
    return record[torch.zeros(2, dtype=torch.bool)]
