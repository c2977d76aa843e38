"""Rows with a score on both parts of the items: how far search scores hold on items that the search never saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from evomerge.baselines.freshness import current_baselines
from evomerge.messages import marked
from evomerge.study.rows import Record, read_record, read_records
from evomerge.study.snapshot import snapshot_of
from evomerge.study.stored_search import StoredSearch
from evomerge.study.trials import FINISHED
from evomerge.verdict.records import read_winner

Kind = Literal["source", "baseline", "trial", "best"]


@dataclass(frozen=True, kw_only=True)
class BothParts:
    """A row's objective on the search items and on the held-out items, with standard errors where they are known."""

    name: str
    kind: Kind
    search: float
    search_stderr: float | None
    held_out: float
    held_out_stderr: float | None

    @property
    def gap(self) -> float:
        """Search − held-out."""
        return self.search - self.held_out


def both_parts(stored: StoredSearch) -> list[BothParts]:
    """Sources, baselines, trials that were scored on both parts; the winner last. Nothing before a winner is named."""
    if stored.held_out is None:
        return []
    held_out = {(row.label, row.digest): row for row in read_records(stored.held_out)}
    found = [
        _both(kind, row, held_out[row.label, row.digest])
        for kind, row in _rows(stored)
        if (row.label, row.digest) in held_out
    ]
    finite = [each for each in found if math.isfinite(each.gap)]
    return sorted(finite, key=lambda each: each.kind == "best")


def _rows(stored: StoredSearch) -> Iterator[tuple[Kind, Record]]:
    if stored.baselines is not None:
        rows = read_records(stored.baselines)
        names = {source.name for source in stored.spec.sources}
        yield from (("source", row) for row in {row.label: row for row in rows if row.label in names}.values())
        yield from (("baseline", row) for row in current_baselines(rows, stored.spec, snapshot_of(stored.study)))
    winner = read_winner(stored.study.user_attrs)
    for trial in stored.study.get_trials(deepcopy=False, states=FINISHED[:1]):
        yield "best" if winner is not None and trial.number == winner.trial else "trial", read_record(trial)


def _both(kind: Kind, row: Record, held_out: Record) -> BothParts:
    return BothParts(
        name=marked(row.label, row.model_count),
        kind=kind,
        search=row.value,
        search_stderr=_finite(row.stderr),
        held_out=held_out.value,
        held_out_stderr=_finite(held_out.stderr),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
