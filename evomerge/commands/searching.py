"""Commands that check and run a search and make baselines beside it."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.commands.completion import baseline_names
from evomerge.commands.options import (
    Json,
    Ray,
    SpecPath,
    Storage,
    Study,
    Workers,
    note_differences,
    note_other_place,
    print_document,
    spec_of,
    terminal_of,
)
from evomerge.errors import InvalidInput


def check(
    context: typer.Context, spec: SpecPath = None, storage: Storage = None, study: Study = None, json_: Json = False
) -> None:
    """Validate everything without running: sources, groups, dimensions, items, memory."""
    terminal = terminal_of(context)
    from evomerge.opening.inputs import open_inputs
    from evomerge.preflight import preflight, preflight_text

    result = preflight(open_inputs(spec_of(spec, storage, study)))
    print_document(terminal, result, json_, preflight_text)


def run(
    context: typer.Context,
    spec: SpecPath = None,
    trials: Annotated[int | None, typer.Option(help="Finished trials at which the search ends.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours of running, over all runs of the study.")] = None,
    workers: Workers = None,
    ray: Ray = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search; part of its identity.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Create or resume the study until its budget is spent; then compare the winner on held-out items."""
    terminal = terminal_of(context)
    from evomerge.leaderboard import leaderboard, leaderboard_document
    from evomerge.report.progress import listening
    from evomerge.report.tables import leaderboard_tables
    from evomerge.search.run import run_search
    from evomerge.spec import override
    from evomerge.study.stored_search import read_search

    _refuse_idle_workers(ray, workers)
    given = spec_of(spec, storage, study)
    note_other_place(terminal, spec, storage, given)
    chosen = override(given, trials=trials, hours=hours, workers=workers, seed=seed)
    with listening(terminal) as listener:
        run_search(chosen, ray=ray, listener=listener)
    stored = read_search(chosen)
    lines = leaderboard(stored)
    print_document(terminal, leaderboard_document(stored, lines), json_, lambda _: leaderboard_tables(stored, lines))


def baseline(
    context: typer.Context,
    name: Annotated[
        list[str],
        typer.Option(
            help="uniform-soup, greedy-soup, task-arithmetic, ties, …; repeatable.", autocompletion=baseline_names
        ),
    ],
    spec: SpecPath = None,
    workers: Workers = None,
    ray: Ray = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Make baselines beside the search; where a winner has been named, the verdict takes them in.

    The search is that of the study, even where SPEC differs by now; workers, baselines, calibration texts and the
    verdict are those of SPEC.
    """
    terminal = terminal_of(context)
    from evomerge.leaderboard import leaderboard, leaderboard_document
    from evomerge.report.progress import listening
    from evomerge.report.tables import leaderboard_tables
    from evomerge.search.run import run_baselines
    from evomerge.spec import override
    from evomerge.study.stored_search import continued, read_search

    _refuse_idle_workers(ray, workers)
    given = spec_of(spec, storage, study)
    note_other_place(terminal, spec, storage, given)
    going_on, differences = continued(given)
    note_differences(terminal, differences, going_on.name, spec)
    chosen = override(going_on, workers=workers)
    with listening(terminal) as listener:
        run_baselines(chosen, name, ray=ray, listener=listener)
    stored = read_search(chosen)
    lines = leaderboard(stored)
    print_document(terminal, leaderboard_document(stored, lines), json_, lambda _: leaderboard_tables(stored, lines))


def _refuse_idle_workers(ray: str | None, workers: int | None) -> None:
    if ray == "none" and workers not in (None, 1):
        raise InvalidInput(
            f"--ray none has one worker, this process, but --workers is {workers}; leave one of them out"
        )
