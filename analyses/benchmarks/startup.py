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


def seconds(words: list[str], folder: str) -> float:
    """Time one fresh process, which must succeed."""
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - start


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
    print("median (fastest to slowest) of fresh processes, in seconds")
    with tempfile.TemporaryDirectory() as folder:
        for name, (words, repeats) in jobs.items():
            found = sorted(seconds(words, folder) for _ in range(repeats))
            target = f"  target {TARGETS[name]:g}" if name in TARGETS else ""
            print(
                f"{name:<22}{statistics.median(found):6.2f}  "
                f"({found[0]:.2f} to {found[-1]:.2f}, n={repeats}){target}"
            )


if __name__ == "__main__":
    main()
