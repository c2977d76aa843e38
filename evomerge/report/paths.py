"""Paths of a study, its items and its exported models, for a person who wants to look at them."""

from __future__ import annotations

import json
from pathlib import Path

from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.storage.url import redact, resolve_url, run_directory
from evomerge.study.stored_search import StoredSearch


def models_folder(stored: StoredSearch) -> Path:
    """Default folder of exports."""
    return run_folder(stored) / "models"


def run_folder(stored: StoredSearch) -> Path:
    """The folder of the study's file, else runs/<name>."""
    return run_directory(resolve_url(stored.spec.storage_url), stored.spec.name).resolve()


def exports(stored: StoredSearch) -> list[Path]:
    """The exported models in the run's folder."""
    folder = run_folder(stored)
    return sorted(path.parent for pattern in ("*/recipe.json", "models/*/recipe.json") for path in folder.glob(pattern))


def exported_digest(directory: Path) -> str | None:
    """The digest of the recipe that a directory was exported from, None where it is no export."""
    try:
        return str(json.loads((directory / "recipe.json").read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError):
        return None


def described_paths(stored: StoredSearch) -> str:
    """Locations of study, items and exported models, one per line."""
    lines = [f"study: {redact(resolve_url(stored.spec.storage_url))}", f"items: {ArtifactFolder(stored.artifacts)}"]
    lines += [f"model: {directory}" for directory in exports(stored)]
    return "\n".join(lines)
