"""Call `probe` in this process, as a person would, and look at what it says."""

import contextlib
import io
import json
import socket
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tiny import tiny_model, tiny_tokenizer

from entropy_probe.cli import main
from entropy_probe.rollout import Rollouts
from entropy_probe.storage.chunks import write_chunk
from entropy_probe.storage.manifest import COMPLETE, Manifest, write_manifest


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]

    @property
    def json(self) -> Any:
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def told(self) -> tuple[str, str, str]:
        """Error, why and fix: the last three lines, and nowhere a traceback."""
        assert "Traceback" not in self.err
        error, why, fix = self.err.splitlines()[-3:]
        for line, start in ((error, "error: "), (why, "why:   "), (fix, "fix:   ")):
            assert line.startswith(start)
        return error[7:], why[7:], fix[7:]


def probe(*words: object, stdin: bytes = b"") -> Result:
    """Run a command line, with warnings as errors."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                code = main([str(word) for word in words])
            texts = []
            for stream in (out, err):
                stream.flush()
                texts.append(stream.buffer.getvalue().decode("utf-8"))
    finally:
        sys.stdin = before
    return Result(code, *texts)


@cache
def _tiny() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="tiny-model-")
    tiny_model().save_pretrained(folder.name)
    tiny_tokenizer().save_pretrained(folder.name)
    return folder


def tiny_folder() -> str:
    """Give a tiny random model on disk: 3 layers, a context of 128 tokens, words w0 to w92."""
    return _tiny().name


def write_hub(cache: Path, name: str, **scales: float) -> dict[str, str]:
    """Write a hub's cache of the tiny model with its weights scaled, a revision a commit of it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commits = {revision: f"{number:040x}" for number, revision in enumerate(scales, start=1)}
    (repository / "refs").mkdir(parents=True)
    for revision, commit in commits.items():
        model = tiny_model()
        for parameter in model.parameters():
            parameter.data.mul_(scales[revision])
        model.save_pretrained(repository / "snapshots" / commit)
        tiny_tokenizer().save_pretrained(repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
    return commits


def write_run(path: Path, *records: Rollouts) -> None:
    """Write records as a run that was imported, a chunk each."""
    path.mkdir(parents=True)
    about = records[0].provenance.to_dict()
    write_manifest(path, Manifest("2026-01-02T03:04:05+00:00", {}, {}, None, about, COMPLETE))
    first = 0
    for index, record in enumerate(records):
        write_chunk(path, index, record, first=first)
        first += len(record)


def no_sockets(monkeypatch) -> None:
    """Make every connection fail."""

    def refuse(self, address):
        raise AssertionError(f"a socket was to be connected to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


def files_under(folder: Path) -> dict[str, bytes]:
    """Give every file of a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
