"""Orphans: files among the artifacts of a study that no study names any more, which crashes and failures leave behind.

A file is an orphan only if its name is one that evomerge or Optuna gives, and no study of the storage has that name in
any attribute of its own or of a trial. What somebody else put there is never touched.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from evomerge.errors import InvalidInput, first_reason
from evomerge.evaluation_checkpoints import FOLDER as EVALUATIONS
from evomerge.leases.lock import hold
from evomerge.messages import counted, in_bytes
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.object_store.remote_folder import RemoteFolder
from evomerge.spec import SearchSpec
from evomerge.storage import attributes
from evomerge.storage.attributes import Readable, read_text
from evomerge.storage.study_files import has_studies
from evomerge.storage.url import local_file, resolve_url, run_directory
from evomerge.study.stored_search import LOGS, StoredSearch

SCHEMA = 1
AGE: Final = 3600.0  # seconds since a temporary file was written to, after which nobody is writing it any more

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ITEMS: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CHECKPOINT: Final = re.compile(r"[a-z_-]+-[0-9a-f]{32}\.safetensors|choice-[0-9a-f]{32}\.json")
_TEMPORARY: Final = re.compile(r"\..+\.(writing|replaced)-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """A file or folder that nothing names. `kind`: items, file, statistics, checkpoint, evaluation, temporary or logs.

    Attributes:
        name: of an object on the origin of the artifacts; `path` is then that of its copy here.
    """

    path: Path
    kind: str
    size: int
    name: str | None = None


def collect_orphans(stored: StoredSearch, *, delete: bool = False, alone: bool = False) -> dict[str, Any]:
    """The orphans among the artifacts of a study, as a document; deleted on request, as the study's only writer.

    Args:
        alone: no study of another storage has its artifacts in the same folder, where the spec names that.

    Raises:
        InvalidInput: they are to be deleted, and other studies may have their artifacts there too.
        StudyHeld: they are to be deleted, and a controller holds the study.
    """
    if not delete:
        return _document(stored, orphans(stored), deleted=False)
    _refuse_shared(stored.spec, stored.artifacts, alone=alone)
    with _held(stored) as check:
        found = orphans(stored)
        for each in found:
            check()
            if each.name is not None:
                ArtifactFolder(stored.artifacts).delete(each.name)
            else:
                _delete(each.path)
        return _document(stored, found, deleted=True)


@contextmanager
def _held(stored: StoredSearch) -> Iterator[Callable[[], None]]:
    """Hold every search of the storage: each may be about to name a file that it has written. A file is held once.

    Yields:
        A check that they are still held.
    """
    url, own = resolve_url(stored.spec.storage_url), stored.spec.name
    names = [own] if local_file(url) is not None else [study.study_name for study in _searches(stored.storage)]
    with ExitStack() as holds:
        held = [holds.enter_context(hold(url, name)) for name in names]

        def check() -> None:
            for each in held:
                each.check()

        yield check


def _searches(storage: BaseStorage) -> list[optuna.Study]:
    studies = [optuna.load_study(storage=storage, study_name=name) for name in optuna.get_all_study_names(storage)]
    return [study for study in studies if attributes.SCHEMA in study.user_attrs]


def orphans(stored: StoredSearch) -> list[Orphan]:
    """All orphans among a study's artifacts, by their paths; on their origin, where they have one."""
    folder, origin = stored.artifacts, ArtifactFolder(stored.artifacts).origin
    if origin is not None:
        return _orphans_on(origin, stored)
    # Listed before the studies are read. A trial names its items after they were written: nothing is deleted unless the
    # studies are held.
    own = run_directory(resolve_url(stored.spec.storage_url), stored.spec.name)
    candidates = [(kind, path) for kind, paths in _candidates(folder, own) for path in paths]
    if local_file(stored.spec.storage_url) is None:  # a search may begin there at any time, and name what it wrote
        candidates = [(kind, path) for kind, path in candidates if _is_old(path)]
    if not candidates:
        return []
    named = _named(stored.storage)
    indexed = _indexed(folder / "statistics") if named.unfinished else set()  # measured for a baseline to come
    is_orphan: Mapping[str, Callable[[Path], bool]] = {
        "items": lambda path: path.name not in named.names,
        "file": lambda path: not named.is_torn and path.stem not in named.names | indexed,
        "statistics": lambda path: _is_stale(path, folder / "files", unfinished=named.unfinished),
        "checkpoint": lambda path: not named.training,
        "evaluation": lambda path: not named.unfinished,
        "temporary": _is_old,
        "logs": lambda path: path.name not in named.studies,
    }
    return [
        Orphan(path=path, kind=kind, size=_size(path)) for kind, path in sorted(candidates) if is_orphan[kind](path)
    ]


def _orphans_on(origin: RemoteFolder, stored: StoredSearch) -> list[Orphan]:
    objects = {each.name: each for each in origin.listed()}  # before the studies are read, as above
    kinds = {name: kind for name in objects if (kind := _kind_of(name)) is not None}
    if local_file(stored.spec.storage_url) is None:
        kinds = {name: kind for name, kind in kinds.items() if objects[name].modified + AGE < time.time()}
    if not kinds:
        return []
    named = _named(stored.storage)
    with first_reason(tempfile.TemporaryDirectory(), "while a temporary folder was removed") as scratch:
        measured = {
            name: _digests_in(Path(scratch) / Path(name).name)
            for name in objects
            if _kind_of(name) == "statistics" and name.endswith(".json")
            if origin.get(name, Path(scratch) / Path(name).name)
        }
    indexed = {digest for digests in measured.values() for digest in digests} if named.unfinished else set()

    def is_lost(name: str) -> bool:
        """Whether a measurement leads nowhere."""
        if name.endswith(".safetensors"):
            return f"{name.removesuffix('.safetensors')}.json" in objects or not named.unfinished
        return not any(f"files/{digest}.safetensors" in objects for digest in measured.get(name, ()))

    is_orphan: Mapping[str, Callable[[str], bool]] = {
        "items": lambda name: name not in named.names,
        "file": lambda name: not named.is_torn and Path(name).stem not in named.names | indexed,
        "statistics": is_lost,
        "checkpoint": lambda name: not named.training,
        "evaluation": lambda name: not named.unfinished,
    }
    return [
        Orphan(path=stored.artifacts / name, kind=kind, size=objects[name].size, name=name)
        for name, kind in sorted(kinds.items())
        if is_orphan[kind](name)
    ]


def _kind_of(name: str) -> str | None:
    """The kind of an object by its name; None: it is not one of ours."""
    folder, _, last = name.rpartition("/")
    path = Path(last)
    if folder == "" and _ITEMS.fullmatch(last):
        return "items"
    if folder == "files" and _is_named(path, _DIGEST, (".safetensors",)):
        return "file"
    if folder == "statistics" and _is_named(path, _DIGEST, (".json", ".safetensors")):
        return "statistics"
    if folder == EVALUATIONS and _DIGEST.fullmatch(last):
        return "evaluation"
    return "checkpoint" if folder == "training" and _CHECKPOINT.fullmatch(last) else None


def _candidates(folder: Path, run: Path) -> Iterator[tuple[str, Iterable[Path]]]:
    """Kind -> the files of that kind, by their names.

    Args:
        run: folder of the run, where exports are written.
    """
    yield "items", [path for path in _listed(folder) if _ITEMS.fullmatch(path.name) and path.is_file()]
    yield "file", [path for path in _listed(folder / "files") if _is_named(path, _DIGEST, (".safetensors",))]
    yield (
        "statistics",
        [path for path in _listed(folder / "statistics") if _is_named(path, _DIGEST, (".json", ".safetensors"))],
    )
    yield "checkpoint", [path for path in _listed(folder / "training") if _CHECKPOINT.fullmatch(path.name)]
    yield "evaluation", [path for path in _listed(folder / EVALUATIONS) if _DIGEST.fullmatch(path.name)]
    inside = (folder / name for name in ("files", "statistics", "training", EVALUATIONS))
    places = (folder, *inside, run, run / "models")
    yield "temporary", [path for place in places for path in _listed(place) if _TEMPORARY.fullmatch(path.name)]
    yield "logs", [path for path in _listed(folder / LOGS) if path.is_dir()]


def _listed(folder: Path) -> list[Path]:
    """The files and folders in a folder, links left out."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.is_symlink()]


def _is_named(path: Path, stem: re.Pattern[str], suffixes: tuple[str, ...]) -> bool:
    return path.suffix in suffixes and stem.fullmatch(path.stem) is not None


@dataclass(frozen=True, kw_only=True)
class _NamedFiles:
    """All that the studies of a storage name.

    Attributes:
        names: ids of artifacts, and everything in attributes that looks like a digest.
        studies: their names.
        is_torn: whether a text was cut short, so that it is not known what it names.
        training: whether a training has begun that can be continued.
        unfinished: whether a search has no verdict yet, so that its measurements may be needed.
    """

    names: frozenset[str]
    studies: frozenset[str]
    is_torn: bool
    training: bool
    unfinished: bool


def _named(storage: BaseStorage) -> _NamedFiles:
    names: set[str] = set()
    torn = training = unfinished = False
    studies = [optuna.load_study(storage=storage, study_name=name) for name in optuna.get_all_study_names(storage)]
    for study in studies:
        unfinished |= attributes.SCHEMA in study.user_attrs and not study.user_attrs.get(attributes.VERDICT)
        names.update(meta.artifact_id for meta in get_all_artifact_meta(study))
        torn |= _add_names(study, names)
        for trial in study.get_trials(deepcopy=False):
            names.update(key.rpartition(":")[2] for key in trial.system_attrs if "artifacts:" in key)
            torn |= _add_names(trial, names)
            begun = trial.state is TrialState.RUNNING and attributes.BEGUN in trial.user_attrs
            training |= begun and attributes.MERGE not in trial.user_attrs
    return _NamedFiles(
        names=frozenset(names),
        studies=frozenset(study.study_name for study in studies),
        is_torn=torn,
        training=training,
        unfinished=unfinished,
    )


def _add_names(target: Readable, names: set[str]) -> bool:
    """Add all digests in the attributes of a study or trial. Returns whether one of its texts is torn."""
    torn = False
    for key, value in target.user_attrs.items():
        if isinstance(value, dict) and set(value) == {"chunks", "digest"}:
            try:
                text = read_text(target, key) or ""
            except InvalidInput:
                torn = True
                continue
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        names.update(_DIGEST.findall(text))
    return torn


def _indexed(folder: Path) -> set[str]:
    """Digests of the files that measurements have left."""
    found: set[str] = set()
    for path in _listed(folder):
        if path.suffix == ".json":
            found.update(_digests_in(path))
    return found


def _digests_in(path: Path) -> set[str]:
    with suppress(OSError):
        return set(_DIGEST.findall(path.read_text(encoding="utf-8", errors="replace")))
    return set()


def _is_stale(path: Path, files: Path, *, unfinished: bool) -> bool:
    """Whether a measurement leads nowhere: the index of a lost file, or sums that nobody will continue."""
    if path.suffix == ".safetensors":
        return path.with_suffix(".json").exists() or not unfinished
    try:
        digest = json.loads(path.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return not (files / f"{digest}.safetensors").is_file()


def _is_old(path: Path) -> bool:
    latest = max((each.lstat().st_mtime for each in (path, *path.rglob("*"))), default=0.0)
    return latest + AGE < time.time()


def _size(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.lstat().st_size for part in parts if not part.is_dir())


def _delete(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_shared(spec: SearchSpec, folder: Path, *, alone: bool) -> None:
    """Refuse to delete where studies that are not looked at may have their artifacts in the same folder.

    Raises:
        InvalidInput: see above.
    """
    if alone:
        return
    file = local_file(spec.storage_url)
    if file is None or folder.resolve() != (file.parent / "artifacts").resolve():
        raise InvalidInput(
            f"artifacts are in {ArtifactFolder(folder)}, where studies of other storages may have theirs, which would "
            "look like orphans here; if there are none, say --alone"
        )
    other = next((path for path in sorted(file.parent.iterdir()) if _is_other(path, file)), None)
    if other is not None:
        raise InvalidInput(
            f"the studies of {other.name} have their artifacts in {folder} too, and would lose them; move one of "
            "the storages with its artifacts to a folder of its own, or say --alone if that one is not needed"
        )


def _is_other(path: Path, file: Path) -> bool:
    """Whether a path beside the file of a storage is another one with studies."""
    try:
        return path.exists() and not path.samefile(file) and has_studies(path)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; move it to another folder, or say --alone if it has no study") from error


def _document(stored: StoredSearch, found: list[Orphan], *, deleted: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": stored.study.study_name,
        "folder": str(ArtifactFolder(stored.artifacts)),
        "deleted": deleted,
        "bytes": sum(each.size for each in found),
        "orphans": [{"path": each.name or str(each.path), "kind": each.kind, "bytes": each.size} for each in found],
    }


def orphans_text(document: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"{each['kind']} {in_bytes(each['bytes'])} {each['path']}" for each in document["orphans"]]
    count = len(lines)
    total = f"{counted(count, 'orphan')}, {in_bytes(document['bytes'])}, in {document['folder']}"
    end = "deleted" if document["deleted"] else "--delete deletes them" if count else ""
    return "\n".join([*lines, f"{total}{': ' if end else ''}{end}"])
