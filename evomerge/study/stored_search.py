"""Studies that are only read: found by name and storage, with the spec that they store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from evomerge.errors import InvalidInput, first_reason
from evomerge.object_store.artifact_folder import artifact_path
from evomerge.object_store.object_url import is_object_url, read_object_url
from evomerge.spec import SearchSpec
from evomerge.storage.opening import open_storage, release
from evomerge.storage.url import local_file, redact, resolve_url, run_directory
from evomerge.study.stored_spec import differences, relocated, stored_spec, with_own_baselines

BASELINES = "baselines"
HELD_OUT = "held-out"
LOGS = "logs"


class NoStudy(InvalidInput):
    """There is no study of a spec's name in its storage, or not yet the file that would have it."""


@dataclass(frozen=True, kw_only=True)
class StoredSearch:
    """A study that this process only reads.

    Attributes:
        spec: the one that the study was last run with, as it stores it, in the storage where it was found.
        differences: of the spec that it was found by, in one line; empty where there are none.
    """

    spec: SearchSpec
    storage: BaseStorage
    study: optuna.Study
    baselines: optuna.Study | None
    held_out: optuna.Study | None
    artifacts: Path
    differences: str = ""

    @property
    def logs(self) -> Path:
        """Folder of the logs of its runs."""
        return logs_folder(self.spec)


def read_search(spec: SearchSpec) -> StoredSearch:
    """The study of a spec, for reading. It is found by name and storage; all else is as the study stores it.

    Raises:
        InvalidInput: there is no such study; `evomerge run` makes it.
    """
    storage, study = find_study(spec)
    stored = relocated(stored_spec(study, spec.storage_url), spec)
    baselines, held_out = (_load(storage, f"{spec.name}/{sibling}") for sibling in (BASELINES, HELD_OUT))
    given = spec if spec.artifacts is None else from_anywhere(spec)
    return StoredSearch(
        spec=stored,
        storage=storage,
        study=study,
        baselines=baselines,
        held_out=held_out,
        artifacts=artifacts_folder(stored),
        differences=differences(stored, given),
    )


def read_stored_spec(url: str, name: str) -> SearchSpec:
    """The spec that a study was last run with, for commands that are given a storage and a study, not a file."""
    file = local_file(url)
    missing = InvalidInput(f"there is no study {name!r} in the storage {redact(resolve_url(url))}")
    if file is not None and not file.exists():
        raise missing
    with first_reason(_released(open_storage(url)), "while the storage was closed") as storage:
        study = _load(storage, name)
        if study is None:
            raise missing
        return stored_spec(study, url)


def continued(spec: SearchSpec) -> tuple[SearchSpec, str]:
    """The spec that baselines are made by beside a search: that of the study where there is one.

    Workers, baselines, calibration texts and verdict are the given spec's: they may change during a study.

    Returns:
        The spec, and the differences of the given one, in one line.
    """
    try:
        with looking_at(spec) as study:
            stored = relocated(stored_spec(study, spec.storage_url), spec)
    except InvalidInput:  # the study is not there yet, or not complete: it is made by this spec
        return spec, ""
    given = spec if spec.artifacts is None else from_anywhere(spec)
    chosen = with_own_baselines(stored, given)
    return chosen, differences(chosen, given)


def artifacts_folder(spec: SearchSpec) -> Path:
    """Folder of the outcomes of items: the spec's `artifacts`, else beside the study."""
    if spec.artifacts is None:
        return run_directory(resolve_url(spec.storage_url), spec.name) / "artifacts"
    return artifact_path(spec.artifacts)


def with_stored_artifacts(spec: SearchSpec) -> SearchSpec:
    """The spec with the folder of artifacts that its study on a server began with, where the spec leaves it open.

    Beside a file they are found anyway; for a server the default begins in the working directory, which may be another.
    """
    if spec.artifacts is not None or local_file(spec.storage_url) is not None:
        return spec
    try:
        with looking_at(spec) as study:
            stored = stored_spec(study, spec.storage_url)
    except InvalidInput:  # there is none yet
        return spec
    if stored.artifacts is None or not artifacts_folder(stored).is_dir():
        return spec
    return spec.model_copy(update={"artifacts": stored.artifacts})


def logs_folder(spec: SearchSpec) -> Path:
    """Folder of the logs of a search, among its artifacts: workers on other machines have no other one in common.

    With artifacts on an object store every machine keeps its own, in its folder of the run.
    """
    if spec.artifacts is not None and is_object_url(spec.artifacts):
        return run_directory(resolve_url(spec.storage_url), spec.name) / LOGS / spec.name
    return artifacts_folder(spec) / LOGS / spec.name


def find_study(spec: SearchSpec) -> tuple[BaseStorage, optuna.Study]:
    """The study of a spec's name in its storage.

    Raises:
        NoStudy: there is none.
        InvalidInput: there is no such storage, or its driver is not installed.
    """
    resolved, name = resolve_url(spec.storage_url), spec.name
    file = local_file(resolved)
    if file is not None and not file.exists():
        raise NoStudy(f"there is no study {name!r} yet: {file} does not exist; `evomerge run` makes it")
    storage = open_storage(resolved)
    study = _load(storage, name)
    if study is None:
        release(storage)
        raise NoStudy(f"there is no study {name!r} in this storage yet; `evomerge run` makes it")
    return storage, study


@contextmanager
def looking_at(spec: SearchSpec) -> Iterator[optuna.Study]:
    """The study of a spec for a short look, after which its connections are closed.

    Raises:
        NoStudy, InvalidInput: as `find_study`.
    """
    storage, study = find_study(spec)
    with first_reason(_released(storage), "while the storage was closed"):
        yield study


@contextmanager
def _released(storage: BaseStorage) -> Iterator[BaseStorage]:
    try:
        yield storage
    finally:
        release(storage)


def _load(storage: BaseStorage, name: str) -> optuna.Study | None:
    try:
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return None


def from_anywhere(spec: SearchSpec) -> SearchSpec:
    """The spec with the folder of artifacts as an absolute URL, where it is not beside the study's file."""
    if spec.artifacts is None and local_file(spec.storage_url) is not None:
        return spec  # they move with the file
    return spec.model_copy(update={"artifacts": artifacts_url(spec)})


def artifacts_url(spec: SearchSpec) -> str:
    """The place of the artifacts, as it holds from any working directory."""
    if spec.artifacts is not None and is_object_url(spec.artifacts):
        return str(read_object_url(spec.artifacts))
    return artifacts_folder(spec).resolve().as_uri()
