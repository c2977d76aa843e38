"""The table of sources and groups that matter, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from evomerge.importance.experts_and_groups import FEWEST
from evomerge.plain_table import plain_table


def importance_table(document: Mapping[str, Any]) -> RenderableType:
    """Sources and groups with what their parameters explain.

    Args:
        document: see `evomerge.importance.importance_document`.
    """
    rows, trials = document["importance"]["rows"], document["importance"]["trials"]
    if not rows:
        return Text("There are no two sources or groups whose parameters could be compared.\n")
    table = plain_table(
        f"what only the parameters of one source or group explain of the differences between {trials} trials"
    )
    for name in ("", "share", "95 % interval of all", "answer"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        table.add_row(f"{row['kind']} {row['name']}", _percent(row["share"]), _interval(row), row["answer"])
    if trials < FEWEST:
        table.caption = f"{FEWEST} complete trials are needed to tell"
    return table


def _interval(row: Mapping[str, Any]) -> str:
    return "–" if row["low"] is None else f"{_percent(row['low'])} … {_percent(row['high'])}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{round(100 * share):+d} %"
