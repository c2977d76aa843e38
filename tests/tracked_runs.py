"""Runs read back from MLflow and W&B, and from their fakes, in one form."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

FAKES = str(Path(__file__).parent / "fake_trackers")

_MLFLOW_STATES = {"FINISHED": "finished", "KILLED": "interrupted", "FAILED": "failed"}
_METRICS = ("objective", "best")


def read_mlflow(uri: str, experiment: str, folder: Path) -> list[dict[str, Any]]:
    """The runs of searches in an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([found], filter_string="tags.`evomerge.run` = '0123456789abcdef'")
    return [_mlflow_run(client, found, run, folder) for run in runs]


def _mlflow_run(client: Any, experiment: str, run: Any, folder: Path) -> dict[str, Any]:
    name = run.info.run_id
    children = client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{name}'")
    concluded = "evomerge.verdict" in run.data.tags
    board = json.loads(
        Path(client.download_artifacts(name, "leaderboard.json", str(folder))).read_text() if concluded else "{}"
    )
    return {
        "name": run.data.tags["mlflow.runName"],
        "state": _MLFLOW_STATES[run.info.status],
        "config": run.data.params,
        "trials": {
            int(each.data.tags["mlflow.runName"].removeprefix("trial ")): {
                "params": each.data.params,
                "metrics": each.data.metrics,
                "state": each.data.tags["evomerge.state"],
                "reason": each.data.tags.get("evomerge.reason", ""),
            }
            for each in children
        },
        "history": {
            metric: [(point.step, point.value) for point in client.get_metric_history(name, metric)]
            for metric in _METRICS
        },
        "verdict": run.data.tags.get("evomerge.verdict"),
        "belief": run.data.tags.get("evomerge.belief"),
        "note": run.data.tags.get("mlflow.note.content"),
        "leaderboard": board.get("rows"),
    }


def read_wandb(folder: Path, run: str, *, real: bool) -> list[dict[str, Any]]:
    """The run of an id, joined of the files of all its processes."""
    content = _wandb_files(folder, run) if real else json.loads((folder / f"{run}.json").read_text())
    table = content["summary"].get("leaderboard")
    history = defaultdict(list)
    for step, row in content["history"]:
        for metric in _METRICS:
            if metric in row:
                history[metric].append((step, row[metric]))
    return [
        {
            "name": content["name"],
            "state": "finished" if content["exit"] == 0 else "interrupted",
            "config": {name: str(value) for name, value in content["config"].items()},
            "trials": {row["trial"]: _wandb_trial(row) for _, row in content["history"]},
            "history": history,
            "verdict": content["summary"].get("verdict"),
            "belief": content["summary"].get("belief"),
            "note": content["notes"],
            "leaderboard": table and [dict(zip(table["columns"], row, strict=True)) for row in table["data"]],
        }
    ]


def _wandb_trial(row: dict[str, Any]) -> dict[str, Any]:
    params = {name.removeprefix("params/"): str(value) for name, value in row.items() if name.startswith("params/")}
    return {"params": params, "metrics": row, "state": row["state"], "reason": row.get("reason", "")}


def _wandb_files(folder: Path, run: str) -> dict[str, Any]:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # writes the files, and forgets the folder
    content: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "notes": ""}
    for file in sorted(folder.glob(f"wandb/offline-run-*-{run}*/run-{run}.wandb")):
        for raw in _records(file.read_bytes()):
            record = Record.FromString(raw)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                content["name"] = record.run.display_name
                content["notes"] = record.run.notes or content["notes"]
                values = _items(record.run.config.update)
                content["config"] |= {name: value for name, value in values.items() if name != "_wandb"}
            elif kind == "history":
                row = _items(record.history.item)
                content["history"].append((row["_step"], {k: v for k, v in row.items() if not k.startswith("_")}))
            elif kind == "summary":
                content["summary"] |= _items(record.summary.update)
            elif kind == "exit":
                content["exit"] = record.exit.exit_code
            elif kind == "artifact":
                [table] = record.artifact.manifest.contents
                content["table"] = json.loads(Path(table.local_path).read_text())
    if "table" in content:
        assert content["summary"]["leaderboard"]["_type"] == "table-file"
        content["summary"]["leaderboard"] = content["table"]
    return content


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        names = list(item.nested_key) or [item.key]
        place = found
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = json.loads(item.value_json)
    return found


def _records(content: bytes) -> list[bytes]:
    """The records of a log in blocks of 32 KiB, as LevelDB writes them, after a header of 7 bytes."""
    records, place, joined = [], 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, part = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        joined += content[place + 7 : place + 7 + length]
        if part in (1, 4):  # whole, or the last part of it
            records.append(joined)
            joined = b""
        place += 7 + length
    return records
