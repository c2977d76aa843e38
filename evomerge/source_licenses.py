"""The licences of a search's sources in `evomerge check`: what each declares, and what that means for a merge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from evomerge.artefacts import parents_of
from evomerge.artefacts.parents import judgement_of
from evomerge.checkpoints import Source
from evomerge.licenses import NO_ADVICE


def license_document(sources: Iterable[Source]) -> dict[str, Any]:
    """The licences as a JSON object: `sources`, each with `name`, `license` and the `file` that declares it; `result`.

    Args:
        sources: the base first.
    """
    parents = parents_of(sources)
    return {
        "sources": [
            {"name": parent.name, "license": parent.license.label, "file": parent.license.file} for parent in parents
        ],
        "result": judgement_of(parents).to_data(),
    }


def license_lines(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for a person: lines, each with its style."""
    result = document["result"]
    owners: dict[str, list[str]] = {}
    for each in document["sources"]:
        license_ = f"{each['license']} ({each['file']})" if each["license"] else "unknown"
        owners.setdefault(license_, []).append(each["name"])
    declared = [f"{license_} of {', '.join(names)}" for license_, names in owners.items()]
    yield f"  licences: {'; '.join(declared)}", ""
    name = f" ({result['license_name']})" if result["license_name"] else ""
    yield f"    of the merge: {result['license']}{name}; {result['meaning']}", ""
    for problem in result["problems"]:
        yield f"    {problem}", "yellow"
    for duty in result["duties"]:
        yield f"    {duty}", ""
    yield f"    ({NO_ADVICE})", ""
