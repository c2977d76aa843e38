"""One merge method for a terminal: formula, parameters, options, needs, cost, paper and an example."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["method_page"]

Entry = dict[str, Any]

_KINDS = {
    "space": "example: a search space, for `space: FILE` in search.yaml",
    "call": "example: a call of the library; a search does not choose this method by itself",
}


def method_page(entry: Entry) -> Group:
    """The page of one method as `describe_methods` describes it."""
    page: list[RenderableType] = [Text(entry["name"], style="bold"), Text(entry["description"]), Text(), _facts(entry)]
    if entry["parameters"] or entry["tensors"]:
        page += [Text("\nparameters", style="bold"), _parameters(entry)]
    if entry["options"] or entry["source_options"]:
        page += [Text("\noptions, the default first", style="bold"), _options(entry)]
    example = entry["example"]
    return Group(*page, Text(f"\n{_KINDS[example['kind']]}", style="bold"), _indented(Text(example["text"].rstrip())))


def _facts(entry: Entry) -> RenderableType:
    table = _grid()
    for line, label in zip(entry["formula"], ["formula", *[""] * len(entry["formula"])], strict=False):
        table.add_row(Text(label), Text(line))
    table.add_row(Text("needs"), Text(_needs(entry)))
    table.add_row(Text("sources"), Text("any number" if entry["sources"] is None else f"exactly {entry['sources']}"))
    if entry["random"]:
        table.add_row(Text("random"), Text("masks follow from the seed of the recipe"))
    if entry["cost"]:
        table.add_row(Text("cost"), Text(entry["cost"]))
    if entry["evidence"]:
        table.add_row(Text("evidence"), Text(entry["evidence"]))
    if entry["unsuited"]:
        table.add_row(Text("not for"), Text(entry["unsuited"]))
    table.add_row(Text("paper"), Text(entry["paper"]))
    return _indented(table)


def _needs(entry: Entry) -> str:
    """The needs in words; statistics with their form."""
    statistics = entry["statistics"]
    words = [each for each in entry["needs"] if each != "statistics"]
    if statistics is not None:
        under = "" if statistics["needed_under"] is None else f" (with {statistics['needed_under']})"
        by = ", measured by a search on the calibration text of every expert" if statistics["measured"] else ""
        words.append(f"statistics{under}{by}: {statistics['description']}")
    return "; ".join(["the weights of the sources", *(f"the {each}" if each == "base" else each for each in words)])


def _parameters(entry: Entry) -> RenderableType:
    table = _grid()
    for parameter in entry["parameters"]:
        low, high = parameter["range"]
        values = (
            f"{'one per source' if parameter['per_source'] else 'one number'}; default {parameter['default']:g}, "
            f"search {low:g} to {high:g}; allowed: {parameter['allowed']}"
        )
        table.add_row(Text(parameter["name"]), Text(f"{parameter['description']}\n{values}"))
    for tensor in entry["tensors"]:
        table.add_row(Text(tensor["name"]), Text(f"{tensor['description']}\ntensors: trained or given, never searched"))
    return _indented(table)


def _options(entry: Entry) -> RenderableType:
    table = _grid()
    for option in entry["options"]:
        choices = " | ".join(_word(choice) for choice in option["choices"])
        table.add_row(Text(option["name"]), Text.assemble((choices, "bold"), f"\n{option['description']}"))
    for option in entry["source_options"]:
        where = "position of a source, from 0; no default"
        table.add_row(Text(option["name"]), Text.assemble((where, "bold"), f"\n{option['description']}"))
    return _indented(table)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, 2), expand=False)
