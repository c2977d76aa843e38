"""What the search is compared with: recipes that cost no search, scored through the same loop on the same items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evomerge.catalogue import TensorCatalogue
from evomerge.cluster import Executor
from evomerge.controller import Stop, run_all
from evomerge.errors import StoppedByFailures
from evomerge.evaluation.evaluator import ItemBlock, Scores
from evomerge.objective import Objective
from evomerge.recipe import ModelRef, Recipe, Rule, single_source
from evomerge.study.records import Records
from evomerge.worker import Failed, Outcome, Score, Scored, TensorDigests

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard that is to be scored. Without `required` ones there is no search to compare."""

    label: str
    recipe: Recipe
    required: bool = False
    digests: bool = False


def source_rows(base: ModelRef, experts: Sequence[ModelRef], catalogue: TensorCatalogue, dtype: str) -> list[Row]:
    """Base and experts as they stand, in the scoring dtype."""
    names = tuple(entry.name for entry in catalogue.mergeable)
    return [Row(ref.name, single_source(base, ref, names, dtype), required=True) for ref in (base, *experts)]


def baseline_rows(
    names: Sequence[str], base: ModelRef, experts: Sequence[ModelRef], catalogue: TensorCatalogue, dtype: str
) -> list[Row]:
    """The merges that need no search, by name."""
    makers: dict[str, Callable[[], Recipe]] = {"uniform-soup": lambda: uniform_soup(base, experts, catalogue, dtype)}
    return [Row(name, makers[name]()) for name in names]


def uniform_soup(base: ModelRef, experts: Sequence[ModelRef], catalogue: TensorCatalogue, dtype: str) -> Recipe:
    """The plain average of the experts (Wortsman et al. 2022, arXiv 2203.05482)."""
    tensors = tuple(entry.name for entry in catalogue.mergeable)
    rule = Rule(
        tensors, "linear", tuple(ref.name for ref in experts), {"weight": (1.0,) * len(experts)}, {"normalize": True}
    )
    return Recipe(base=base, sources=tuple(experts), rules=(rule,), dtype=dtype)


@dataclass(frozen=True)
class RowResult:
    """The scores of a row; with the outcome where they are new."""

    row: Row
    scores: Scores
    outcome: Outcome | None = None

    @property
    def digests(self) -> TensorDigests | None:
        """Of the weights that were scored just now, if the row asked for them."""
        result = self.outcome.result if self.outcome is not None else None
        return result.digests if isinstance(result, Scored) else None


def score_rows(
    rows: Sequence[Row],
    block: ItemBlock,
    records: Records,
    executor: Executor,
    stop: Stop,
    batch_size: int | None,
    on_scored: Callable[[RowResult], None] = lambda result: None,
) -> dict[str, RowResult]:
    """The scores of all rows by label. Only what is not in the sibling study, or has lost its items, is scored.

    Args:
        on_scored: is given each new result as it comes, to store it before the next one.

    Raises:
        StoppedByFailures: a required row, such as a source, cannot be scored.
        Interrupted: a signal asked for a stop.
    """
    results = {row.label: result for row in rows if (result := _stored(row, records)) is not None}
    jobs = {f"{records.study.study_name}/{row.label}": row for row in rows if row.label not in results}
    scores = [Score(key, row.recipe, block, digests=row.digests, batch_size=batch_size) for key, row in jobs.items()]
    for job, outcome in run_all(executor, stop, scores):
        row = jobs[job.key]
        if isinstance(outcome.result, Scored):
            results[row.label] = RowResult(row, outcome.result.scores, outcome)
            on_scored(results[row.label])
        elif row.required:
            reason = outcome.result.reason if isinstance(outcome.result, Failed) else "it gave no score"
            raise StoppedByFailures(f"{row.label!r} cannot be scored: {reason}")
        else:
            _log.warning("%s cannot be scored and is left out: %s", row.label, outcome.result)
    return {row.label: results[row.label] for row in rows if row.label in results}


def record_row(result: RowResult, records: Records, objective: Objective) -> None:
    """Store a row that is new. One whose items were lost was scored again, and takes the place of its former self."""
    if result.outcome is not None:
        value, stderr = objective.value(result.scores), objective.stderr(result.scores)
        records.add(result.row.label, result.row.recipe, result.outcome, value, stderr)


def _stored(row: Row, records: Records) -> RowResult | None:
    record = records.find(row.label, row.recipe)
    scores = records.scores(record) if record is not None else None
    return RowResult(row, scores) if scores is not None else None
