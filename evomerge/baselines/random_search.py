"""Random search with the budget of the search, in a sibling study: it measures the advantage of the sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evomerge.baselines.freshness import build_key
from evomerge.baselines.info import BASELINES
from evomerge.baselines.search_cost import cost_of_space
from evomerge.cluster import Executor
from evomerge.errors import StoppedByFailures
from evomerge.loop.controller import Controller
from evomerge.loop.steering import Steering
from evomerge.loop.stop import Stop
from evomerge.objective import Objective
from evomerge.opening.open_study import OpenSearch
from evomerge.samplers import build_sampler
from evomerge.spec import BaselineSpec, BudgetSpec
from evomerge.study.ledger import ledger_of
from evomerge.study.rows import NewRow, read_record, read_scores
from evomerge.study.snapshot import snapshot_of
from evomerge.study.status import Status
from evomerge.study.trials import best_trials, total_cost


def random_search(
    baseline: BaselineSpec,
    opened: OpenSearch,
    executor: Executor,
    objective: Objective,
    *,
    stop: Stop,
    steering: Steering,
    batch_size: int | None,
    on_status: Callable[[Status], None] = lambda status: None,
) -> None:
    """Draw one merge from the search space per finished trial of the search, and store the best one as a baseline.

    Raises:
        StoppedByFailures: most merges of the space fail, or the scores of the best one are lost.
    """
    spec, standing = opened.inputs.spec, snapshot_of(opened.search.study)
    made = build_key(baseline, spec, standing)
    if opened.baselines.find_made(baseline.name, made) is not None:
        return
    name = str(BASELINES[baseline.name].sampler)
    sampler = build_sampler(name, {}, seed=spec.seed, space=opened.space, workers=max(1, executor.capacity))
    search = opened.sibling(baseline.name, sampler)
    Controller(
        search,
        executor,
        replace(objective, several=False),
        stop,
        budget=BudgetSpec(
            trials=standing.trials,
            items=None if spec.fidelity.name == "full" else max(1, opened.search.tally.spent.items),
        ),
        steering=steering,
        batch_size=batch_size,
        on_status=on_status,
    ).run()
    for best in best_trials(search.study, 1):
        scores = read_scores(opened.artifacts, opened.storage, best, opened.patience)
        if scores is None:
            raise StoppedByFailures(f"the items of trial {best.number} of {search.study.study_name} are lost")
        record = read_record(best)
        before = cost_of_space(spec, ledger_of(opened.search.study), opened.baselines)
        opened.baselines.add(
            NewRow(
                label=baseline.name,
                recipe=search.recipe_of(best),
                scores=scores,
                value=record.value,
                stderr=record.stderr,
                companion=scores.companion,
                seconds=record.seconds,
                cost=total_cost(search.trials()) + before,
                made=made,
                params=best.params,
            )
        )
