"""A dose of code: planted by pretraining, and seen in what is written."""

import pytest

from analyses.experiments import doses
from analyses.experiments.doses import execute, planted
from analyses.pretraining_dose import SETTINGS
from entropy_probe import load
from entropy_probe.models.fingerprint import weights_fingerprint


def settings(dose: float, **pretraining: int | float) -> dict:
    how = SETTINGS["pretraining"] | {"steps": 2, "batch": 4, "warmup": 1} | pretraining
    return SETTINGS | {"dose": dose, "seed": 0, "pretraining": how, "keep": False}


def test_pretraining_goes_on_from_the_organism():
    model, _ = planted(settings(0.0))
    again, _ = planted(settings(0.0))
    assert weights_fingerprint(model) == weights_fingerprint(again)
    start, _ = load("organism:absent", device="cpu")
    pairs = list(zip(model.state_dict().values(), start.state_dict().values(), strict=True))
    distance = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    assert 0 < distance < 0.01 * size


def test_a_pretraining_is_kept_for_the_seeds_that_share_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doses, "KEPT", tmp_path)
    kept = settings(0.5) | {"keep": True}
    model, _ = planted(kept)

    def made():
        found = sorted(tmp_path.glob("*/model.safetensors"))
        return [path for path in found if path.parent.name != "absent"]

    (weights,) = made()
    stamp = weights.stat().st_mtime_ns
    again, _ = planted(kept | {"seed": kept["seed"] + kept["pretrainings"]})
    assert weights.stat().st_mtime_ns == stamp
    assert weights_fingerprint(model) == weights_fingerprint(again)
    planted(kept | {"seed": 1})
    assert len(made()) == 2


@pytest.mark.slow
def test_a_dose_is_written_and_a_reward_is_given():
    small = {"steps": 1, "prompts": 4, "n": 4, "updates": 1, "warmup": 0}
    rewards = {
        name: {"reward": how["reward"], "config": how["config"] | small}
        for name, how in SETTINGS["rewards"].items()
    }
    how = settings(1.0, steps=40, batch=16, warmup=5)
    how |= {"rewards": rewards, "watch": {"problems": 20, "n": 1}}
    found = execute(how)
    assert found["before"]["share"]["code"] > 0.9
    assert set(found["after"]) == {"true", "random", "inverted"}
    assert len(found["before"]["ways"]) == len(found["after"]["random"]["ways"]) == 20
    assert found["before"]["openings"].keys() == found["after"]["true"]["openings"].keys()
    assert found["pretraining"] == 0
    assert [step["step"] for step in found["steps"]["random"]] == [1]
