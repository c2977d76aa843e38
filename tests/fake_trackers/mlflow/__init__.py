"""The few calls of MLflow that evomerge makes, over one JSON file. An http:// address is a server that is away.

Like MLflow it refuses a param that has another value already, and characters in names that its stores refuse.
"""

import json
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace

_NAME = re.compile(r"[\w\-. :/]+", re.ASCII)


class MlflowClient:
    def __init__(self, tracking_uri=None):
        self._uri = tracking_uri
        self._file = Path((tracking_uri or "").removeprefix("sqlite:///") + ".json")

    def get_experiment_by_name(self, name):
        known = self._read()["experiments"]
        return SimpleNamespace(experiment_id=str(known.index(name))) if name in known else None

    def create_experiment(self, name):
        with _writing(self) as state:
            state["experiments"].append(name)
            return str(len(state["experiments"]) - 1)

    def create_run(self, experiment_id, run_name=None, tags=None):
        with _writing(self) as state:
            known = next(f"run{number}" for number in count() if f"run{number}" not in state["runs"])
            state["runs"][known] = {
                "experiment": experiment_id,
                "status": "RUNNING",
                "tags": {**(tags or {}), "mlflow.runName": run_name},
                "params": {},
                "history": {},
            }
        return self.get_run(known)

    def get_run(self, run_id):
        run = self._read()["runs"][run_id]
        latest = {name: points[-1][1] for name, points in run["history"].items()}
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, status=run["status"]),
            data=SimpleNamespace(params=run["params"], tags=run["tags"], metrics=latest),
        )

    def search_runs(self, experiment_ids, filter_string="", max_results=1000):
        name, value = re.fullmatch(r"tags\.`(.+)` = '(.+)'", filter_string).groups()
        found = [
            run
            for run, content in self._read()["runs"].items()
            if content["experiment"] in experiment_ids and content["tags"].get(name) == value
        ]
        return [self.get_run(run) for run in found[:max_results]]

    def update_run(self, run_id, status=None, name=None):
        with _writing(self) as state:
            state["runs"][run_id]["status"] = status

    set_terminated = update_run

    def set_tag(self, run_id, key, value):
        with _writing(self) as state:
            state["runs"][run_id]["tags"][key] = value

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        if len(params) > 100 or len(metrics) > 1000:
            raise MlflowException("too many in one request")
        with _writing(self) as state:
            run = state["runs"][run_id]
            for each in (*metrics, *params):
                if not _NAME.fullmatch(each.key):
                    raise MlflowException(f"Invalid name: {each.key!r}")
            for each in params:
                if run["params"].setdefault(each.key, each.value) != each.value:
                    raise MlflowException(f"Changing param values is not allowed: {each.key!r}")
            for each in metrics:
                run["history"].setdefault(each.key, []).append((each.step, each.value))

    def get_metric_history(self, run_id, key):
        history = self._read()["runs"][run_id]["history"].get(key, [])
        return [SimpleNamespace(step=step, value=value) for step, value in history]

    def log_text(self, run_id, text, artifact_file):
        with _writing(self) as state:
            state["artifacts"][f"{run_id}/{artifact_file}"] = text

    def log_dict(self, run_id, dictionary, artifact_file):
        self.log_text(run_id, json.dumps(dictionary), artifact_file)

    def download_artifacts(self, run_id, path, dst_path=None):
        target = Path(dst_path) / path
        target.write_text(self._read()["artifacts"][f"{run_id}/{path}"])
        return str(target)

    def _read(self):
        if (self._uri or "").startswith("http"):
            raise MlflowException(f"API request to {self._uri}/api/2.0/mlflow failed: connection refused")
        if not self._file.exists():
            return {"experiments": ["Default"], "runs": {}, "artifacts": {}}
        return json.loads(self._file.read_text())


class MlflowException(Exception):
    pass


class _writing:
    def __init__(self, client):
        self._client = client

    def __enter__(self):
        self._state = self._client._read()
        return self._state

    def __exit__(self, kind, error, trace):
        if kind is None:
            self._client._file.write_text(json.dumps(self._state))
