"""Searches that never ran: right and wrong answers of candidates and baselines whose true quality is known.

An item has an answer that most models give; each model departs from it on some items, independently of the others.
That share of departures decides how many items two models disagree on. Half of these answers are right, so that
departing costs a model on them what it gains on the others; a better model departs more from the wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.verdict import Comparison, Entrant, Verdict, VerdictWord, compare, judge

Answers = NDArray[np.bool_]
OBJECTIVE = Objective(aggregate="weighted_mean", weights={"task": 1.0})


def answers(generator: np.random.Generator, edges: Sequence[float], items: int, discordant: float) -> Answers:
    """Right or wrong, an array [models, items].

    Args:
        edges: of each model, how much better than 0.5 its true accuracy is.
        discordant: share of the items on which two models without an edge disagree; where one has an edge of +d and
            the other of −d, it is the same share of theirs.
    """
    edge = np.array(edges)[:, None]
    spread = float(np.abs(edge).max())
    # departing with e ∓ d from right and wrong answers, two models of ±d disagree on 2e − 2(e² − d²) of the items
    departing = (1 - math.sqrt(1 - 2 * discordant + 4 * spread**2)) / 2
    right = generator.random(items) < 0.5
    departs = generator.random((len(edges), items)) < np.where(right, departing - edge, departing + edge)
    found: Answers = right ^ departs
    return found


def as_scores(row: Answers) -> Scores:
    """The scores of one model on one task."""
    outcomes = tuple(row.astype(np.float64).tolist())
    return Scores(
        {
            "task": TaskScores(
                metric="acc",
                higher_is_better=True,
                items=tuple(range(len(row))),
                outcomes=outcomes,
                value=float(row.mean()),
                stderr=None,
                aggregate="mean",
            )
        },
        {},
    )


def searched(
    seed: int,
    *,
    candidates: int = 40,
    edge: float = 0.0,
    baseline_edges: Sequence[float] = (0.0,) * 4,
    search_items: int = 400,
    items: int = 1000,
    discordant: float = 0.2,
) -> Verdict:
    """A whole procedure: candidates are scored on the search items, the best is named, and only it is held against
    the baselines on the held-out items."""
    generator = np.random.Generator(np.random.Philox(seed))
    edges = [*baseline_edges, *(edge,) * candidates]
    on_search = answers(generator, edges, search_items, discordant).mean(axis=1)
    known = len(baseline_edges)
    winner = known + int(np.argmax(on_search[known:]))
    held_out = answers(generator, [*baseline_edges, edge], items, discordant)
    return judge(
        OBJECTIVE,
        Entrant(label="trial", held_out=as_scores(held_out[-1]), search=float(on_search[winner])),
        winner - known,
        [
            Entrant(label=f"baseline {number}", held_out=as_scores(held_out[number]), search=float(on_search[number]))
            for number in range(known)
        ],
        trials=candidates,
        search_items=search_items,
        seed=seed,
    )


def looked(
    seed: int,
    *,
    looks: int,
    edge: float = 0.0,
    margin: float | None = None,
    baselines: int = 4,
    items: int = 1000,
    discordant: float = 0.2,
) -> list[tuple[Comparison, ...]]:
    """The comparisons of a search that continues after every look, each with another winner.

    The winners were chosen on other items, so that they are any models of their quality here; all are held against the
    same baselines on the same held-out items. A user who looks until he likes the words has seen some first ones.

    Args:
        edge: how much better than the baselines all winners truly are.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    edges = [*(-edge / 2,) * baselines, *(edge / 2,) * looks]
    scored = [as_scores(row) for row in answers(generator, edges, items, discordant)]
    known = {f"baseline {number}": scored[number] for number in range(baselines)}
    return [
        compare(OBJECTIVE, winner, known, look=look, margin=margin)
        for look, winner in enumerate(scored[baselines:], start=1)
    ]


def said(found: Sequence[Sequence[Comparison]], outcome: VerdictWord) -> bool:
    """Whether some look gave this word to some baseline."""
    return any(each.outcome == outcome for comparisons in found for each in comparisons)
