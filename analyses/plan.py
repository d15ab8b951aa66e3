"""What all analyses together take: ``python -m analyses.plan`` prints arms, seeds and minutes.

The plan as it was fixed before the runs is ``analyses/PLAN.md``; ``--out`` writes one.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from analyses.experiments.analysis import Analysis
from analyses.experiments.every import every_analysis
from entropy_probe.storage.files import replacing

PLAN = Path(__file__).with_name("PLAN.md")
CORES = 2
HOURS = 6.0
"""What the whole plan may take on so many cores."""


def rows(analyses: Sequence[Analysis]) -> list[tuple[str, str, str, int, float, float]]:
    """Give (analysis, arm, role, seeds, minutes a run, minutes in all) of every arm."""
    return [
        (analysis.name, arm.name, arm.role, arm.seeds, arm.minutes, arm.seeds * arm.minutes)
        for analysis in analyses
        for arm in analysis.arms
    ]


def table(analyses: Sequence[Analysis]) -> str:
    """Give the plan as a table in Markdown, with its sum."""
    lines = [
        "| analysis | arm | role | seeds | core-minutes a run | in all |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, arm, role, seeds, minutes, whole in rows(analyses):
        lines.append(f"| {name} | {arm} | {role} | {seeds} | {minutes:g} | {whole:.1f} |")
    for analysis in analyses:
        lines.append(f"| **{analysis.name}** | | | | | **{analysis.minutes:.0f}** |")
    whole = math.fsum(analysis.minutes for analysis in analyses)
    lines.append(f"| **all** | | | | | **{whole:.0f}** |")
    lines.append("")
    lines.append(
        f"{whole:.0f} core-minutes: {hours(analyses):.1f} of {HOURS:g} hours on {CORES} cores."
    )
    return "\n".join(lines)


def hours(analyses: Sequence[Analysis]) -> float:
    """Give the hours that the plan takes on `CORES` cores."""
    return math.fsum(analysis.minutes for analysis in analyses) / 60 / CORES


def document(analyses: Sequence[Analysis]) -> str:
    """Give the plan with its heading, as a file holds it."""
    return f"# Plan of the analyses\n\nWritten by `python -m analyses.plan`.\n\n{table(analyses)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; 1 where it takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there, too")
    options = parser.parse_args(argv)
    analyses = every_analysis()
    print(table(analyses))
    if options.out:
        with replacing(options.out) as temporary:
            temporary.write_text(document(analyses), encoding="utf-8")
    return 0 if hours(analyses) <= HOURS else 1


if __name__ == "__main__":
    sys.exit(main())
