"""One search from spec to verdict, in one page: references, the loop, the winner, the held-out comparison."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import optuna

from evomerge.baselines import Row, RowResult, baseline_rows, record_row, score_rows, source_rows
from evomerge.cluster import Executor, ignored_without_ray, is_local, open_executor, worker_count
from evomerge.controller import Controller, Status, Stop, find_batch_size, stopping_on_signals
from evomerge.evaluation.evaluator import ItemBlock
from evomerge.objective import Objective, build_objective, task_weights
from evomerge.spec import SearchSpec
from evomerge.study import attributes
from evomerge.study.opening import Inputs, OpenSearch, check_memory, open_inputs, open_search
from evomerge.study.search_study import changed_versions
from evomerge.verdict import name_winner, store_digests, winning_recipe


@dataclass(frozen=True)
class Listener:
    """Who is told how a run goes. Both default to silence."""

    on_phase: Callable[[str], None] = lambda text: None
    on_status: Callable[[Status], None] = lambda status: None


def run_search(spec: SearchSpec, *, ray: str | None = None, listener: Listener | None = None) -> optuna.Study:
    """Create the spec's study or go on with it until its budget is spent; then compare the winner on held-out items.

    Args:
        ray: where workers run, see `evomerge.cluster.open_executor`.
        listener: is told about phases and progress.

    Returns:
        The study: trials in it, sources and baselines in `NAME/baselines`, the comparison in `NAME/held-out`.

    Raises:
        EvomergeError: see `evomerge.errors`; everything that finished is stored, and the same call goes on.
    """
    with stopping_on_signals() as stop:
        return _run(spec, ray, listener or Listener(), stop)


def _run(spec: SearchSpec, ray: str | None, listener: Listener, stop: Stop) -> optuna.Study:
    inputs = open_inputs(spec)
    for warning in inputs.warnings:
        listener.on_phase(f"warning: {warning}")
    task_weights(spec.objective, inputs.evaluator.weights)  # refused before anything is created
    if not_applicable := ignored_without_ray(spec.workers, ray):
        listener.on_phase(
            f"warning: without Ray there is one worker, this process; ignored: {', '.join(not_applicable)}"
        )
    workers = worker_count(spec.workers, ray)
    check_memory(inputs, workers if is_local(ray) else 1)
    with open_search(inputs, workers=workers) as opened:
        for name, (then, now) in changed_versions(opened.search.study).items():
            listener.on_phase(f"warning: {name} was {then} when the study was made, now it is {now}")
        setup = inputs.setup(opened.foundation)
        listener.on_phase("starting workers")
        with closing(open_executor(setup, spec.workers, ray)) as executor:
            stop.listen()
            _search(opened, executor, stop, listener)
        return opened.search.study


def _search(opened: OpenSearch, executor: Executor, stop: Stop, listener: Listener) -> None:
    spec, search = opened.inputs.spec, opened.search
    rows = reference_rows(opened.inputs)
    batch_size = opened.foundation.batch_size
    if batch_size is None:
        batch_size = find_batch_size(executor, stop, rows[0].recipe)
        search.set(attributes.BATCH_SIZE, batch_size)

    listener.on_phase("scoring sources and baselines on the search items")
    objective = _score_references(opened, rows, executor, stop, batch_size)

    listener.on_phase("searching")
    Controller(
        search,
        executor,
        objective,
        stop,
        trials=spec.budget.trials,
        hours=spec.budget.hours,
        batch_size=batch_size,
        on_status=listener.on_status,
    ).run()

    winner = name_winner(search)
    listener.on_phase("scoring the winner, the sources and the baselines on the held-out items")
    best = Row(winner.label, winning_recipe(search, winner), required=True, digests=True)

    def keep(result: RowResult) -> None:
        if result.digests is not None:
            store_digests(search, winner, result.digests)
        record_row(result, opened.held_out, objective)

    score_rows([best, *rows], ItemBlock("held_out"), opened.held_out, executor, stop, batch_size, keep)


def _score_references(
    opened: OpenSearch, rows: list[Row], executor: Executor, stop: Stop, batch_size: int | None
) -> Objective:
    """Score sources and baselines on the search items, and make the objective, which may be relative to the sources."""
    spec, weights = opened.inputs.spec, opened.inputs.evaluator.weights
    first, others = rows[: len(spec.sources)], rows[len(spec.sources) :]
    score = partial(
        score_rows,
        block=ItemBlock("search"),
        records=opened.baselines,
        executor=executor,
        stop=stop,
        batch_size=batch_size,
    )
    sources = score(first)
    objective = build_objective(spec.objective, weights, [sources[source.name].scores for source in spec.sources])
    for result in sources.values():
        record_row(result, opened.baselines, objective)
    score(others, on_scored=partial(record_row, records=opened.baselines, objective=objective))
    return objective


def reference_rows(inputs: Inputs) -> list[Row]:
    """Sources first, then the baselines that the spec names."""
    base, experts = inputs.base.ref, [source.ref for source in inputs.experts]
    dtype = inputs.spec.dtype
    return [
        *source_rows(base, experts, inputs.catalogue, dtype),
        *baseline_rows(inputs.spec.baselines, base, experts, inputs.catalogue, dtype),
    ]
