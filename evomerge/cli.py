"""The command line. Each command is a thin mouth: it reads the spec, calls the library and prints what came of it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge import __version__
from evomerge.errors import EvomergeError, InvalidInput

if TYPE_CHECKING:
    from evomerge.report.terminal import Terminal
    from evomerge.spec import SearchSpec
    from evomerge.study.stored_search import StoredSearch

app = typer.Typer(
    name="evomerge",
    help="Search the merges of a base model and its fine-tunes for one that is good at everything they are good at.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SpecPath = Annotated[Path | None, typer.Argument(metavar="SPEC", help="A search.yaml; or give --storage and --study.")]
Storage = Annotated[
    str | None, typer.Option(help="Optuna storage URL; wins over the spec's. env:NAME reads it from $NAME.")
]
Study = Annotated[
    str | None, typer.Option(help="With --storage and without SPEC: the study, whose stored spec serves.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

_PATTERN = typer.Option(help="Glob of the experts' tensors, as in 'blocks.*.attn.{expert}.*'; repeatable.")


@app.command()
def check(
    context: typer.Context, spec: SpecPath = None, storage: Storage = None, study: Study = None, json_: Json = False
) -> None:
    """Validate everything without running: sources, groups, dimensions, items, memory."""
    terminal = _terminal(context)
    from evomerge.opening.inputs import open_inputs
    from evomerge.preflight import preflight, preflight_text

    result = preflight(open_inputs(_spec(spec, storage, study)))
    _print(terminal, result, json_, preflight_text)


@app.command()
def run(
    context: typer.Context,
    spec: SpecPath = None,
    trials: Annotated[int | None, typer.Option(help="Finished trials at which the search ends.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours of running, over all runs of the study.")] = None,
    workers: Annotated[int | None, typer.Option(help="Number of workers.")] = None,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS|local|none", help="Where the workers run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search; part of its identity.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Create or resume the study until its budget is spent; then compare the winner on held-out items."""
    terminal = _terminal(context)
    from evomerge.leaderboard import leaderboard, leaderboard_document
    from evomerge.report.progress import listening
    from evomerge.report.tables import leaderboard_tables
    from evomerge.search.run import run_search
    from evomerge.spec import override
    from evomerge.study.stored_search import read_search

    if ray == "none" and workers not in (None, 1):
        raise InvalidInput(
            f"--ray none has one worker, this process, but --workers is {workers}; leave one of them out"
        )
    chosen = override(_spec(spec, storage, study), trials=trials, hours=hours, workers=workers, seed=seed)
    with listening(terminal) as listener:
        run_search(chosen, ray=ray, listener=listener)
    stored = read_search(chosen)
    lines = leaderboard(stored)
    _print(terminal, leaderboard_document(stored, lines), json_, lambda _: leaderboard_tables(stored, lines))


@app.command()
def status(
    context: typer.Context, spec: SpecPath = None, storage: Storage = None, study: Study = None, json_: Json = False
) -> None:
    """The state of the search: counts by state, best so far, rate, time left, workers."""
    terminal = _terminal(context)
    from evomerge.report.progress import status_document, status_text

    _print(terminal, status_document(_stored(terminal, spec, storage, study)), json_, status_text)


@app.command()
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
    terminal = _terminal(context)
    from evomerge.importance import importance_document
    from evomerge.leaderboard import leaderboard as lines_of
    from evomerge.leaderboard import leaderboard_document
    from evomerge.report.importance_table import importance_table
    from evomerge.report.paths import described_paths
    from evomerge.report.tables import leaderboard_tables

    stored = _stored(terminal, spec, storage, study)
    lines = lines_of(stored, top)
    if json_:
        from evomerge.report.lm_eval_commands import with_commands

        lines = with_commands(stored, lines, spec if storage is None else None)
    document = leaderboard_document(stored, lines)
    if importance:
        document |= importance_document(stored)
    further = [importance_table(document)] if importance else []
    _print(terminal, document, json_, lambda _: leaderboard_tables(stored, lines, further))
    if not json_:
        terminal.write(described_paths(stored))


@app.command()
def baseline(
    context: typer.Context,
    name: Annotated[list[str], typer.Option(help="uniform-soup, greedy-soup, task-arithmetic, ties, …; repeatable.")],
    spec: SpecPath = None,
    workers: Annotated[int | None, typer.Option(help="Number of workers.")] = None,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS|local|none", help="Where the workers run.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Make baselines beside the search; where a winner has been named, the verdict takes them in.

    The search is that of the study, even where SPEC differs by now; workers, baselines, calibration texts and the
    verdict are those of SPEC.
    """
    terminal = _terminal(context)
    from evomerge.leaderboard import leaderboard, leaderboard_document
    from evomerge.report.progress import listening
    from evomerge.report.tables import leaderboard_tables
    from evomerge.search.run import run_baselines
    from evomerge.spec import override
    from evomerge.study.stored_search import continued, read_search

    going_on, differences = continued(_spec(spec, storage, study))
    _note_differences(terminal, differences, going_on.name, spec)
    chosen = override(going_on, workers=workers)
    with listening(terminal) as listener:
        run_baselines(chosen, name, ray=ray, listener=listener)
    stored = read_search(chosen)
    lines = leaderboard(stored)
    _print(terminal, leaderboard_document(stored, lines), json_, lambda _: leaderboard_tables(stored, lines))


@app.command()
def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Directory that is made; a previous export there is replaced.")],
    spec: SpecPath = None,
    trial: Annotated[str, typer.Option(help="A trial's number, `best`, or the name of a baseline.")] = "best",
    task: Annotated[str | None, typer.Option(help="Of a row that is several models: the model of this task.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Write a merge as a Hugging Face model directory, bit-identical to what was scored.

    A baseline that is several models (emr) becomes one artefact, or with --task the model of one task.
    """
    terminal = _terminal(context)
    from evomerge.export import export_merge, export_text

    stored = _stored(terminal, spec, storage, study)
    exported = export_merge(stored, trial, out, spec if storage is None else None, task=task)
    _print(terminal, exported, json_, export_text)


@app.command()
def dashboard(
    context: typer.Context,
    spec: SpecPath = None,
    storage: Storage = None,
    study: Study = None,
    host: Annotated[str, typer.Option(help="Address to bind. The dashboard has no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
) -> None:
    """Optuna Dashboard on the study's storage."""
    terminal = _terminal(context)
    from evomerge.study.dashboard import serve

    stored = _stored(terminal, spec, storage, study)
    serve(stored.storage, stored.study.study_name, stored.artifacts, host=host, port=port, say=terminal.tell)


@app.command()
def spaces(context: typer.Context, name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """The search spaces that ship with evomerge, or one of them."""
    terminal = _terminal(context)
    from evomerge.report.inventory import describe_spaces, inventory_text

    _print(terminal, describe_spaces(name), json_, inventory_text)


@app.command()
def evaluators(
    context: typer.Context, name: Annotated[str | None, typer.Argument()] = None, json_: Json = False
) -> None:
    """The evaluators that are installed, or one of them."""
    terminal = _terminal(context)
    from evomerge.report.inventory import describe_evaluators, inventory_text

    _print(terminal, describe_evaluators(name), json_, inventory_text)


@app.command()
def methods(context: typer.Context, name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """The merge methods, or one with formula, parameters, options, needs, cost, paper and an example."""
    terminal = _terminal(context)
    from evomerge.report.inventory import describe_methods, inventory_text

    _print(terminal, describe_methods(name), json_, inventory_text)


@app.command()
def distances(
    context: typer.Context,
    first: Annotated[
        str | None,
        typer.Argument(
            help="Directory or hub id; with --spec the name of a source; with --pattern any checkpoint. Or SPEC."
        ),
    ] = None,
    second: Annotated[str | None, typer.Argument(help="The other one.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Likewise. Task vectors (model minus base) are compared instead of weights.")
    ] = None,
    keep: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of each vector that TSSD compares.")] = 0.5,
    spec: Annotated[
        Path | None, typer.Option(help="A search.yaml, whose sources may be named; without names, every two of them.")
    ] = None,
    pattern: Annotated[list[str] | None, _PATTERN] = None,
    experts: Annotated[str | None, typer.Option(help="With --pattern: names of experts inside one model: v,l")] = None,
    json_: Json = False,
) -> None:
    """Distances between the weights of models, in all and per part: L2, cosine, SSD, TSSD.

    Between two models; between every two sources of a search.yaml; or between experts inside one checkpoint.
    """
    terminal = _terminal(context)
    from evomerge.recipe import ModelRef
    from evomerge.spec import load_spec
    from evomerge.weight_distances import compare_experts, compare_pairs, compare_weights, distances_table, pairs_table

    if pattern or experts is not None:
        if first is None or second is not None or spec is not None or not pattern or experts is None:
            raise InvalidInput("experts are compared inside one model: give MODEL --pattern PATTERN --experts v,l")
        document = compare_experts(first, pattern, experts.split(","), base=base, keep=keep)
        _print(terminal, document, json_, pairs_table)
        return
    if first is not None and second is None and spec is None and first.endswith((".yaml", ".yml")):
        spec, first = Path(first), None
    given = None if spec is None else load_spec(spec)
    sources = {} if given is None else {source.name: source.ref for source in given.sources}
    allow = () if given is None else given.allow
    origin = None if base is None else sources.get(base, ModelRef(base, base))
    if first is None and sources:
        pairs = [ref for name, ref in sources.items() if name != base]
        _print(terminal, compare_pairs(pairs, base=origin, keep=keep, allow=allow), json_, pairs_table)
        return
    if first is None or second is None:
        raise InvalidInput(
            "give two models, or --spec SPEC for every two of its sources, or --pattern for experts of one"
        )
    one, other = (sources.get(name, ModelRef(name, name)) for name in (first, second))
    _print(terminal, compare_weights(one, other, base=origin, keep=keep, allow=allow), json_, distances_table)


@app.command()
def merge_experts(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Directory, safetensors file or hub id of any checkpoint.")],
    out: Annotated[Path, typer.Option(help="Directory that is made; an earlier result there is replaced.")],
    pattern: Annotated[list[str], _PATTERN],
    experts: Annotated[str, typer.Option(help="Names of the experts in order: v,l,vl")],
    method: Annotated[str, typer.Option(help="interpolation, arithmetic or regmean.")] = "interpolation",
    a: Annotated[float | None, typer.Option("--a", help="interpolation: share of the first expert (0.5).")] = None,
    factor: Annotated[float | None, typer.Option("--lambda", help="arithmetic: factor of differences (0.75).")] = None,
    scaling: Annotated[float | None, typer.Option(help="regmean: factor off the diagonal of the Grams (1.0).")] = None,
    arithmetic: Annotated[str | None, typer.Option(help="arithmetic: sum (default) or sequential_legacy.")] = None,
    seed_model: Annotated[str | None, typer.Option(help="arithmetic: the weights that all experts began as.")] = None,
    statistics: Annotated[Path | None, typer.Option(help="regmean: a safetensors file of Grams.")] = None,
    json_: Json = False,
) -> None:
    """Merge the experts inside one checkpoint (vision, language, cross-modal) into one shared tower."""
    terminal = _terminal(context)
    from evomerge.shared_tower import TowerRequest, merge_checkpoint, tower_text

    numbers = {"a": a, "lambda": factor, "scaling": scaling}
    request = TowerRequest(
        model=model,
        patterns=tuple(pattern),
        experts=tuple(experts.split(",")),
        method=method,
        parameters={name: value for name, value in numbers.items() if value is not None},
        options={} if arithmetic is None else {"arithmetic": arithmetic},
        seed_model=seed_model,
        statistics=statistics,
    )
    _print(terminal, merge_checkpoint(request, out), json_, tower_text)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with the exit code of the contract."""
    from evomerge.report.terminal import process_terminal

    sys.exit(run_command(arguments, process_terminal()))


def run_command(arguments: list[str] | None = None, terminal: Terminal | None = None) -> int:
    """Run a command; its exit code: 0 done, 1 our bug, 2 invalid input, and the others of `evomerge.errors`.

    Args:
        terminal: where it prints; without one the streams of this process, which then everybody may write to.
    """
    from evomerge.report.terminal import Terminal

    terminal = terminal or Terminal()
    try:
        code = app(args=arguments, standalone_mode=False, obj=terminal)
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message:  # empty where the help was shown instead
            terminal.tell(f"error: {message}")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        terminal.tell("interrupted; run the same command again to go on")
        return 3
    except EvomergeError as error:
        log = f" (what other programs printed is in {terminal.log})" if terminal.log is not None else ""
        terminal.tell(f"error: {error}{log}")
        return error.exit_code
    except Exception as error:
        place = terminal.keep(traceback.format_exc())
        terminal.tell(f"error: this is a bug in evomerge: {type(error).__name__}: {error}; see {place}")
        return 1
    return code if isinstance(code, int) else 0


def _terminal(context: typer.Context) -> Terminal:
    """The terminal of a command, which from now on only our own lines reach."""
    from evomerge.report.terminal import Terminal

    terminal = context.ensure_object(Terminal)
    terminal.divert()
    return terminal


def _spec(path: Path | None, storage: str | None, study: str | None) -> SearchSpec:
    """The spec that a command works on: a file, or what a study stores."""
    if path is not None and study is not None:
        raise InvalidInput("give either a SPEC, whose name is the study's, or --storage and --study; not both")
    if path is not None:
        from evomerge.spec import load_spec

        spec = load_spec(path)
        return spec if storage is None else spec.model_copy(update={"storage": storage})
    if storage is None or study is None:
        raise InvalidInput("give a SPEC (a search.yaml), or both --storage URL and --study NAME")
    from evomerge.study.stored_search import read_stored_spec

    return read_stored_spec(storage, study)


def _stored(terminal: Terminal, path: Path | None, storage: str | None, study: str | None) -> StoredSearch:
    """The stored study that a command reads. A file only locates it; differences of the file are reported."""
    from evomerge.spec import read_spec, resolve
    from evomerge.study.stored_search import read_search

    if path is None or study is not None:
        return read_search(_spec(path, storage, study))
    given = read_spec(path)
    given = given if storage is None else given.model_copy(update={"storage": storage})
    unusable = ""
    try:
        given = resolve(given, path.resolve().parent)
    except InvalidInput as error:  # what it names is gone: the study can be read all the same
        unusable = str(error)
    stored = read_search(given)
    _note_differences(terminal, unusable or stored.differences, given.name, path)
    return stored


def _note_differences(terminal: Terminal, differences: str, study: str, path: Path | None) -> None:
    if differences:
        terminal.tell(f"note: study {study!r} goes by its own spec, {path} differs: {differences}")


def _print(terminal: Terminal, document: dict[str, Any], as_json: bool, renderable: Any) -> None:
    if as_json:
        terminal.document(document)
    else:
        terminal.show(renderable(document))


if __name__ == "__main__":
    main()
