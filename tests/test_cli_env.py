"""`probe env`: what is here, and the line that brings what is not."""

import sys
from importlib import metadata

import torch
from commands import no_sockets, probe

from entropy_probe.cli.env import missing_of


def test_versions_devices_and_extras(monkeypatch):
    no_sockets(monkeypatch)
    found = probe("env", "--json").json
    assert found["libraries"]["torch"] == metadata.version("torch")
    assert found["executable"] == sys.executable
    devices = [device["device"] for device in found["devices"]]
    assert devices[0] == "cpu"
    assert len(devices) >= 1 + torch.cuda.device_count()
    assert found["offline"] is True
    assert found["extras"].keys() >= {"interp", "gguf", "notebooks"}
    assert "test" not in found["extras"]


def test_an_extra_is_missing_what_its_packages_are(monkeypatch):
    lines = [
        "torch>=2.6",
        "gguf>=0.19; extra == 'gguf'",
        "numpy>=1.0; extra == 'one'",
        "numpy>=999; extra == 'one'",
        "no-such-package; extra == 'one'",
        "other; python_version < '3' and extra == 'one'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert missing_of("one") == ["numpy>=999", "no-such-package"]
    monkeypatch.setattr(metadata, "metadata", lambda name: _Extras())
    out = probe("env").out
    assert "missing numpy>=999, no-such-package: pip install 'entropy-probe[one]'" in out


class _Extras:
    def get_all(self, name):
        return ["one", "test"]


def test_offline_and_cache_are_told():
    out = probe("env").out
    assert any(line.split()[:2] == ["offline", "yes"] for line in out.splitlines())
    assert any(line.startswith("cache ") for line in out.splitlines())
