"""Merges of the same sources that never were: they agree on most items, and all differ on those that are in doubt."""

from __future__ import annotations

import numpy as np
from races import OBJECTIVE, TASKS, task_scores

from evomerge.evaluation.scores import Scores
from evomerge.racing import DifferenceDecision, DifferenceSettings, Draw, ItemHistory, decide_by_difference, make_draw


def siblings(generator: np.random.Generator, count: int, items: int, doubtful: float = 0.3) -> np.ndarray:
    """Right or wrong, an array [candidates, items]: in doubt is so large a share of the items."""
    in_doubt = generator.random(items) < doubtful
    chances = np.where(in_doubt, generator.beta(0.8, 0.8, items), generator.random(items) < 0.7)
    return (generator.random((count, items)) < chances).astype(float)


def as_scores(row: np.ndarray, mask: np.ndarray | None = None) -> Scores:
    """The scores of a candidate on all items or on some of them, which are dealt out to the tasks in turn."""
    kept = np.ones(len(row), dtype=bool) if mask is None else mask
    tasks = {}
    for number in range(TASKS):
        ids = np.flatnonzero(kept[number::TASKS])
        if len(ids):
            tasks[f"task {number}"] = task_scores(row[number::TASKS][ids].tolist(), items=tuple(ids.tolist()))
    return Scores(tasks, {})


def drawn(draw: Draw, block: int) -> np.ndarray:
    """The items of all blocks up to this one, a mask [items]."""
    mask = np.zeros(len(draw.weights), dtype=bool)
    for each in draw.blocks[: block + 1]:
        for task, ids in each.chosen or ():
            mask[np.array(ids) * TASKS + int(task.removeprefix("task "))] = True
    return mask


def draw_of(incumbent: np.ndarray, earlier: np.ndarray, *, trial: int = 1, seed: int = 0) -> Draw:
    """The draw of a candidate that begins after these others."""
    history = ItemHistory(map(as_scores, earlier))
    return make_draw(OBJECTIVE, as_scores(incumbent), history, seed=seed, trial=trial, minimum=64, block=64)


def raced_by_difference(settings: DifferenceSettings, draw: Draw, candidate: np.ndarray) -> DifferenceDecision:
    """The last decision: the one that drops the candidate, or the one after the last block."""
    for block in range(len(draw.blocks)):
        decision = decide_by_difference(settings, draw, as_scores(candidate, drawn(draw, block)), block)
        if decision.drop:
            break
    return decision
