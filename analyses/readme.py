"""The claims and what became of them: ``python -m analyses.readme`` writes ``analyses/README.md``.

Every figure in it is read from the files of results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from analyses.claims import HAIR, LEVEL, SMALL, Verdict
from analyses.experiments.analysis import Analysis, Source
from analyses.experiments.command import read_results
from analyses.experiments.every import every_analysis
from analyses.experiments.results import Results
from entropy_probe.storage.files import replacing

README = Path(__file__).with_name("README.md")
_HEAD = """# The claims, tested in miniature

Written by `python -m analyses.readme` from the results in `results/`; `python -m analyses.plan`
prints what is run. Each analysis trains or asks the organisms (`probe organism list`), models of
which every claim is known to be true or false, so that a verdict here is about a miniature: it can
show that a claim fails somewhere, or that a mechanism suffices, and not that it holds for large
models. Contrasts, their smallest effects of interest and the rules of the verdicts (`claims.py`)
were fixed before the runs; intervals are 95% t intervals over paired seeds.
"""


def document(results: Sequence[Results]) -> str:
    """Give the whole text."""
    lines = [_HEAD, "| claim | source | the paper says | the miniature shows | command |"]
    lines.append("|---|---|---|---|---|")
    lines += [row(each) for each in results]
    for each in results:
        lines += ["", *section(each)]
    return "\n".join(lines) + "\n"


def row(results: Results) -> str:
    """Give an analysis' row: what is claimed, and what its primary contrasts came to."""
    analysis, claim = results.analysis, results.analysis.claim
    shown = [short(v) for v in results.verdicts() if v.contrast.primary]
    cells = (
        analysis.question, link(claim), f"{claim.says} ({claim.read} read)",
        "<br>".join(shown) or "not run yet", f"`python -m analyses.{analysis.name}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def short(verdict: Verdict) -> str:
    """Give a verdict with its interval, in a few words."""
    text = f"**{verdict.statement}**: {verdict.contrast.name}"
    if verdict.difference is None:
        return text
    d = verdict.difference
    text = f"{text}, {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f}, {d.n} seeds)"
    return "; ".join([text, *(words for words in (HAIR, LEVEL, SMALL) if words in verdict.why)])


def section(results: Results) -> Iterator[str]:
    """Give an analysis' section: all verdicts, what to make of them, and what others found."""
    analysis = results.analysis
    done, planned = len(results), sum(arm.seeds for arm in analysis.arms)
    yield f"## {analysis.name}"
    yield ""
    yield f"{done} of {planned} planned runs. Against the claim would speak {analysis.refuted_by}."
    verdicts = [str(verdict) for verdict in results.verdicts()]
    if verdicts:
        yield ""
        yield from (f"- {verdict}" for verdict in verdicts)
    if analysis.discussion:
        yield ""
        yield analysis.discussion
    if analysis.evidence:
        yield ""
        yield "Later evidence:"
        yield ""
        for source in analysis.evidence:
            yield f"- {source.stands} it, {link(source)} ({source.read} read): {source.says}"
    if analysis.untested:
        yield ""
        yield f"Not tested here: {analysis.untested}."


def link(source: Source) -> str:
    """Give a source as a link, if it has a number."""
    if not source.arxiv[:4].isdigit():
        return source.arxiv
    return f"[{source.arxiv}](https://arxiv.org/abs/{source.arxiv})"


def read_all(analyses: Sequence[Analysis]) -> list[Results]:
    """Give the results of each analysis that are in its file."""
    return [read_results(analysis) for analysis in analyses]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=README)
    options = parser.parse_args(argv)
    with replacing(options.out) as temporary:
        temporary.write_text(document(read_all(every_analysis())), encoding="utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
