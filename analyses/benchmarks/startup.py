"""How long one waits: `probe --help`, importing the package, and `probe demo`, fresh processes.

python -m analyses.benchmarks.startup [--repeats 5] [--demos 3]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = {"probe --help": 0.4, "probe demo": 10.0}


def seconds(words: list[str], folder: str) -> tuple[float, float]:
    """Give the wall and the CPU time of one fresh process, which must succeed."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(words, check=True, capture_output=True, cwd=folder)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system


def machine() -> str:
    """Say what the times were taken on."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((li.partition(":")[2].strip() for li in lines if "model name" in li), "")
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({model or platform.machine()}), load {load}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--demos", type=int, default=3)
    arguments = parser.parse_args(argv)
    probe = [sys.executable, "-m", "entropy_probe"]
    jobs = {
        "python -c pass": ([sys.executable, "-c", "pass"], arguments.repeats),
        "import entropy_probe": ([sys.executable, "-c", "import entropy_probe"], arguments.repeats),
        "probe --help": ([*probe, "--help"], arguments.repeats),
        "import torch": ([sys.executable, "-c", "import torch"], arguments.demos),
        "probe demo": ([*probe, "demo"], arguments.demos),
    }
    print(machine())
    print("median (fastest to slowest) of fresh processes in seconds, and their median CPU time")
    with tempfile.TemporaryDirectory() as folder:
        for name, (words, repeats) in jobs.items():
            found = sorted(seconds(words, folder) for _ in range(repeats))
            walls = [wall for wall, _ in found]
            target = f"  target {TARGETS[name]:g}" if name in TARGETS else ""
            print(
                f"{name:<22}{statistics.median(walls):6.2f}  "
                f"({walls[0]:.2f} to {walls[-1]:.2f}, n={repeats})  "
                f"CPU {statistics.median(cpu for _, cpu in found):.2f}{target}"
            )


if __name__ == "__main__":
    main()
