"""The leaderboard: sources, baselines and the best trials, on search and on held-out items. Derived from the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
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


def leaderboard_table(stored: StoredSearch, lines: Sequence[Line]) -> Table:
    """The leaderboard for a terminal: the objective on both parts, then every task on the held-out items."""
    table = Table(title=f"{stored.study.study_name}: leaderboard", title_justify="left", header_style="bold")
    tasks = list(next((part.tasks for line in lines for part in (line.held_out, line.search) if part), {}))
    held_out = any(line.held_out for line in lines)
    table.add_column("model")
    table.add_column("search", justify="right")
    table.add_column("held-out", justify="right")
    for task in tasks:
        table.add_column(task, justify="right")
    for line in lines:
        shown = line.held_out if held_out else line.search
        name = f"best found (trial {line.trial})" if line.kind == "best" else line.label
        style = "bold green" if line.kind == "best" else "dim" if line.kind == "trial" else ""
        cells = [_number(line.search), _number(line.held_out), *(_task(shown, task) for task in tasks)]
        table.add_row(Text(name), *cells, style=style)
    metrics = {
        str(content["metric"]) for line in lines for part in (line.search,) if part for content in part.tasks.values()
    }
    part = "held-out" if held_out else "search"
    table.caption = f"objective ± standard error; tasks ({', '.join(sorted(metrics))}) on the {part} items"
    table.caption_justify = "left"
    return table


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


def _number(part: Part | None) -> str:
    if part is None:
        return "–"
    return f"{part.value:.3f}" + (f" ± {part.stderr:.3f}" if part.stderr is not None else "")


def _task(part: Part | None, task: str) -> str:
    return f"{part.tasks[task]['value']:.3f}" if part is not None and task in part.tasks else "–"
