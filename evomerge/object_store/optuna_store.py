"""The artifacts as Optuna and Optuna Dashboard use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from evomerge.object_store.artifact_folder import ArtifactFolder


def optuna_store(folder: ArtifactFolder) -> FileSystemArtifactStore | OriginArtifacts:
    """Optuna's store of the artifacts in a folder, or on its origin."""
    return FileSystemArtifactStore(folder.path) if folder.origin is None else OriginArtifacts(folder)


class OriginArtifacts:
    """Artifacts on an object store, each an object of the id that Optuna gives it."""

    def __init__(self, folder: ArtifactFolder) -> None:
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The bytes of an artifact.

        Raises:
            ArtifactNotFound: there is none of that id.
        """
        path = self._folder.find(artifact_id)
        if path is None:
            raise ArtifactNotFound(f"there is no artifact {artifact_id}")
        return path.open("rb")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store an artifact."""
        self._folder.keep(artifact_id, content_body.read())

    def remove(self, artifact_id: str) -> None:
        """Delete an artifact."""
        self._folder.delete(artifact_id)


@dataclass(frozen=True)
class PatientArtifacts:
    """Artifacts whose folder is waited for while it cannot be written to.

    Attributes:
        wait: calls again while a folder, which it is given, cannot be used.
    """

    store: FileSystemArtifactStore | OriginArtifacts
    folder: Path
    wait: Callable[[Callable[[], None], Path], None]

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The bytes of an artifact."""
        return self.store.open_reader(artifact_id)

    def remove(self, artifact_id: str) -> None:
        """Delete an artifact."""
        self.store.remove(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store an artifact."""

        def once() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            content_body.seek(0)
            self.store.write(artifact_id, content_body)

        self.wait(once, self.folder)
