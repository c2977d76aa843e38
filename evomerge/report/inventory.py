"""Inventory of search spaces, evaluators and merge methods, with their parameters and papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evomerge.evaluation import known_evaluators, known_packs, load_pack
from evomerge.methods import METHODS, MethodInfo, Statistics, method_info
from evomerge.plain_table import plain_table
from evomerge.report.method_example import example_of
from evomerge.report.method_page import method_page
from evomerge.spaces import known_spaces, load_space

SCHEMA = 1


def describe_spaces(name: str | None) -> dict[str, Any]:
    """The shipped search spaces, or one by name or path."""
    return _document("spaces", [name] if name else known_spaces(), _space)


def describe_evaluators(name: str | None) -> dict[str, Any]:
    """The shipped evaluator packs and the evaluator classes of installed packages, or one of them."""
    return _document("evaluators", [name] if name else [*known_packs(), *known_evaluators()], _evaluator)


def describe_methods(name: str | None) -> dict[str, Any]:
    """The merge methods, or one."""
    return _document("methods", [name] if name else list(METHODS), lambda each: _method(method_info(each)))


def inventory_text(document: dict[str, Any]) -> Table | Group:
    """A table of all, or everything about one."""
    entries = next(value for key, value in document.items() if key != "schema")
    if len(entries) == 1 and "methods" in document:
        return method_page(entries[0])
    if len(entries) == 1:
        return Group(*(Text.assemble((f"{key}: ", "bold"), _plain(value)) for key, value in entries[0].items()))
    table = plain_table()
    table.add_column("name", no_wrap=True)
    table.add_column("description")
    for entry in entries:
        table.add_row(Text(entry["name"]), Text(entry["description"]))
    return table


def _document(kind: str, names: Iterable[str], describe: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return {"schema": SCHEMA, kind: [describe(name) for name in names]}


def _space(name: str) -> dict[str, Any]:
    space = load_space(name)
    content = space.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"name": space.name, "description": space.description.strip(), **content}


def _evaluator(name: str) -> dict[str, Any]:
    if name in (classes := known_evaluators()):
        return {"name": name, "description": "evaluator class", "kind": "class"}
    pack = load_pack(name, classes)
    tasks = [task.model_dump(mode="json", exclude_none=True) for task in pack.tasks]
    return {"name": pack.name, "description": pack.description.strip(), "kind": "pack", "tasks": tasks}


def _method(info: MethodInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "description": info.title,
        "paper": info.paper,
        "formula": info.formula.splitlines(),
        "needs": sorted(info.needs),
        "sources": info.sources,
        "random": info.random,
        "cost": info.cost,
        "evidence": info.evidence,
        "unsuited": info.unsuited,
        "parameters": [
            {
                "name": parameter.name,
                "per_source": parameter.per_source,
                "range": [parameter.low, parameter.high],
                "minimum": _finite(parameter.minimum),
                "maximum": _finite(parameter.maximum),
                "allowed": parameter.allowed,
                "default": parameter.default,
                "description": parameter.description,
            }
            for parameter in info.parameters
        ],
        "tensors": [{"name": each.name, "description": each.description} for each in info.tensors],
        "options": [
            {
                "name": option.name,
                "choices": list(option.choices),
                "default": option.default,
                "description": option.description,
            }
            for option in info.options
        ],
        "source_options": [{"name": each.name, "description": each.description} for each in info.source_options],
        "statistics": None if info.statistics is None else _statistics(info.statistics),
        "example": example_of(info),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _statistics(statistics: Statistics) -> dict[str, Any]:
    under = statistics.needed_under
    return {
        "name": statistics.name,
        "description": statistics.description,
        "measured": statistics.measured,
        "needed_under": None if under is None else f"{under[0]}: {under[1]}",
    }


def _plain(value: Any) -> str:
    """A value over as many lines as it has entries."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join("\n  " + ", ".join(f"{key} {_plain(item)}" for key, item in entry.items()) for entry in value)
    if isinstance(value, dict):
        return "".join(f"\n  {key}: {item}" for key, item in value.items())
    return " ".join(str(value).split())
