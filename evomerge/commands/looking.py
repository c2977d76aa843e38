"""Commands that show a study: its state, its leaderboard, Optuna Dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.commands.options import Json, SpecPath, Storage, Study, glance_of, print_document, stored_of, terminal_of


def status(
    context: typer.Context,
    spec: SpecPath = None,
    storage: Storage = None,
    study: Study = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="End with 0 where the controller runs or has finished, 10 where it does not run, 11 where nobody can "
            "tell from here.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """The state of the search: counts by state, best so far, rate, time left, workers, and whether it is alive."""
    terminal = terminal_of(context)
    from evomerge.report.status_report import probe_code, status_document, status_text

    document = status_document(*glance_of(terminal, spec, storage, study))
    print_document(terminal, document, json_, status_text)
    if probe:
        raise typer.Exit(probe_code(document))


def list_studies(
    context: typer.Context,
    where: Annotated[
        str, typer.Argument(metavar="STORAGE|SPEC", help="A storage URL, or a search.yaml that names one.")
    ],
    json_: Json = False,
) -> None:
    """The searches in a storage: state, trials, best, last sign of life."""
    terminal = terminal_of(context)
    from evomerge.spec import read_spec
    from evomerge.study_list import list_studies, studies_table

    url = read_spec(Path(where)).storage_url if where.endswith((".yaml", ".yml")) else where
    print_document(terminal, list_studies(url), json_, studies_table)


def leaderboard(
    context: typer.Context,
    spec: SpecPath = None,
    storage: Storage = None,
    study: Study = None,
    top: Annotated[int, typer.Option(min=1, help="How many trials to show.")] = 5,
    importance: Annotated[bool, typer.Option("--importance", help="Also which experts and groups matter.")] = False,
    json_: Json = False,
) -> None:
    """Sources, baselines and the best trials, on search and on held-out items."""
    terminal = terminal_of(context)
    from evomerge.importance import importance_document
    from evomerge.leaderboard import leaderboard as lines_of
    from evomerge.leaderboard import leaderboard_document
    from evomerge.report.importance_table import importance_table
    from evomerge.report.paths import described_paths
    from evomerge.report.tables import leaderboard_tables

    stored = stored_of(terminal, spec, storage, study)
    lines = lines_of(stored, top)
    if json_:
        from evomerge.report.lm_eval_commands import with_commands

        lines = with_commands(stored, lines, spec if storage is None else None)
    document = leaderboard_document(stored, lines)
    if importance:
        document |= importance_document(stored)
    further = [importance_table(document)] if importance else []
    print_document(terminal, document, json_, lambda _: leaderboard_tables(stored, lines, further))
    if not json_:
        terminal.write(described_paths(stored))


def dashboard(
    context: typer.Context,
    spec: SpecPath = None,
    storage: Storage = None,
    study: Study = None,
    host: Annotated[str, typer.Option(help="Address to bind. The dashboard has no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    json_: Json = False,
) -> None:
    """Optuna Dashboard on the study's storage, served until it is interrupted."""
    terminal = terminal_of(context)
    from evomerge.study.dashboard import dashboard_document, dashboard_lines, serve

    stored = stored_of(terminal, spec, storage, study)
    document = dashboard_document(stored.storage, stored.study.study_name, host=host, port=port)
    if json_:
        terminal.document(document)
    else:
        for line in dashboard_lines(document):
            terminal.tell(line)
    serve(stored.storage, stored.artifacts, host=host, port=port, say=terminal.tell)
