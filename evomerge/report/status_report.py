"""The state of a search for `evomerge status`: what its study stores, and whether its controller lives."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Final

from rich.text import Text

from evomerge.leases.holder import Holder
from evomerge.messages import duration
from evomerge.report.status_line import status_line
from evomerge.sanity.probe_records import winner_warning
from evomerge.storage import attributes
from evomerge.study.status import FINISHED_PHASE, last_sign, status_of
from evomerge.study.stored_spec import NamedStudy

SCHEMA = 1

# Exit codes of `evomerge status --probe`, besides 0: beyond those that commands end with.
NOT_RUNNING: Final = 10
UNKNOWN: Final = 11


def status_document(study: NamedStudy, holder: Holder | None) -> dict[str, Any]:
    """The document of `evomerge status --json`: attributes that the controller writes, and no trial.

    `alive` says whether a controller runs, `last_sign` how many seconds ago it gave a sign of life.
    """
    attrs = study.user_attrs
    content = attrs.get(attributes.STATUS)
    counts = {"complete": 0, "dropped": 0, "failed": 0, "running": 0}
    if content is not None:
        status = status_of(content)
        complete = status.finished - status.failed - status.dropped
        counts = {"complete": complete, "dropped": status.dropped, "failed": status.failed, "running": status.running}
    return {
        "schema": SCHEMA,
        "study": study.study_name,
        "trials": counts,
        "status": content,
        "phase": str(attrs.get(attributes.PHASE) or "") or None,
        "alive": "no" if holder is None else holder.alive,
        "holder": None if holder is None else asdict(holder),
        "warning": winner_warning(study) or None,
        "last_sign": _last_sign(attrs, holder),
    }


def _last_sign(attrs: dict[str, Any], holder: Holder | None) -> float | None:
    stored = last_sign(attrs)
    ages = [] if stored is None else [time.time() - stored]
    if holder is not None and holder.refreshed is not None:
        ages.append(holder.refreshed)
    return max(0.0, min(ages)) if ages else None  # clocks of two machines differ


def probe_code(document: dict[str, Any]) -> int:
    """The exit code for a supervisor: 0 where the controller runs or has finished, 10 where not, 11 if nobody knows."""
    if document["alive"] == "yes" or document["phase"] == FINISHED_PHASE:
        return 0
    return UNKNOWN if document["alive"] == "unknown" else NOT_RUNNING


def status_text(document: dict[str, Any]) -> Text:
    """The same for a person."""
    counts = ", ".join(f"{count} {state}" for state, count in document["trials"].items() if count)
    text = Text(f"{document['study']}: {counts or 'no trials yet'}\n")
    if document["status"] is None:
        text.append("the search has not begun to propose")
    else:
        text.append(status_line(status_of(document["status"])))
    if document["phase"] not in (None, "searching"):
        text.append(f"\n{document['phase']}")
    if document["warning"]:
        text.append(f"\n{document['warning']}", style="yellow")
    return text.append(f"\n{_life(document)}")


def _life(document: dict[str, Any]) -> str:
    phase, alive = document["phase"], document["alive"]
    age = "" if document["last_sign"] is None else f", last sign of life {duration(document['last_sign'])} ago"
    who = _controller(document)
    if alive == "yes":
        return f"{_state(document)}, {who}{age}"
    if alive == "unknown":
        return f"nobody can tell from here whether {who} still runs{age}"
    if phase == FINISHED_PHASE:
        return f"{phase}, no controller runs{age}"
    if (state := _state(document)) not in ("running", "paused"):
        return f"{state}, no controller runs{age}"
    if document["holder"] is None:  # it has let the study go
        return f"no controller runs, the latest one ended while {phase or 'searching'}; `evomerge run` goes on{age}"
    return f"not running: {who} has ended without saying so; `evomerge run` goes on{age}"


def _state(document: dict[str, Any]) -> str:
    if document["phase"] not in (None, "searching", FINISHED_PHASE):
        return "running"  # the search is over, or has not begun
    return "not begun" if document["status"] is None else status_of(document["status"]).state


def _controller(document: dict[str, Any]) -> str:
    holder, content = document["holder"] or {}, document["status"] or {}
    process, host = holder.get("process") or content.get("pid"), holder.get("host") or content.get("host")
    return "the controller" if process is None else f"process {process} on {host}"
