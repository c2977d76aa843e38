"""The course of a search: the value of each trial over what had been spent by then, and the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from optuna.trial import FrozenTrial, TrialState

from evomerge.baselines.freshness import current_baselines
from evomerge.baselines.search_cost import cost_before
from evomerge.jobs import Cost
from evomerge.messages import marked
from evomerge.storage import attributes
from evomerge.study.ledger import ledger_of
from evomerge.study.rows import Record, read_records
from evomerge.study.snapshot import snapshot_of
from evomerge.study.stored_search import StoredSearch
from evomerge.study.trials import FINISHED, is_counted, is_feasible, read_cost, total_cost, value_of

LEVELS = 3  # baselines that a chart has room for
SHOWN = 800  # trials that a chart has room for

_Point = TypeVar("_Point")


@dataclass(frozen=True, kw_only=True)
class CoursePoint:
    """A complete trial.

    Attributes:
        spent: by the search when it had been told, what it needed before its first trial included, in the unit of the
            course.
    """

    trial: int
    spent: float
    value: float


@dataclass(frozen=True)
class Level:
    """The value of a source or a baseline on the search items."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class SearchCourse:
    """The course of a search on its own items.

    Attributes:
        unit: of what was spent: "forwards" (passes of one item), or "trials" where no item was scored.
        points: the complete trials in the order in which they ended.
        best: of these, each that was better than all before it; of those that meet all constraints, where any does.
        levels: the best source, and the best baselines.
        dropped, failed: number of trials without a value on all items.
        spent: by all trials, which is more than at the last point where later ones were dropped.
    """

    unit: str
    points: tuple[CoursePoint, ...]
    best: tuple[CoursePoint, ...]
    levels: tuple[Level, ...]
    dropped: int
    failed: int
    spent: float


def search_course(stored: StoredSearch) -> SearchCourse:
    """The course of a search as its study tells it."""
    trials = sorted(stored.study.get_trials(deepcopy=False, states=FINISHED), key=_order)
    counted = [trial for trial in trials if is_counted(trial)]
    rows = [] if stored.baselines is None else read_records(stored.baselines)
    ledger = ledger_of(stored.study)
    spent = _spent(counted, ledger.trials, cost_before(stored.spec, ledger, rows))
    points = [
        CoursePoint(trial=trial.number, spent=by_then, value=value)
        for trial, by_then in zip(counted, spent, strict=True)
        if trial.state is TrialState.COMPLETE and (value := value_of(trial)) is not None
    ]
    meeting = {trial.number for trial in counted if is_feasible(trial)}
    best: list[CoursePoint] = []
    for point in [each for each in points if each.trial in meeting] or points:
        if not best or point.value > best[-1].value:
            best.append(point)
    return SearchCourse(
        unit="forwards" if _scored(counted) else "trials",
        points=tuple(points),
        best=tuple(best),
        levels=tuple(_levels(stored, rows)),
        dropped=sum(trial.state is TrialState.PRUNED for trial in counted),
        failed=sum(trial.state is TrialState.FAIL for trial in counted),
        spent=spent[-1] if spent else 0.0,
    )


def thinned(points: Sequence[_Point], shown: int = SHOWN) -> Sequence[_Point]:
    """So many of the points that a chart has room for, evenly, the last one among them."""
    step = math.ceil(len(points) / shown) if points else 1
    return points[(len(points) - 1) % step :: step] if points else points


def _order(trial: FrozenTrial) -> tuple[datetime, float, int]:
    """When a trial ended: failed ones are not told, and have cost something all the same."""
    return trial.datetime_complete or datetime.max, trial.user_attrs.get(attributes.TELL, math.inf), trial.number


def _scored(trials: Sequence[FrozenTrial]) -> bool:
    return total_cost(trials).items > 0


def _spent(trials: Sequence[FrozenTrial], scoring: Cost, before: Cost) -> list[float]:
    """The cost of all trials up to the end of each."""
    found, spent = [], before
    for place, trial in enumerate(trials, start=1):
        spent += read_cost(trial)
        forwards = spent.forwards(scoring)
        found.append(float(place) if forwards is None else forwards)
    return found


def _levels(stored: StoredSearch, rows: Sequence[Record]) -> list[Level]:
    names = {source.name for source in stored.spec.sources}
    sources = {row.label: row for row in rows if row.label in names}
    baselines = current_baselines(rows, stored.spec, snapshot_of(stored.study))
    chosen = [*_best(sources.values(), 1), *_best(baselines, LEVELS)]
    return [Level(marked(row.label, row.model_count), row.value) for row in chosen]


def _best(rows: Iterable[Record], count: int) -> list[Record]:
    return sorted((row for row in rows if math.isfinite(row.value)), key=lambda row: -row.value)[:count]
