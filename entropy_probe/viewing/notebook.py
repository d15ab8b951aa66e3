"""The heatmap in a notebook: a sandboxed frame, with text and Markdown where HTML is not shown."""

from html import escape

from entropy_probe.rollout import Rollouts
from entropy_probe.viewing.columns import cut_strip
from entropy_probe.viewing.facts import fork_table
from entropy_probe.viewing.marks import cut_words, drawn_lengths, mark_forks
from entropy_probe.viewing.page import heatmap
from entropy_probe.viewing.terminal import terminal_heatmap
from entropy_probe.viewing.visible import markdown_safe

NOTEBOOK_TOKENS = 2_000
"""Tokens that an output cell draws at most."""
FRAME_HEIGHT, TALLEST = 560, 900
"""Height of the frame in pixels, and how far the page inside may ask it to grow."""
MARKDOWN_FORKS = 20
"""Forks that the Markdown table lists."""

# Listens once a document, whatever the number of cells; only frames of ours are touched, and only
# a number and a theme's name pass. Without it the frame keeps its height.
_LISTENER = """
if (!window.entropyProbeFrames) {
  window.entropyProbeFrames = true;
  window.addEventListener("message", (event) => {
    const height = Number(event.data && event.data.entropyProbeHeight);
    if (!Number.isFinite(height) || height <= 0) return;
    for (const frame of document.querySelectorAll("iframe.entropy-probe")) {
      if (frame.contentWindow !== event.source) continue;
      frame.style.height = Math.min(Math.max(height, 160), %d) + "px";
      const lab = document.body.dataset.jpThemeLight;
      const code = document.body.classList;
      const dark = lab === "false" || code.contains("vscode-dark");
      const light = lab === "true" || code.contains("vscode-light");
      event.source.postMessage(
        { entropyProbeTheme: dark ? "dark" : light ? "light" : "system" }, "*");
    }
  });
}
"""


def mimebundle(
    rollouts: Rollouts,
    *,
    fraction: float = 0.2,
    scope: str = "batch",
    max_tokens: int = NOTEBOOK_TOKENS,
) -> dict[str, str]:
    """Give a record as HTML (a sandboxed frame), Markdown (its forks) and plain text.

    The frame may run the page's own script and nothing else: it is of no origin, and its policy
    forbids every request. No style and no id reaches the notebook around it.
    """
    page = heatmap(rollouts, fraction=fraction, scope=scope, max_tokens=max_tokens)
    frame = (
        '<iframe class="entropy-probe" title="Heatmap of forking tokens" '
        'sandbox="allow-scripts" '
        f'style="width:100%;height:{FRAME_HEIGHT}px;border:0;resize:vertical" '
        f'srcdoc="{escape(page, quote=True)}"></iframe>'
    )
    text = terminal_heatmap(
        rollouts, fraction=fraction, scope=scope, color=False, width=100, max_tokens=max_tokens
    )
    return {
        "text/html": f"<script>{_LISTENER % TALLEST}</script>{frame}",
        "text/markdown": markdown_table(
            rollouts, fraction=fraction, scope=scope, max_tokens=max_tokens
        ),
        "text/plain": text,
    }


def markdown_table(
    rollouts: Rollouts,
    *,
    fraction: float = 0.2,
    scope: str = "batch",
    max_tokens: int = NOTEBOOK_TOKENS,
) -> str:
    """Give the most uncertain forks as a Markdown table, every token's text escaped."""
    marks = mark_forks(rollouts, fraction=fraction, scope=scope)
    drawn = drawn_lengths(rollouts, max_tokens)
    strips = [cut_strip(rollouts, marks, row, 0, length) for row, length in enumerate(drawn)]
    forks = fork_table(rollouts, strips)
    lines = [f"**Forking tokens of {markdown_safe(rollouts.provenance.model)}**", ""]
    lines += [markdown_safe(marks.sentence()), ""]
    if cut := cut_words(rollouts, drawn):
        lines += [markdown_safe(cut), ""]
    if forks:
        lines += [
            "| token | rollout | position | entropy (nats) | probability | could also have been |",
            "|---|---|---:|---:|---:|---|",
        ]
    for fork in forks[:MARKDOWN_FORKS]:
        name = ".".join(map(str, fork["name"]))
        rest = ", ".join(f"{markdown_safe(t)} {markdown_safe(p)}" for t, p in fork["others"])
        lines.append(
            f"| {markdown_safe(fork['text'])} | {name} | {fork['position']} | {fork['entropy']} "
            f"| {markdown_safe(fork['probability'])} | {rest} |"
        )
    if len(forks) > MARKDOWN_FORKS:
        lines += ["", f"The first {MARKDOWN_FORKS} of {len(forks):,} forks."]
    return "\n".join(lines) + "\n"
