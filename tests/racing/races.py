"""Races that never ran: outcomes over several tasks, handed out block by block to the code that decides real races."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.racing import Decision, RaceSettings, decide

TASKS = 4
OBJECTIVE = Objective(aggregate="weighted_mean", weights={f"task {number}": 1.0 for number in range(TASKS)})


def task_scores(
    outcomes: Sequence[float], stop: int | None = None, *, higher_is_better: bool = True, **others: Any
) -> TaskScores:
    """The scores of one task, on its first items."""
    found = tuple(map(float, outcomes[:stop]))
    value = sum(found) / len(found) if found else 0.0
    return TaskScores(
        **{
            "metric": "acc",
            "higher_is_better": higher_is_better,
            "items": tuple(range(len(found))),
            "outcomes": found,
            "value": value,
            "stderr": None,
            "aggregate": "mean",
            **others,
        }
    )


def scores(outcomes: Mapping[str, Sequence[float]], stops: Mapping[str, int] | None = None) -> Scores:
    """The scores of a candidate, on so many items of each task."""
    return Scores(
        {task: task_scores(row, None if stops is None else stops[task]) for task, row in outcomes.items()}, {}
    )


def raced(
    settings: RaceSettings,
    objective: Objective,
    incumbent: np.ndarray,
    candidate: np.ndarray,
    *,
    block: int = 64,
    tasks: int = TASKS,
) -> Decision:
    """The last decision of a race: the one that drops the candidate, or the one after the last block.

    Args:
        incumbent, candidate: outcomes of all items, dealt out to the tasks in equal numbers.
        block: items per block, over all tasks.
    """
    ours = {f"task {number}": candidate[number::tasks].tolist() for number in range(tasks)}
    theirs = scores({f"task {number}": incumbent[number::tasks].tolist() for number in range(tasks)})
    earlier: list[dict[str, int]] = []
    longest = max(map(len, ours.values()))
    for stop in range(block // tasks, longest + block // tasks, block // tasks):
        stops = {task: min(stop, len(row)) for task, row in ours.items()}
        decision = decide(settings, objective, theirs, scores(ours, stops), earlier)
        if decision.drop:
            break
        earlier.append(stops)
    return decision
