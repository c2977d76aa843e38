"""Bytes that a run writes, by folder, beside what is free there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from evomerge.bank.shared_tensors import temporary_folder
from evomerge.forms import nearest_existing
from evomerge.messages import in_bytes
from evomerge.opening.inputs import Inputs
from evomerge.storage.url import local_file
from evomerge.study.stored_search import artifacts_folder

STUDY_BYTES_PER_TRIAL = 7_000  # of SQLite, attributes included, and
STUDY_BYTES_PER_PARAM = 200  # of each trial: its name and its range are written every time
ARTIFACT_BYTES = 4_096  # of a Parquet file of outcomes, whatever it holds
BYTES_PER_ITEM = 8  # in such a file


@dataclass(frozen=True, kw_only=True)
class PlannedWriting:
    """Bytes that a run writes into one folder.

    Attributes:
        what: study, items, files (statistics, trained weights, and the checkpoints of both), or shared.
        bytes: in all, as if nothing had been written yet.
        free: bytes on the disk of the folder.
    """

    what: str
    folder: str
    bytes: int
    free: int


def planned_writing(inputs: Inputs, *, items: int, files: int, shared: int = 0) -> list[PlannedWriting]:
    """The folders of this machine that a run writes to.

    Args:
        items: on the search items, of one trial.
        files: bytes of all files among the artifacts that are no outcomes of items.
        shared: bytes of what the workers of this machine share; it is gone with the run.
    """
    spec, trials = inputs.spec, inputs.spec.budget.trials
    artifacts = artifacts_folder(spec)
    study = local_file(spec.storage_url)
    of_trial = STUDY_BYTES_PER_TRIAL + STUDY_BYTES_PER_PARAM * inputs.space.active_dimensions
    plan = [
        *([("study", study.parent, trials * of_trial)] if study is not None else []),
        ("items", artifacts, trials * (ARTIFACT_BYTES + BYTES_PER_ITEM * items)),
        *([("files", artifacts, files)] if files else []),
        *([("shared", temporary_folder(), shared)] if shared else []),
    ]
    return [
        PlannedWriting(what=what, folder=str(folder.absolute()), bytes=size, free=_free(folder))
        for what, folder, size in plan
    ]


def disk_warnings(writing: list[PlannedWriting]) -> list[str]:
    """One line for each disk that is too small for all that is written to it."""
    by_disk: dict[int, list[PlannedWriting]] = {}
    for each in writing:
        by_disk.setdefault(nearest_existing(Path(each.folder)).stat().st_dev, []).append(each)
    return [
        f"the disk of {together[0].folder} has {in_bytes(together[0].free)} free, and a run writes up to "
        f"{in_bytes(size)} there ({', '.join(f'{each.what} {in_bytes(each.bytes)}' for each in together)}); make room, "
        "or name other folders by storage, artifacts and, for what is shared, TMPDIR"
        for together in by_disk.values()
        if (size := sum(each.bytes for each in together)) > together[0].free
    ]


def _free(folder: Path) -> int:
    return shutil.disk_usage(nearest_existing(folder)).free
