"""Optuna Dashboard on a study's storage."""

from __future__ import annotations

import sys

from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import run_server

from evomerge.study.opening import StoredSearch


def serve(stored: StoredSearch, host: str, port: int) -> None:
    """Serve until interrupted. The storage is a cached one: with a bare one every refresh reads all trials again."""
    print(f"Optuna Dashboard of {stored.study.study_name}: http://{host}:{port}", file=sys.stderr, flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(
            "It has no authentication: whoever reaches this address can change the study.", file=sys.stderr, flush=True
        )
    stored.artifacts.mkdir(parents=True, exist_ok=True)
    run_server(stored.storage, host=host, port=port, artifact_store=FileSystemArtifactStore(stored.artifacts))
