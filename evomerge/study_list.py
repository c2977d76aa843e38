"""The list of the searches in a storage, with their states: read from attributes alone, no trial is read."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from optuna.storages import BaseStorage
from rich.table import Table
from rich.text import Text

from evomerge.errors import InvalidInput
from evomerge.leases.holder import holder_of
from evomerge.messages import duration, plain_score
from evomerge.plain_table import plain_table
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.storage.url import local_file, redact, resolve_url
from evomerge.study.status import FINISHED_PHASE, Status, last_sign, status_of

SCHEMA = 1


def list_studies(url: str) -> dict[str, Any]:
    """The searches in a storage, each with its siblings, by name. Studies of other programs are counted only.

    Raises:
        InvalidInput: the storage cannot be opened, or is a file that does not exist.
    """
    url = resolve_url(url)
    file = local_file(url)
    if file is not None and not file.exists():
        raise InvalidInput(f"there is no storage {redact(url)}: the file does not exist; `evomerge run` makes it")
    storage = open_storage(url)
    try:
        found = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
        searches = {name: attrs for name, attrs in found.items() if attributes.SCHEMA in attrs}
        siblings = {name for name in found if name.rpartition("/")[0] in searches}
        return {
            "schema": SCHEMA,
            "storage": redact(url),
            "studies": [
                _search(storage, url, name, attrs, siblings=siblings) for name, attrs in sorted(searches.items())
            ],
            "others": len(found) - len(searches) - len(siblings),
        }
    finally:
        release(storage)


def studies_table(document: dict[str, Any]) -> Table | Text:
    """The same for a person."""
    if not document["studies"]:
        return Text(f"{document['storage']} has no search of evomerge")
    table = plain_table()
    for column in ("study", "state", "trials", "best", "last sign of life", "beside it"):
        table.add_column(column)
    for study in document["studies"]:
        trials, best = study["trials"], study["best"]
        failed = f", {trials['failed']} failed" if trials["failed"] else ""
        table.add_row(
            Text(study["name"]),
            Text(_state(study)),
            Text(f"{trials['finished']}/{trials['budget']}{failed}" if trials["budget"] else "-"),
            Text("-" if best is None else f"{plain_score(best['value'])} (trial {best['trial']})"),
            Text("-" if study["updated"] is None else f"{duration(max(0.0, time.time() - study['updated']))} ago"),
            Text(", ".join(study["siblings"])),
        )
    return table


def _search(
    storage: BaseStorage, url: str, name: str, attrs: Mapping[str, Any], *, siblings: Collection[str]
) -> dict[str, Any]:
    content = attrs.get(attributes.STATUS)
    status = None if content is None else status_of(content)
    holder = holder_of(url, name, storage=storage)
    if holder is not None and holder.alive == "no":
        holder = None
    return {
        "name": name,
        "state": "not begun" if status is None else status.state,
        "phase": attrs.get(attributes.PHASE),
        "controller": None if holder is None else f"process {holder.process} on {holder.host}",
        "trials": _trials(status),
        "best": None if status is None or status.best is None else {"value": status.best, "trial": status.best_trial},
        "updated": last_sign(attrs),
        "siblings": sorted(other.removeprefix(f"{name}/") for other in siblings if other.startswith(f"{name}/")),
    }


def _trials(status: Status | None) -> dict[str, int]:
    if status is None:
        return {"finished": 0, "dropped": 0, "failed": 0, "running": 0, "budget": 0}
    return {
        "finished": status.finished,
        "dropped": status.dropped,
        "failed": status.failed,
        "running": status.running,
        "budget": status.budget,
    }


def _state(study: Mapping[str, Any]) -> str:
    """The state in words: a status that says "running" is the last word of a controller that may be dead."""
    if study["controller"] is None and study["state"] in ("running", "paused"):
        return f"{study['state']}, but no controller is alive"
    if study["controller"] is not None and study["state"] not in ("running", "paused"):
        return f"{study['phase'] or 'held'}"
    if study["state"] == "finished" and study["phase"] not in (None, FINISHED_PHASE):
        return f"{study['phase']}, but no controller is alive"
    return str(study["state"])
