"""Rollouts of a step as a run directory, so that the other verbs show training as it goes."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from entropy_probe.models.fingerprint import library_versions
from entropy_probe.storage.chunks import remove_chunk, write_chunk
from entropy_probe.storage.manifest import COMPLETE, Manifest, write_manifest
from entropy_probe.storage.parts import committed_chunks

from .collecting import Batch

FOLDER = "rollouts"


def save_rollouts(out: Path, batch: Batch, *, step: int, prompts: int) -> Path:
    """Write the rows of the first prompts of a batch; a run of the same step is replaced.

    Args:
        out: the training run's folder.
        batch: what was sampled.
        step: number of the step.
        prompts: how many prompts' rows are written.
    """
    path = out / FOLDER / f"step-{step:05d}"
    groups = batch.rollouts.groups
    chosen = batch.pick(groups < groups.min() + prompts)
    about = dataclasses.replace(chosen.rollouts.provenance, origin=f"step {step} of {out.name!r}")
    rollouts = dataclasses.replace(chosen.rollouts, provenance=about)
    problems = [{"id": p.id, "answer": p.answer, "facts": dict(p.facts)} for p in chosen.problems]
    for index in committed_chunks(path):
        remove_chunk(path, index)
    write_chunk(path, 0, rollouts, first=0, problems=problems)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    versions = library_versions()
    write_manifest(path, Manifest(created, versions, {}, None, about.to_dict(), COMPLETE))
    return path
