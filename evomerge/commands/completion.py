"""Completion of names in a shell: spaces, evaluators, methods, baselines, sections of settings, studies in a file.

Each function is called while a person waits for the tab key, so that it loads neither torch nor Optuna, and what goes
wrong completes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Final

import typer

from evomerge.shipped import shipped_folder
from evomerge.storage.url import SQLITE, file_of, resolve_url, scheme_of

PLACES_OF_WORKERS: Final = ("auto", "local", "none")
PERMISSIONS: Final = ("pickle_weights", "remote_code", "task_code", "benchmark_test_sets")
SECTIONS: Final = (
    *("search.yaml", "sources", "evaluator", "objective", "sampler", "fidelity", "warm_start", "budget", "workers"),
    *("baselines", "verdict", "notify", "metrics", "track", "evaluator.yaml", "space", "range"),
    *("catcma", "cma", "forest", "gp", "nsgaii", "nsgaiii", "tpe"),
    *("weights", "given", "lines", "emr", "model-stock", "dam", "adamerging", "learned", "fine-tune"),
)
_LINES: Final = 20_000  # of a journal, in which studies are looked for
_SECONDS: Final = 1  # that a SQLite file may be locked


def space_names(incomplete: str) -> list[str]:
    """The shipped search spaces."""
    return _matching(incomplete, (path.stem for path in shipped_folder("search_spaces").glob("*.yaml")))


def evaluator_names(incomplete: str) -> list[str]:
    """The shipped evaluator packs and the classes of installed packages."""
    packs = (path.parent.name for path in shipped_folder("evaluators").glob("*/evaluator.yaml"))
    return _matching(incomplete, [*packs, *(each.name for each in entry_points(group="evomerge.evaluators"))])


def example_names(incomplete: str) -> list[str]:
    """The searches that ship with evomerge."""
    return _matching(incomplete, ["toy"])


def method_names(incomplete: str) -> list[str]:
    """The merge methods."""
    from evomerge.methods import METHODS

    return _matching(incomplete, METHODS)


def section_names(incomplete: str) -> list[str]:
    """The sections of the reference of settings."""
    return _matching(incomplete, SECTIONS)


def baseline_names(incomplete: str) -> list[str]:
    """The baselines."""
    from evomerge.baselines.info import BASELINES

    return _matching(incomplete, BASELINES)


def trial_names(incomplete: str) -> list[str]:
    """The rows that `--trial` can name but for numbers: the best trial and the baselines."""
    return _matching(incomplete, ["best", *baseline_names("")])


def worker_places(incomplete: str) -> list[str]:
    """The words that `--ray` takes beside addresses."""
    return _matching(incomplete, PLACES_OF_WORKERS)


def permissions(incomplete: str) -> list[str]:
    """The permissions that a search can have."""
    return _matching(incomplete, PERMISSIONS)


def study_names(context: typer.Context, incomplete: str) -> list[str]:
    """The searches of the storage that the command line names; those of servers are not asked for."""
    with suppress(Exception):  # a name that is not completed is typed
        return _matching(incomplete, _studies(str(context.params["storage"])))
    return []


def _matching(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _studies(url: str) -> set[str]:
    """The studies of a file but for the siblings of searches, such as NAME/baselines."""
    url = resolve_url(url)
    scheme = scheme_of(url)
    if scheme in SQLITE:
        names = _in_sqlite(file_of(url))
    else:
        names = _in_journal(file_of(url)) if scheme == "journal" else set()
    return {name for name in names if name.rpartition("/")[0] not in names}


def _in_sqlite(file: Path) -> set[str]:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
        return {name for (name,) in connection.execute("SELECT study_name FROM studies")}


def _in_journal(file: Path) -> set[str]:
    """The studies that the first lines of a journal create; Optuna's operation 0, with the name."""
    with file.open("rb") as lines:
        entries = [json.loads(line) for line in islice(lines, _LINES) if b'"op_code":0' in line]
    return {entry["study_name"] for entry in entries if entry["op_code"] == 0}
