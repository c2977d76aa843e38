"""A look at the attributes of a study, for commands that are called often: no trial is read, and no Optuna loaded.

Whatever is unusual about a storage is not dealt with here: who gets no answer asks Optuna, which says what is wrong.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.storage.url import SQLITE, file_of, resolve_url, scheme_of

_QUERY: Final = (
    "SELECT a.key, a.value_json FROM studies s LEFT JOIN study_user_attributes a ON a.study_id = s.study_id "
    "WHERE s.study_name = "
)
_SERVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "mysql+pymysql": "mysql+pymysql",
}
_SECONDS: Final = 10  # that a server has to answer
_PIECE: Final = 1 << 20  # bytes of a journal that are looked through together


@dataclass(frozen=True)
class Glance:
    """A study by its attributes."""

    study_name: str
    user_attrs: dict[str, Any]


def glance_at(url: str, name: str) -> Glance | None:
    """The study of that name; None where it cannot be looked at in this way, or is not there."""
    url = resolve_url(url)
    scheme, found = scheme_of(url), None
    with suppress(Exception):  # of any driver: Optuna's way meets it again, where it is told
        if scheme in SQLITE:
            found = _in_sqlite(file_of(url), name)
        elif scheme == "journal":
            found = _in_journal(file_of(url), name)
        elif scheme in _SERVERS:
            found = _on_server(f"{_SERVERS[scheme]}://{url.partition('://')[2]}", name)
    return None if found is None else Glance(name, found)


def _in_sqlite(file: Path, name: str) -> dict[str, Any] | None:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
        return _attributes(connection.execute(f"{_QUERY} ?", (name,)))


def _on_server(url: str, name: str) -> dict[str, Any] | None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": _SECONDS})
    with engine.connect() as connection:
        return _attributes(tuple(row) for row in connection.execute(text(f"{_QUERY} :name"), {"name": name}))


def _attributes(rows: Iterable[tuple[str | None, str]]) -> dict[str, Any] | None:
    """The attributes in rows, of which a study without any has one that is empty; None where there is no study."""
    found = list(rows)
    return {key: json.loads(text) for key, text in found if key is not None} if found else None


def _in_journal(file: Path, name: str) -> dict[str, Any] | None:
    studies: list[str | None] = []
    attributes: dict[str, Any] = {}
    with file.open("rb") as lines:
        while piece := lines.readlines(_PIECE):
            for line in piece:
                # Nearly all lines are about trials; a number above 2 that begins like these is sorted out below.
                if b'"op_code":0' in line or b'"op_code":1' in line or b'"op_code":2' in line:
                    _apply(json.loads(line), name, studies, attributes)
    return attributes if name in studies else None


def _apply(log: dict[str, Any], name: str, studies: list[str | None], attributes: dict[str, Any]) -> None:
    """Create a study (0), delete one (1), or set a user attribute of one (2), as Optuna numbers these."""
    match log["op_code"]:
        case 0 if log["study_name"] not in studies:
            studies.append(log["study_name"])
        case 1:
            if studies[log["study_id"]] == name:
                attributes.clear()
            studies[log["study_id"]] = None
        case 2 if studies[log["study_id"]] == name:
            attributes.update(log["user_attr"])
