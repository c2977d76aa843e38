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
    number = storage.get_study_id_from_name(study)
    if any(key.startswith(_NOTE) for key in storage.get_study_system_attrs(number)):
        say(f"its verdict: http://{host}:{port}/dashboard/studies/{number}/note")
    if host not in ("127.0.0.1", "localhost", "::1"):
        say("It has no authentication: whoever reaches this address can change the study.")
    artifacts.mkdir(parents=True, exist_ok=True)
    run_server(storage, host=host, port=port, artifact_store=optuna_store(ArtifactFolder(artifacts)))
