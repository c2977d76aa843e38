"""The logs of a study as a document and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evomerge.logs.log_reading import log_lines
from evomerge.report.paths import run_folder
from evomerge.report.progress import LOG_FILE
from evomerge.study.stored_search import StoredSearch

SCHEMA = 1


def log_document(stored: StoredSearch, *, trial: int | None, last: int) -> dict[str, Any]:
    """The document of `evomerge logs --json`: the latest lines by time, of one trial or of all."""
    output = run_folder(stored) / LOG_FILE
    return {
        "schema": SCHEMA,
        "study": stored.study.study_name,
        "folder": str(stored.logs.resolve()),
        "output": str(output) if output.is_file() else None,
        "lines": [asdict(line) for line in log_lines(stored.logs, trial=trial, last=last)],
    }


def log_text(document: dict[str, Any]) -> str:
    """The same for a person, a line of a text below the other: nothing is wrapped or cut."""
    lines = []
    for line in document["lines"]:
        about = f" trial {line['trial']}" if line["trial"] is not None else f" {line['job']}" if line["job"] else ""
        first, *rest = line["text"].rstrip("\n").split("\n")
        lines.append(f"{line['time']} {line['source']}{about} {line['level']}: {first}")
        lines += [f"    {further}" for further in rest]
    lines.append(f"{'' if lines else 'no lines; '}logs: {document['folder']}")
    if document["output"]:
        lines.append(f"output of libraries and other processes: {document['output']}")
    return "\n".join(lines)
