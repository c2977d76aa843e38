"""MLflow: one run for a search, and a nested run for each trial with its params. The one file that imports mlflow."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from evomerge.telemetry.tracker import Conclusion, EndState, TrackedRun, TrialEntry

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RUN: Final = "evomerge.run"  # tag of the run of a search: its id
_STATUS: Final = {
    "complete": "FINISHED",
    "dropped": "KILLED",
    "failed": "FAILED",
    "finished": "FINISHED",
    "interrupted": "KILLED",
}
_NO_NAME: Final = re.compile(r"[^\w\-. :/]", re.ASCII)  # characters that MLflow refuses in names of metrics and params
_LONGEST: Final = 500  # characters of a value, in stores of all releases
_MOST: Final = 100  # params of one call


class MlflowTracker:
    """A `Tracker` on an MLflow server or store.

    Args:
        uri: tracking URI; None for MLflow's own choice.
        experiment: its name; that of the study without it.
    """

    def __init__(self, uri: str | None = None, experiment: str | None = None) -> None:
        self._uri = uri
        self._experiment = experiment

    def open(self, run: TrackedRun) -> None:
        """Find the run with the tag of this id in the experiment, or create both."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        name = self._experiment or run.study
        known = client.get_experiment_by_name(name)
        self._experiment_id: str = client.create_experiment(name) if known is None else known.experiment_id
        found = client.search_runs([self._experiment_id], filter_string=f"tags.`{_RUN}` = '{run.id}'", max_results=1)
        if found:
            self._run: str = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
        else:
            self._run = client.create_run(self._experiment_id, run_name=run.study, tags={_RUN: run.id}).info.run_id
            self._write(client, self._run, params=run.config)
        self._client = client

    def log(self, entry: TrialEntry) -> None:
        """A nested run with the params, and the same numbers as a point of the search's curves."""
        tags = {"mlflow.parentRunId": self._run, "evomerge.state": entry.state, "evomerge.reason": entry.reason}
        trial = self._client.create_run(
            self._experiment_id,
            run_name=f"trial {entry.number}",
            tags={name: value[:_LONGEST] for name, value in tags.items() if value},
        )
        self._write(self._client, trial.info.run_id, entry.step, params=entry.params, metrics=entry.metrics)
        self._client.set_terminated(trial.info.run_id, _STATUS[entry.state])
        self._write(self._client, self._run, entry.step, metrics=entry.metrics)

    def conclude(self, finding: Conclusion) -> None:
        """The verdict as the description of the run, the leaderboard as an artifact."""
        for name, text in (
            ("mlflow.note.content", finding.note),
            ("evomerge.verdict", finding.headline[:_LONGEST]),
            ("evomerge.belief", finding.belief),
        ):
            self._client.set_tag(self._run, name, text)
        self._client.log_text(self._run, finding.note, "verdict.md")
        rows = [dict(zip(finding.columns, row, strict=True)) for row in finding.rows]
        self._client.log_dict(self._run, {"rows": rows}, "leaderboard.json")

    def close(self, state: EndState) -> None:
        self._client.set_terminated(self._run, _STATUS[state])

    def _write(
        self,
        client: MlflowClient,
        run: str,
        step: int = 0,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        numbers = [Metric(_NO_NAME.sub("_", name), value, now, step) for name, value in (metrics or {}).items()]
        texts = [Param(_NO_NAME.sub("_", name), str(value)[:_LONGEST]) for name, value in (params or {}).items()]
        client.log_batch(run, metrics=numbers, params=texts[:_MOST])
        for start in range(_MOST, len(texts), _MOST):
            client.log_batch(run, params=texts[start : start + _MOST])
