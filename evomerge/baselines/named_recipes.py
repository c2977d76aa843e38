"""Named recipes: rows of the leaderboard to be scored on a part of the items and stored in a sibling study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.catalogue import TensorCatalogue
from evomerge.cluster import Executor
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost, Failed, Outcome, Score, Scored, TensorDigests
from evomerge.loop.dispatcher import reason_of, refuse_invalid, run_all
from evomerge.loop.stop import Stop
from evomerge.objective import Collapsed, Objective, collapsed
from evomerge.packs.items import ItemBlock
from evomerge.recipe import ModelRef, Recipe, single_source
from evomerge.study.row_failures import read_left_out
from evomerge.study.rows import NewRow, Records

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NamedRecipe:
    """A row of the leaderboard that is to be scored.

    Attributes:
        label: of the row, e.g. "ties" or "trial 17".
        params: of the trial of the search that it is, for evaluators that need no model.
        required: the search stops if it cannot be scored.
        is_source: it is given by the user, who alone can mend it.
        digests: ask the worker for digests of the merged weights.
        keep_recipe: store the recipe with the scores, since nothing else in the study has it.
    """

    label: str
    recipe: Recipe
    params: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    is_source: bool = False
    digests: bool = False
    keep_recipe: bool = False


def source_rows(
    base: ModelRef, experts: Sequence[ModelRef], catalogue: TensorCatalogue, dtype: str
) -> list[NamedRecipe]:
    """Base and experts as they stand, in the scoring dtype."""
    names = tuple(entry.name for entry in catalogue.mergeable)
    return [
        NamedRecipe(label=ref.name, recipe=single_source(base, ref, names, dtype), required=True, is_source=True)
        for ref in (base, *experts)
    ]


@dataclass(frozen=True, kw_only=True)
class NamedResult:
    """Scores of a row; with the outcome if they are new. `cost` and `seconds` are those of scoring it once."""

    row: NamedRecipe
    scores: Scores
    outcome: Outcome | None = None
    cost: Cost = field(default_factory=Cost)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def digests(self) -> TensorDigests | None:
        """Of the weights that were scored just now, if the row asked for them."""
        result = self.outcome.result if self.outcome is not None else None
        return result.digests if isinstance(result, Scored) else None


def score_rows(
    rows: Sequence[NamedRecipe],
    block: ItemBlock,
    *,
    records: Records,
    executor: Executor,
    stop: Stop,
    batch_size: int | None,
    objective: Objective | None = None,
    on_scored: Callable[[NamedResult], None] = lambda result: None,
    again: Collection[str] = (),
    retried: Collection[str] = (),
) -> dict[str, NamedResult]:
    """Score rows, by label. Only rows that the sibling study does not have, or whose items were lost, are scored.

    A row that is not required is left out where it cannot be scored, or where its scores are not finite. The reason is
    stored, and it is tried again only where the machine was at fault.

    Args:
        objective: of the search, which has to be finite; None before it is known: each score has to be.
        on_scored: receives each new result as it comes, to store it before the next one.
        again: labels of rows that are scored although they are stored.
        retried: labels of rows that are scored although the reason why they cannot be is stored; with their models.

    Raises:
        InvalidInput: a required row cannot be scored because of the user's input, or a source has no finite scores.
        StoppedByFailures: a required row cannot be scored for another reason.
        Interrupted: a signal asked for a stop.
    """
    stored = {row.label: stored_row(row, records) for row in rows if row.label not in again}
    results = {label: result for label, result in stored.items() if result is not None}
    failed = {place for place, failure in read_left_out(records.study).items() if not failure.by_machine}
    hopeless = {
        row.label
        for row in rows
        if not row.required and (row.label, row.recipe.digest) in failed and row.label.partition("/")[0] not in retried
    }
    wanted = [row for row in rows if row.label not in results and row.label not in hopeless]
    jobs = {job_key(row, records): row for row in wanted}
    scores = [
        Score(key=key, recipe=row.recipe, items=block, params=row.params, digests=row.digests, batch_size=batch_size)
        for key, row in jobs.items()
    ]
    for job, outcome in run_all(executor, stop, scores):
        row, scored = jobs[job.key], outcome.result
        collapse = _collapse(scored.scores, objective) if isinstance(scored, Scored) else None
        if isinstance(scored, Scored) and collapse is None:
            results[row.label] = new_result(row, scored.scores, outcome)
            on_scored(results[row.label])
            continue
        reason = reason_of(outcome) if collapse is None else collapse.reason
        if row.required:
            refuse_invalid(outcome)
            if row.is_source and collapse is not None:
                raise unfit_source(row.label, collapse, block)
            raise StoppedByFailures(f"{row.label!r} cannot be scored on the {_items(block)} items: {reason}")
        by_machine = isinstance(scored, Failed) and scored.by_machine
        records.leave_out(row.label, row.recipe.digest, reason, by_machine=by_machine)
        records.discard_checkpoints(outcome)
        _log.warning("%s cannot be scored and is left out: %s", row.label, reason)
    return {row.label: results[row.label] for row in rows if row.label in results}


def unfit_source(name: str, collapse: Collapsed, block: ItemBlock) -> InvalidInput:
    """The error for a source that nothing can be compared with."""
    return InvalidInput(
        f"source {name!r} has no finite score on the {_items(block)} items: {collapse.reason}; mend its weights or "
        "that task, or leave one of them out"
    )


def _collapse(scores: Scores, objective: Objective | None) -> Collapsed | None:
    """The reason why a row has no place on the leaderboard: a number that is not finite."""
    if objective is None:
        return collapsed(scores)
    assessed = objective.assess(scores)
    return assessed if isinstance(assessed, Collapsed) else None


def _items(block: ItemBlock) -> str:
    return block.part.replace("_", "-")


def new_result(row: NamedRecipe, scores: Scores, outcome: Outcome) -> NamedResult:
    """The result of a row that a worker has just scored."""
    return NamedResult(row=row, scores=scores, outcome=outcome, cost=outcome.cost, seconds=outcome.seconds)


def record_row(result: NamedResult, records: Records, objective: Objective) -> None:
    """Store a row that is new. One whose items were lost was scored again, and takes the place of its former self."""
    if result.outcome is not None:
        records.add(new_row(result, objective))
        records.discard_checkpoints(result.outcome)


def new_row(result: NamedResult, objective: Objective) -> NewRow:
    """A row in the form that the sibling studies store."""
    return NewRow(
        label=result.row.label,
        recipe=result.row.recipe,
        scores=result.scores,
        value=objective.value(result.scores),
        stderr=objective.stderr(result.scores),
        companion=objective.companion(result.scores),
        seconds=result.seconds,
        cost=result.cost,
        keep_recipe=result.row.keep_recipe,
    )


def stored_row(row: NamedRecipe, records: Records) -> NamedResult | None:
    """The stored result of a row; None if it was not scored before, or the outcomes of its items are lost."""
    record = records.find(row.label, row.recipe)
    scores = records.scores(record) if record is not None else None
    if record is None or scores is None:
        return None
    return NamedResult(row=row, scores=scores, cost=record.cost, seconds=record.seconds)


def job_key(row: NamedRecipe, records: Records) -> str:
    """The key of the job that scores a row, e.g. "toy/held-out/ties"."""
    return f"{records.study.study_name}/{row.label}"
