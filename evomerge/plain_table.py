"""The form that all tables of a terminal have."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


def plain_table(title: str | None = None) -> Table:
    """A table without columns; its title stands above it on the left, as it is: brackets in it are no markup."""
    return Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
