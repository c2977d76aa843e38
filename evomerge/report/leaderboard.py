"""The leaderboard: sources, baselines and the best trials, on search and on held-out items. Derived from the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from evomerge.study import attributes
from evomerge.study.opening import StoredSearch
from evomerge.study.records import Record, read_record, read_records
from evomerge.verdict import read_winner

SCHEMA = 1


@dataclass(frozen=True)
class Part:
    """How a row does on one part of the items: the objective and the tasks, each with its standard error."""

    value: float
    stderr: float | None
    tasks: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """One row of the leaderboard.

    Attributes:
        kind: source, baseline, best (the winner) or trial.
        seconds: what scoring it once cost, merge included.
        command: reproduces the held-out scores (search scores where nothing was held out yet), None where the
            evaluator is not lm-eval.
        prepare: makes the model directory that `command` reads, None where it is there already.
    """

    label: str
    kind: str
    trial: int | None
    recipe: str
    search: Part | None
    held_out: Part | None
    seconds: float | None
    command: str | None = None
    prepare: str | None = None


def leaderboard(stored: StoredSearch, top: int = 5) -> list[Line]:
    """Sources and baselines in the order of scoring, then the best trials; sorted by held-out, then search value."""
    spec = stored.spec
    winner = read_winner(stored.study.user_attrs)
    search = {row.label: row for row in _rows(stored.baselines)}
    held_out = {(row.label, row.digest): row for row in _rows(stored.held_out)}
    sources = [source.name for source in spec.sources]
    lines = []
    for label, row in search.items():
        kind = "source" if label in sources else "baseline"
        lines.append(_line(label, kind, None, row, held_out.get((label, row.digest))))
    for trial in best_trials(stored.study, top):
        row = read_record(trial)
        label = f"trial {trial.number}"
        kind = "best" if winner is not None and trial.number == winner.trial else "trial"
        lines.append(_line(label, kind, trial.number, row, held_out.get((label, row.digest))))
    return sorted(lines, key=_rank)


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The trials with the highest values, earlier ones first among equals."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:count]


def leaderboard_document(stored: StoredSearch, lines: Sequence[Line]) -> dict[str, Any]:
    """What `evomerge leaderboard --json` prints."""
    winner = read_winner(stored.study.user_attrs)
    return {
        "schema": SCHEMA,
        "study": stored.study.study_name,
        "winner": asdict(winner) if winner else None,
        "held_out_looks": len(stored.study.user_attrs.get(attributes.LOOKS, [])),
        "rows": [asdict(line) for line in lines],
    }


def leaderboard_tables(stored: StoredSearch, lines: Sequence[Line]) -> Group:
    """The leaderboard for a terminal: the objective on both parts of the items, then every task."""
    held_out = any(line.held_out for line in lines)
    summary = _table(f"{stored.study.study_name}: objective", ("search", "±", "held-out", "±", "s / candidate"))
    for line in lines:
        seconds = f"{line.seconds:.1f}" if line.seconds is not None else "–"
        summary.add_row(_name(line), *_cells(line.search), *_cells(line.held_out), seconds, style=_STYLES[line.kind])
    tasks = list(next((part.tasks for line in lines for part in (line.held_out, line.search) if part), {}))
    detail = _table(f"every task, on the {'held-out' if held_out else 'search'} items", _short(tasks))
    for line in lines:
        part = line.held_out if held_out else line.search
        if part is not None:
            detail.add_row(
                _name(line), *(_number(part.tasks[task]["value"]) for task in tasks), style=_STYLES[line.kind]
            )
    return Group(summary, detail)


_STYLES = {"best": "bold green", "trial": "dim", "source": "", "baseline": ""}


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _short(tasks: Sequence[str]) -> list[str]:
    """Task names without a first word that they all share."""
    first = {task.partition("_")[0] for task in tasks}
    shared = len(tasks) > 1 and len(first) == 1 and all("_" in task for task in tasks)
    return [task.partition("_")[2] if shared else task for task in tasks]


def _name(line: Line) -> Text:
    return Text(f"best found ({line.label})" if line.kind == "best" else line.label)


def _cells(part: Part | None) -> tuple[str, str]:
    return ("–", "") if part is None else (_number(part.value), _number(part.stderr))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rows(study: optuna.Study | None) -> list[Record]:
    return read_records(study) if study is not None else []


def _line(label: str, kind: str, trial: int | None, search: Record, held_out: Record | None) -> Line:
    return Line(label, kind, trial, search.digest, _part(search), _part(held_out), search.seconds.get("total"))


def _part(row: Record | None) -> Part | None:
    return None if row is None else Part(row.value, row.stderr, row.tasks)


def _rank(line: Line) -> tuple[float, float]:
    return (
        -(line.held_out.value if line.held_out else float("-inf")),
        -(line.search.value if line.search else float("-inf")),
    )
