"""Combination of the scores of several blocks of one candidate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from evomerge.evaluation.aggregates import RECOMPUTED, aggregate, standard_error
from evomerge.evaluation.scores import Scores, TaskScores


def combine_scores(parts: Sequence[Scores]) -> Scores:
    """Combine the scores of several blocks of one candidate, as if all items had been scored at once.

    Args:
        parts: of blocks that share no item; at least one. Values of tasks are recomputed from the outcomes, so that
            every task's value must be a function of the mean of its items, or an aggregate that can be recomputed.
    """
    if len(parts) == 1:
        return parts[0]
    tasks: dict[str, list[TaskScores]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for part in parts:
        for task, scores in part.tasks.items():
            tasks[task].append(scores)
        for phase, spent in part.seconds.items():
            seconds[phase] += spent
    return Scores(
        {task: _combine_task(pieces) for task, pieces in tasks.items()},
        dict(seconds),
        sum(part.tokens for part in parts),
    )


def _combine_task(pieces: Sequence[TaskScores]) -> TaskScores:
    first = pieces[0]
    # In the order of the items, as one block has them: sums of floats depend on their order.
    rows = sorted(
        (item, outcome, weight)
        for piece in pieces
        for item, outcome, weight in zip(
            piece.items, piece.outcomes, piece.weights or (1.0,) * len(piece.items), strict=True
        )
    )
    items, outcomes, weights = (tuple(column) for column in zip(*rows, strict=True))
    gold = _combine_gold(pieces, items)
    known = weights if first.weights is not None else None
    kind = first.aggregate
    value = aggregate(kind, outcomes, known) if kind in RECOMPUTED else math.fsum(outcomes) / len(outcomes)
    stderr = standard_error(kind, outcomes, known, value)
    return replace(first, items=items, outcomes=outcomes, weights=known, value=value, stderr=stderr, gold=gold)


def _combine_gold(pieces: Sequence[TaskScores], items: Sequence[int]) -> tuple[float, ...] | None:
    """In the order of `items`; None where a piece has none."""
    of_item: dict[int, float] = {}
    for piece in pieces:
        if piece.gold is None:
            return None
        of_item.update(zip(piece.items, piece.gold, strict=True))
    return tuple(of_item[item] for item in items)
