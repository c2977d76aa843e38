"""Optuna Dashboard on a study's storage, with the notes and plots that it shows. The one file that knows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.object_store.optuna_store import optuna_store

SCHEMA = 1
_NOTE = "dashboard:note_str:"
_CHUNK = 2045  # characters of a note that the dashboard keeps in one attribute


def write_note(study: optuna.Study, markdown: str) -> None:
    """Show a text beside the study, in the place of an earlier one."""
    from optuna_dashboard import save_note  # takes seconds to import

    save_note(study, markdown)


def write_trial_note(storage: BaseStorage, study_id: int, trial_id: int, markdown: str) -> None:
    """Show a text beside a trial that has none.

    The dashboard's own function reads all notes of the study for each one, which takes longer with every trial.
    """
    storage.set_study_system_attr(study_id, f"dashboard:{trial_id}:note_ver", 1)
    for place, start in enumerate(range(0, len(markdown), _CHUNK)):
        storage.set_study_system_attr(
            study_id, f"dashboard:{trial_id}:note_str:{place}", markdown[start : start + _CHUNK]
        )


@dataclass(frozen=True)
class PlotlyFigure:
    """A figure in Plotly's schema, which the dashboard draws in the browser. Plotly itself is not needed for it."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]

    def to_json(self) -> str:
        """The figure as the dashboard reads it."""
        return json.dumps({"data": self.data, "layout": self.layout}, allow_nan=False)


def write_plot(study: optuna.Study, name: str, figure: PlotlyFigure) -> None:
    """Show a plot among those of the study, in the place of the earlier one of that name."""
    from optuna_dashboard import save_plotly_graph_object

    save_plotly_graph_object(study, figure, graph_object_id=name)


def dashboard_document(storage: BaseStorage, study: str, *, host: str, port: int) -> dict[str, Any]:
    """The addresses of the dashboard of a study; that of its note, which begins with the verdict, once there is one."""
    number, url = storage.get_study_id_from_name(study), f"http://{host}:{port}"
    has_note = any(key.startswith(_NOTE) for key in storage.get_study_system_attrs(number))
    note = f"{url}/dashboard/studies/{number}/note" if has_note else None
    return {"schema": SCHEMA, "study": study, "url": url, "note": note}


def dashboard_lines(document: dict[str, Any]) -> list[str]:
    """The same for a person."""
    note = [f"its verdict: {document['note']}"] if document["note"] else []
    return [f"Optuna Dashboard of {document['study']}: {document['url']}", *note]


def serve(storage: BaseStorage, artifacts: Path, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        storage: a cached one; with a bare one every refresh reads all trials again.
        say: is told that others can reach it.
    """
    from optuna_dashboard import run_server

    if host not in ("127.0.0.1", "localhost", "::1"):
        say("It has no authentication: whoever reaches this address can change the study.")
    artifacts.mkdir(parents=True, exist_ok=True)
    run_server(storage, host=host, port=port, artifact_store=optuna_store(ArtifactFolder(artifacts)))
