"""The leaderboard: sources, baselines and the best trials, on search and on held-out items. Derived from the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.baselines import current_baselines, left_out
from evomerge.jobs import Cost
from evomerge.messages import duration, in_bytes, in_thousands
from evomerge.search.run import MEAN
from evomerge.storage import attributes
from evomerge.study.command_line import command_line
from evomerge.study.records import Record, read_failures, read_record, read_records
from evomerge.study.standing import standing_of
from evomerge.study.stored_search import StoredSearch
from evomerge.study.trials import best_trials, is_feasible, read_cost
from evomerge.verdict import Verdict, read_winner
from evomerge.verdict.stored import read_verdict

SCHEMA = 1
SHOWN = 5  # trials, while nothing has been scored on the held-out items
FRONT_SHOWN = 20


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
        kind: source, baseline, best (the winner), trial, or mean (of the sampler's distribution).
        seconds: what scoring it once cost, merge included.
        cost: what it took to choose it: of a baseline its steps and training, of the winner the whole search. None for
            rows that nobody chose.
        losses: of a trained baseline: source -> [loss of the uniform soup, loss at the end].
        command: reproduces the held-out scores (search scores where nothing was held out yet), None where the
            evaluator is not lm-eval.
        front: no other trial of a search with several objectives is as good on every task and better on one.
        betters: of the front: the baselines that it is as good as on every task of the search items, and better on one.
        prepare: makes the model directory that `command` reads, None where it is there already.
    """

    label: str
    kind: str
    trial: int | None
    recipe: str
    search: Part | None
    held_out: Part | None
    seconds: float | None
    cost: Cost | None = None
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    command: str | None = None
    prepare: str | None = None
    front: bool = False
    betters: tuple[str, ...] = ()


def leaderboard(stored: StoredSearch, top: int = SHOWN) -> list[Line]:
    """Sources, baselines, the best trials and the sampler's mean; sorted by held-out, then search value."""
    winner = read_winner(stored.study.user_attrs)
    held_out = {(row.label, row.digest): row for row in _rows(stored.held_out)}
    baselines = _baselines(stored, held_out)
    lines = [*_sources(stored, held_out), *baselines]
    front = {trial.number: trial for trial in pareto_front(stored.study)}
    for trial in ({trial.number: trial for trial in best_trials(stored.study, top)} | front).values():
        row = read_record(trial)
        label = f"trial {trial.number}"
        best = winner is not None and trial.number == winner.trial
        cost = search_cost(stored.study) if best else None
        line = _line(label, "best" if best else "trial", trial.number, row, held_out, cost)
        if trial.number in front:
            line = replace(line, front=True, betters=tuple(each.label for each in baselines if _betters(line, each)))
        lines.append(line)
    means = [row for row in held_out.values() if row.label == MEAN]
    if means:  # the latest one: the mean moves while the search goes on
        lines.append(Line(MEAN, "mean", None, means[-1].digest, None, _part(means[-1]), None))
    return sorted(lines, key=_rank)


def _betters(one: Line, other: Line) -> bool:
    """Whether it dominates the other on the search items."""
    if one.search is None or other.search is None:
        return False
    gains = [
        (score["value"] - other.search.tasks[task]["value"]) * (1 if score["higher_is_better"] else -1)
        for task, score in one.search.tasks.items()
    ]
    return bool(min(gains) >= 0 and max(gains) > 0)


def pareto_front(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that no other one dominates, those that meet all constraints where any does; none with one
    objective."""
    if len(study.directions) < 2:
        return []
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in complete if is_feasible(trial)] or complete
    values = np.array([trial.values for trial in trials]).reshape(len(trials), -1)
    return [
        trial
        for trial, mine in zip(trials, values, strict=True)
        if not ((values >= mine).all(axis=1) & (values > mine).any(axis=1)).any()
    ]


def search_cost(study: optuna.Study) -> Cost:
    """What all trials of a search took together."""
    return sum(map(read_cost, study.get_trials(deepcopy=False)), Cost())


def leaderboard_document(stored: StoredSearch, lines: Sequence[Line]) -> dict[str, Any]:
    """What `evomerge leaderboard --json` prints."""
    winner = read_winner(stored.study.user_attrs)
    verdict = read_verdict(stored.study)
    return {
        "schema": SCHEMA,
        "study": stored.study.study_name,
        "winner": asdict(winner) if winner else None,
        "meets_constraints": _meets_constraints(stored.study, winner.trial) if winner else None,
        "held_out_looks": len(stored.study.user_attrs.get(attributes.LOOKS, [])),
        "rows": [asdict(line) for line in lines],
        "verdict": verdict.to_document() if verdict else None,
        "left_out": _left_out(stored),
    }


def leaderboard_tables(stored: StoredSearch, lines: Sequence[Line]) -> Group:
    """The leaderboard for a terminal: objective, tasks, cost, and the verdict."""
    verdict = read_verdict(stored.study)
    shown = _not_only_of_the_front(lines)
    tables: list[RenderableType] = [_summary(stored, shown), _detail(shown), *_front(lines), _costs(shown)]
    for name, reason in _left_out(stored).items():
        tables.append(Text(f"{name} is left out: {reason}\n", style="yellow"))
    winner = read_winner(stored.study.user_attrs)
    if winner is not None and not _meets_constraints(stored.study, winner.trial):
        tables.append(Text("No trial meets all constraints; the best one misses some, too.\n", style="yellow"))
    if verdict is not None:
        tables += [_comparisons(verdict), Text(verdict.sentence, style="bold"), Text()]
    if verdict is not None and winner is not None and winner.trial != verdict.trial:
        renewal = command_line(stored.spec, "run")
        tables.append(Text(f"This verdict is on an earlier winner; `{renewal}` renews it.\n", style="yellow"))
    return Group(*tables)


def _meets_constraints(study: optuna.Study, number: int) -> bool:
    return is_feasible(study.get_trials(deepcopy=False)[number])


_STYLES = {"best": "bold green", "trial": "dim", "mean": "dim", "source": "", "baseline": ""}


def _summary(stored: StoredSearch, lines: Sequence[Line]) -> Table:
    table = _table(f"{stored.study.study_name}: objective", ("search", "±", "held-out", "±", "s / candidate"))
    for line in lines:
        seconds = f"{line.seconds:.1f}" if line.seconds else "–"
        table.add_row(_name(line), *_cells(line.search), *_cells(line.held_out), seconds, style=_STYLES[line.kind])
    return table


def _not_only_of_the_front(lines: Sequence[Line]) -> list[Line]:
    """Without the trials that are there for the front alone, which may be hundreds and have a table of their own."""
    unproven = [line for line in lines if line.kind == "trial" and line.front and not line.held_out]
    hidden = {line.trial for line in unproven[0 if any(line.held_out for line in lines) else SHOWN :]}
    return [line for line in lines if line.trial not in hidden]


def _front(lines: Sequence[Line]) -> list[Table]:
    """The Pareto front, on the items that it was found on; nothing with one objective.

    First what betters baselines that few others better, so that the table has a point for each of them.
    """
    found = [line for line in lines if line.front]
    if not found:
        return []
    share = {name: 1 / count for name, count in Counter(name for line in found for name in line.betters).items()}
    front = sorted(found, key=lambda line: (-sum(share[name] for name in line.betters), line.trial or 0))
    tasks = list(front[0].search.tasks) if front[0].search else []
    title = "Pareto front, on the search items: none of these is beaten on every task"
    table = _table(title, _short(tasks))
    table.add_column("as good on every task as", overflow="fold")
    for line in front[:FRONT_SHOWN]:
        if line.search:
            scores = (_number(line.search.tasks[task]["value"]) for task in tasks)
            table.add_row(line.label, *scores, ", ".join(line.betters) or "–", style=_STYLES[line.kind])
    if len(front) > FRONT_SHOWN:
        table.caption = f"and {len(front) - FRONT_SHOWN} more; --json has all of them"
    return [table]


def _detail(lines: Sequence[Line]) -> Table:
    held_out = any(line.held_out for line in lines)
    tasks = list(next((part.tasks for line in lines for part in (line.held_out, line.search) if part), {}))
    table = _table(f"every task, on the {'held-out' if held_out else 'search'} items", _short(tasks))
    for line in lines:
        part = line.held_out if held_out else line.search
        if part is not None:
            scores = (_number(part.tasks[task]["value"]) for task in tasks)
            table.add_row(_name(line), *scores, style=_STYLES[line.kind])
    return table


def _costs(lines: Sequence[Line]) -> Table:
    columns = ("merges", "tokens", "trained", "time", "GPU", "memory")
    table = _table("what it took to choose it", columns)
    for line in lines:
        if line.cost is not None:
            table.add_row(_name(line), *_cost_cells(line.cost), style=_STYLES[line.kind])
    return table


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    nothing = cost == Cost()
    return (
        f"{cost.candidates:,}",
        in_thousands(cost.forward_tokens),
        in_thousands(cost.gradient_tokens),
        "–" if nothing else duration(cost.seconds),
        duration(cost.gpu_seconds) if cost.gpu_seconds else "–",
        in_bytes(cost.peak_bytes) if cost.peak_bytes else "–",
    )


def _comparisons(verdict: Verdict) -> Table:
    table = _table(
        f"{verdict.winner} against the others, on {verdict.items:,} held-out items",
        ("difference", "95 % interval", "p (Holm)", ""),
    )
    scale = 1 if verdict.unit == "plain" else 100
    for each in verdict.comparisons:
        ends = [f"{end * scale:+.1f}" for end in (each.low, each.high) if end is not None]
        interval = " … ".join(ends) or "–"
        said = "is beaten" if each.worse else each.outcome
        table.add_row(each.baseline, f"{each.difference * scale:+.1f}", interval, _p(each.adjusted_p), said)
    return table


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


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


_HeldOut = Mapping[tuple[str, str], Record]


def _sources(stored: StoredSearch, held_out: _HeldOut) -> list[Line]:
    latest = {row.label: row for row in _rows(stored.baselines)}
    names = [source.name for source in stored.spec.sources if source.name in latest]
    return [_line(name, "source", None, latest[name], held_out, None) for name in names]


def _baselines(stored: StoredSearch, held_out: _HeldOut) -> list[Line]:
    rows = current_baselines(_rows(stored.baselines), stored.spec, standing_of(stored.study))
    return [_line(row.label, "baseline", None, row, held_out, row.cost) for row in rows]


def _line(label: str, kind: str, trial: int | None, search: Record, held_out: _HeldOut, cost: Cost | None) -> Line:
    seconds = search.seconds.get("total")
    other = held_out.get((label, search.digest))
    return Line(label, kind, trial, search.digest, _part(search), _part(other), seconds, cost, search.losses)


def _left_out(stored: StoredSearch) -> dict[str, str]:
    failures = read_failures(stored.baselines) if stored.baselines is not None else {}
    return left_out(failures, stored.spec, standing_of(stored.study))


def _part(row: Record | None) -> Part | None:
    return None if row is None else Part(row.value, row.stderr, row.tasks)


def _rank(line: Line) -> tuple[float, float]:
    return (
        -(line.held_out.value if line.held_out else float("-inf")),
        -(line.search.value if line.search else float("-inf")),
    )
