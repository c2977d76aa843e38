"""Optuna Dashboard on a study's storage, and the note that it shows beside a study. The one file that knows it."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage

from evomerge.study.storage import with_retries


def write_note(study: optuna.Study, markdown: str) -> None:
    """Show a text beside the study, in the place of an earlier one."""
    from optuna_dashboard import save_note  # takes seconds to import

    with_retries(lambda: save_note(study, markdown))


def serve(storage: BaseStorage, study: str, artifacts: Path, host: str, port: int) -> None:
    """Serve until interrupted.

    Args:
        storage: a cached one; with a bare one every refresh reads all trials again.
        study: name to say where it is served.
    """
    from optuna_dashboard import run_server

    print(f"Optuna Dashboard of {study}: http://{host}:{port}", file=sys.stderr, flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(
            "It has no authentication: whoever reaches this address can change the study.", file=sys.stderr, flush=True
        )
    artifacts.mkdir(parents=True, exist_ok=True)
    run_server(storage, host=host, port=port, artifact_store=FileSystemArtifactStore(artifacts))
