"""The leaderboard: sources, baselines and the best trials, on search and on held-out items. Derived from the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from evomerge.baselines.ablation import WITHOUT_ONE, weighed_sources
from evomerge.baselines.freshness import current_baselines, left_out
from evomerge.baselines.info import BASELINES
from evomerge.baselines.search_cost import search_cost
from evomerge.jobs import Cost
from evomerge.messages import marked
from evomerge.sanity.probe_records import read_sanity
from evomerge.search.origins import origin_of
from evomerge.search.stages import MEAN
from evomerge.storage import attributes
from evomerge.study.ledger import ledger_of
from evomerge.study.row_failures import read_failures, read_left_out
from evomerge.study.rows import Record, read_record, read_records
from evomerge.study.snapshot import snapshot_of
from evomerge.study.stored_search import StoredSearch
from evomerge.study.trials import best_trials, is_feasible, total_cost
from evomerge.verdict import read_winner
from evomerge.verdict.records import read_verdict

__all__ = ["Line", "PartScore", "leaderboard", "leaderboard_document"]

SCHEMA = 1
SHOWN = 5  # trials, while nothing has been scored on the held-out items


@dataclass(frozen=True)
class PartScore:
    """Result of a row on one part of the items: the objective and the tasks, each with its standard error."""

    value: float
    stderr: float | None
    tasks: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the leaderboard.

    Attributes:
        kind: source, baseline, best (the winner), trial, or mean (of the sampler's distribution).
        seconds: of scoring it once, merge included.
        cost: of choosing it: of a baseline its steps and training, of the winner and what is made from it the whole
            search with the baselines that it needed before the first trial. None for rows that were not chosen.
        forwards: cost of coming by it in forward passes of one item, see `Cost.forwards`: as `cost`, the whole search
            also for other trials and the mean, and nothing for a source. None while no item has been scored.
        losses: of a trained baseline: source -> [loss before, loss at the end].
        command: reproduces the held-out scores (search scores where nothing was held out yet), None where the
            evaluator is not lm-eval, or no command can.
        no_command: why no command can, None where one can or the evaluator is not lm-eval.
        front: no other trial of a search with several objectives is as good on every task and better on one.
        betters: of the front: the baselines that it is as good as on every task of the search items, and better on one.
        models: of a row that is several models: the summary of its `RecipeSet`. Empty for one model.
        prepare: makes the model directory that `command` reads, None where it is there already.
        layers: of a path of layers their number; None where it is that of the sources.
        corner: of a trial in a space of other merges: the one that it grew from; is_corner: it is that one itself.
        control: a baseline that cannot know what the experts learned.
        without: of the winner without one expert: that expert.
    """

    label: str
    kind: str
    trial: int | None
    recipe: str
    search: PartScore | None
    held_out: PartScore | None
    seconds: float | None
    cost: Cost | None = None
    forwards: float | None = None
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    command: str | None = None
    no_command: str | None = None
    prepare: str | None = None
    front: bool = False
    betters: tuple[str, ...] = ()
    models: Mapping[str, Any] = field(default_factory=dict)
    layers: int | None = None
    corner: str | None = None
    is_corner: bool = False
    control: bool = False
    without: str | None = None

    @property
    def name(self) -> str:
        """The label, with a mark where the row is not one model, or a control."""
        return marked(self.label, len(self.models["recipes"]) if self.models else 1, control=self.control)


def leaderboard(stored: StoredSearch, top: int = SHOWN) -> list[Line]:
    """Sources, baselines, the best trials and the sampler's mean; sorted by held-out, then search value."""
    winner = read_winner(stored.study.user_attrs)
    held_out = {(row.label, row.digest): row for row in _rows(stored.held_out)}
    baselines = _baselines(stored, held_out)
    lines = [*_sources(stored, held_out), *baselines]
    whole = search_cost(stored.spec, ledger_of(stored.study), _rows(stored.baselines))
    scoring = _scoring_cost(stored)
    front = {trial.number: trial for trial in pareto_front(stored.study)}
    for trial in ({trial.number: trial for trial in best_trials(stored.study, top)} | front).values():
        row = read_record(trial)
        best = winner is not None and trial.number == winner.trial
        line = _line(row, held_out, kind="best" if best else "trial", trial=trial.number, cost=whole if best else None)
        if (origin := origin_of(stored.spec, stored.study, trial.number)) is not None:
            line = replace(line, corner=origin.label, is_corner=origin.is_corner)
        if trial.number in front:
            line = replace(line, front=True, betters=tuple(each.label for each in baselines if _betters(line, each)))
        lines.append(line)
    means = [row for row in held_out.values() if row.label == MEAN]
    if means:  # the latest one: the mean moves during the search
        lines.append(_mean_line(means[-1]))
    return sorted((replace(line, forwards=_spent(line, whole).forwards(scoring)) for line in lines), key=_rank)


def leader_of(stored: StoredSearch, lines: Sequence[Line]) -> Line | None:
    """The winner; before there is one, the trial that the search ranks first: those that meet all constraints lead."""
    trials = [line for line in lines if line.kind in ("best", "trial") and line.search is not None]
    if winner := next((line for line in trials if line.kind == "best"), None):
        return winner
    ranks = {trial.number: rank for rank, trial in enumerate(best_trials(stored.study, len(lines)))}
    return min(trials, key=lambda line: ranks.get(line.trial or 0, len(ranks)), default=None)


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


def _spent(line: Line, whole: Cost) -> Cost:
    """The cost of coming by a row, in a search that took `whole`."""
    if line.kind == "source":
        return Cost()
    return whole if line.cost is None else line.cost


def _scoring_cost(stored: StoredSearch) -> Cost:
    """The cost of scoring items of the search: of all trials, or of the sources while there is none."""
    trials = total_cost(stored.study.get_trials(deepcopy=False))
    if trials.items:
        return trials
    sources = {source.name for source in stored.spec.sources}
    return sum((row.cost for row in _rows(stored.baselines) if row.label in sources), Cost())


def leaderboard_document(stored: StoredSearch, lines: Sequence[Line]) -> dict[str, Any]:
    """The JSON document of `evomerge leaderboard --json`."""
    winner = read_winner(stored.study.user_attrs)
    verdict = read_verdict(stored.study)
    return {
        "schema": SCHEMA,
        "study": stored.study.study_name,
        "winner": asdict(winner) if winner else None,
        "sanity": _sanity(stored, winner.digest, winner.label) if winner else None,
        "meets_constraints": meets_constraints(stored.study, winner.trial) if winner else None,
        "held_out_looks": len(stored.study.user_attrs.get(attributes.LOOKS, [])),
        "rows": [asdict(line) for line in lines],
        "verdict": verdict.to_document() if verdict else None,
        "left_out": left_out_of(stored, lines),
    }


def _sanity(stored: StoredSearch, digest: str, label: str) -> dict[str, Any] | None:
    """The sanity probe of the winner as JSON; None where it was not probed."""
    records = read_sanity(stored.study)
    judgement = records.judged(digest)
    if judgement is None:
        return {"says": records.says(digest, label)} if records.reason else None
    return {"says": records.says(digest, label), **judgement.to_document(), "probes": records.to_document()}


def meets_constraints(study: optuna.Study, number: int) -> bool:
    """Whether a trial meets all constraints."""
    return is_feasible(study.get_trials(deepcopy=False)[number])


def _rows(study: optuna.Study | None) -> list[Record]:
    return read_records(study) if study is not None else []


_HeldOut = Mapping[tuple[str, str], Record]


def _sources(stored: StoredSearch, held_out: _HeldOut) -> list[Line]:
    latest = {row.label: row for row in _rows(stored.baselines)}
    names = [source.name for source in stored.spec.sources if source.name in latest]
    return [_line(latest[name], held_out, kind="source") for name in names]


def _baselines(stored: StoredSearch, held_out: _HeldOut) -> list[Line]:
    rows = current_baselines(_rows(stored.baselines), stored.spec, snapshot_of(stored.study))
    lines = [_line(row, held_out, kind="baseline", cost=row.cost) for row in rows]
    return [replace(line, without=_left_out(row)) for line, row in zip(lines, rows, strict=True)]


def _left_out(row: Record) -> str | None:
    """The expert that a row leaves out of the winner, where that is what it does."""
    if row.label != WITHOUT_ONE:
        return None
    recipe = row.recipe
    kept = set(weighed_sources(recipe))
    return ", ".join(ref.name for ref in recipe.sources if ref.name not in {*kept, recipe.base.name})


def _line(row: Record, held_out: _HeldOut, *, kind: str, trial: int | None = None, cost: Cost | None = None) -> Line:
    return Line(
        label=row.label,
        kind=kind,
        trial=trial,
        recipe=row.digest,
        search=_part(row),
        held_out=_part(held_out.get((row.label, row.digest))),
        seconds=row.seconds.get("total"),
        cost=cost,
        losses=row.losses,
        models=row.models,
        layers=row.trial.user_attrs.get(attributes.LAYERS),
        control=kind == "baseline" and BASELINES[row.label].control,
    )


def _mean_line(row: Record) -> Line:
    """The line of the sampler's mean, which was scored on held-out items only."""
    return Line(
        label=MEAN,
        kind="mean",
        trial=None,
        recipe=row.digest,
        search=None,
        held_out=_part(row),
        seconds=None,
        layers=row.trial.user_attrs.get(attributes.LAYERS),
    )


def left_out_of(stored: StoredSearch, lines: Sequence[Line]) -> dict[str, str]:
    """Label -> reason why a baseline could not be built, or a row could not be scored on the held-out items."""
    failures = read_failures(stored.baselines) if stored.baselines is not None else {}
    found = left_out(failures, stored.spec, snapshot_of(stored.study))
    unscored = read_left_out(stored.held_out) if stored.held_out is not None else {}
    shown = {(line.label, line.recipe) for line in lines}
    if all(line.kind != "mean" for line in lines):
        shown |= {place for place in unscored if place[0] == MEAN}
    return found | {
        label: f"on the held-out items, {each.reason}"
        for (label, recipe), each in unscored.items()
        if (label, recipe) in shown
    }


def _part(row: Record | None) -> PartScore | None:
    return None if row is None else PartScore(row.value, row.stderr, row.tasks)


def _rank(line: Line) -> tuple[float, float]:
    return (
        -(line.held_out.value if line.held_out else float("-inf")),
        -(line.search.value if line.search else float("-inf")),
    )
