"""The folder of one job's checkpoints: among the artifacts, or a temporary one whose files are kept on the origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from evomerge.errors import first_reason
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.object_store.remote_folder import RemoteFolder


class ScratchFolder:
    """A folder of checkpoints. Several jobs may have one of the same name; no two write the same file in it."""

    def __init__(self, path: Path, name: str, origin: RemoteFolder | None) -> None:
        self.path = path
        self._name = name
        self._origin = origin
        self._kept: dict[str, tuple[int, int]] = {}

    def names(self) -> list[str]:
        """The names of all files that are kept on the origin; none where the folder has no origin."""
        return [] if self._origin is None else [Path(each.name).name for each in self._origin.listed(self._name)]

    def fetch(self, names: Iterable[str]) -> None:
        """Have the files of these names here, as they were last kept; there need not be any."""
        if self._origin is None:
            return
        for name in names:
            if self._origin.get(self._object(name), self.path / name):
                self._kept[name] = _state(self.path / name)

    def keep(self) -> None:
        """Keep what was written since, and forget what was deleted."""
        if self._origin is None:
            return
        now = {path.name: _state(path) for path in self.path.iterdir() if not path.name.startswith(".")}
        for name, state in now.items():
            if self._kept.get(name) != state:
                self._origin.put(self._object(name), self.path / name)
        for name in self._kept.keys() - now.keys():
            self._origin.remove(self._object(name))
        self._kept = now

    def place_of(self, path: Path) -> str:
        """The name of a file of the folder, by which `ArtifactFolder.delete` finds it from elsewhere."""
        return self._object(path.name)

    def _object(self, name: str) -> str:
        return f"{self._name}/{name}"


@contextmanager
def scratch_folder(artifacts: ArtifactFolder, name: str) -> Iterator[ScratchFolder]:
    """The folder of a job, named `name` among the artifacts."""
    if artifacts.origin is None:
        yield ScratchFolder(artifacts.path / name, name, None)
        return
    temporary = TemporaryDirectory(dir=artifacts.path, prefix=f"{name}-")
    with first_reason(temporary, "while a temporary folder was removed") as folder:
        yield ScratchFolder(Path(folder), name, artifacts.origin)


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino
