"""Training and scoring stay under 2 GB on a store that is larger, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from records import random_record
from wrapped import needs

from entropy_probe.rollout import Rollouts
from entropy_probe.storage.saving import save_run

GIGABYTE = 10**9
WIDTH = 256

# What is measured: the highest resident memory, less what it was once everything was imported.
PROGRAM = """
import json, sys
from pathlib import Path
import sae_lens
from sae_lens import config
import entropy_probe.storage.run, sae_steering.score, sae_steering.evaluate, sae_steering.reason
from sae_steering import train_sae
from sae_steering.activities import activities
from sae_steering.store import StateStore

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))

out, *sources = sys.argv[1:]
before = memory("VmRSS")
store = StateStore(sources)
told = {"bytes": 4 * len(store) * store.d_model, "before": before}
sae = train_sae(sources, out, d_sae=512, k=16, samples=262_144, batch_size=4096)
told["training"] = memory("VmHWM") - before
found = activities(sae, sources)
told["states"] = len(found)
sae_steering.score.strategy_selectivity(
    found.acts, found.prompts % 2 == 0, tokens=found.read, positions=found.places,
    clusters=found.prompts,
)
told["scoring"] = memory("VmHWM") - before
sae_steering.evaluate.evaluate(sae, sources)
told["evaluation"] = memory("VmHWM") - before
print(json.dumps(told))
"""


def record() -> Rollouts:
    """Give a chunk of 256 rows whose states are all captured."""
    drawn = random_record(256, layers={}, longest=400, alternatives=0)
    states = torch.randn(int(drawn.valid.sum()), WIDTH, generator=torch.Generator().manual_seed(0))
    fields = {name: getattr(drawn, name) for name in drawn.__dataclass_fields__}
    return Rollouts(**fields | {
        "captured": drawn.valid, "controls": torch.zeros_like(drawn.valid),
        "residuals": {1: states},
    })  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_and_scoring_a_store_of_over_2_gb_stay_under_2_gb(tmp_path):
    needs("sae_lens")
    first = save_run(record(), tmp_path / "0").path
    size = sum(file.stat().st_size for file in first.rglob("*.safetensors"))
    sources = [first]
    while size * len(sources) < 2.1 * GIGABYTE:  # on the disk they are one
        sources.append(tmp_path / str(len(sources)))
        shutil.copytree(first, sources[-1], copy_function=os.link)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "sae"), *map(str, sources)],
        capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["bytes"] > 2 * GIGABYTE
    assert told["states"] == 2**26 // 512  # as many as it keeps: the most memory it can take
    for stage in ("training", "scoring", "evaluation"):
        assert told[stage] < 2 * GIGABYTE, told
