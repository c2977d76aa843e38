"""Per-item outcomes as Parquet: one row per task and item, stored as an artifact of the trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.forms import finite_or_none

SCHEMA_VERSION = b"1"
ITEMS: Final = "items.parquet"  # name of the artifact
MIMETYPE: Final = "application/vnd.apache.parquet"

_FIELDS = pa.schema(
    [
        pa.field("task", pa.dictionary(pa.int32(), pa.string())),
        pa.field("metric", pa.dictionary(pa.int32(), pa.string())),
        pa.field("higher_is_better", pa.bool_()),
        pa.field("item", pa.int64()),
        pa.field("outcome", pa.float64()),
        pa.field("weight", pa.float64()),  # null where the task's aggregate weighs no items
    ],
    metadata={b"evomerge:schema": SCHEMA_VERSION},
)


def write_items(file: Path | BinaryIO, scores: Scores) -> None:
    """Write the outcomes of every item."""
    tasks, counts = list(scores.tasks.values()), [len(score.items) for score in scores.tasks.values()]
    columns = [
        _repeated(list(scores.tasks), counts),
        _repeated([score.metric for score in tasks], counts),
        pa.array([score.higher_is_better for score in tasks for _ in score.items], pa.bool_()),
        pa.array([item for score in tasks for item in score.items], pa.int64()),
        pa.array([outcome for score in tasks for outcome in score.outcomes], pa.float64()),
        pa.array([weight for score in tasks for weight in score.weights or [None] * len(score.items)], pa.float64()),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=_FIELDS), file, compression="zstd")


def _repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.DictionaryArray:
    """Each text as often as its count says."""
    distinct = list(dict.fromkeys(texts))
    indices = np.repeat(np.array([distinct.index(each) for each in texts], dtype=np.int32), counts)
    return pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(distinct, pa.string()))


@dataclass(frozen=True)
class ItemOutcome:
    """The stored outcome of one item; without a weight where the task's aggregate has none."""

    outcome: float
    weight: float | None


def read_items(path: Path) -> dict[str, dict[int, ItemOutcome]]:
    """Task -> item -> outcome, in the order of writing. A file without the column of weights has none."""
    items: dict[str, dict[int, ItemOutcome]] = {}
    for row in pq.read_table(path).to_pylist():
        items.setdefault(row["task"], {})[row["item"]] = ItemOutcome(row["outcome"], row.get("weight"))
    return items


def summary(scores: Scores) -> dict[str, dict[str, float | str | bool | int | None]]:
    """Scores as the study itself stores them: per task the aggregate, its standard error, metric, number of items."""
    return {task: _summary(score) for task, score in scores.tasks.items()}


def _summary(score: TaskScores) -> dict[str, float | str | bool | int | None]:
    return {
        "value": score.value,
        "stderr": finite_or_none(score.stderr),
        "metric": score.metric,
        "higher_is_better": score.higher_is_better,
        "items": len(score.items),
        "aggregate": score.aggregate,
    }
