"""Optuna Dashboard on a study's storage, and the note that it shows beside a study. The one file that knows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.object_store.optuna_store import optuna_store


def write_note(study: optuna.Study, markdown: str) -> None:
    """Show a text beside the study, in the place of an earlier one."""
    from optuna_dashboard import save_note  # takes seconds to import

    save_note(study, markdown)


def serve(
    storage: BaseStorage, study: str, artifacts: Path, *, host: str, port: int, say: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Args:
        storage: a cached one; with a bare one every refresh reads all trials again.
        study: name to say where it is served.
        say: is told the address.
    """
    from optuna_dashboard import run_server

    say(f"Optuna Dashboard of {study}: http://{host}:{port}")
    if host not in ("127.0.0.1", "localhost", "::1"):
        say("It has no authentication: whoever reaches this address can change the study.")
    artifacts.mkdir(parents=True, exist_ok=True)
    run_server(storage, host=host, port=port, artifact_store=optuna_store(ArtifactFolder(artifacts)))
