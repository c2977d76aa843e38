"""The command that reads searches of another program: those of mergekit-evolve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from evomerge.commands.completion import permissions
from evomerge.commands.options import Json, places_of, print_document, terminal_of
from evomerge.errors import InvalidInput

STRATEGIES = ("pool", "buffered", "serial")


def mergekit_evolve(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="mergekit-evolve's YAML, with `genome` and `tasks`.")],
    out: Annotated[Path, typer.Option(help="Folder that is made; its name becomes the search's.")],
    max_fevals: Annotated[int, typer.Option(min=1, help="Merges that are scored.")] = 100,
    sigma0: Annotated[float, typer.Option(help="First step of CMA-ES, in the units of mergekit's genes.")] = 1 / 6,
    force_population_size: Annotated[int | None, typer.Option(min=2, help="Merges of one generation.")] = None,
    random_seed: Annotated[int, typer.Option(min=0, help="The seed of the search.")] = 0,
    num_gpus: Annotated[int | None, typer.Option(min=1, help="Workers, each with one GPU.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which the search ends.")] = None,
    task_search_path: Annotated[
        list[Path] | None, typer.Option(help="Folder of lm-eval tasks, which are copied; repeatable.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="pool, buffered or serial; without effect here.")] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Without effect here.")] = False,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Without effect here.")] = False,
    batch_size: Annotated[str | None, typer.Option(help="Without effect here.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME=PLACE", help="Directory or hub id of a model; repeatable."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="pickle_weights, remote_code, task_code or benchmark_test_sets; repeatable.",
            autocompletion=permissions,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Write a configuration of mergekit-evolve as a search that runs here, and say what becomes of every line.

    The options are those of mergekit-evolve. The folder has search.yaml, space.yaml and an evaluator with the tasks;
    `evomerge check` and `evomerge run` take it from there.
    """
    terminal = terminal_of(context)
    from evomerge.mergekit_evolve.evolve_spec import EvolveOptions
    from evomerge.mergekit_evolve.search_folder import import_evolve

    if strategy not in (None, *STRATEGIES):
        raise InvalidInput(f"--strategy {strategy}: it can be {', '.join(STRATEGIES)}")
    options = EvolveOptions(
        max_fevals=max_fevals,
        sigma0=_above_zero("--sigma0", sigma0),
        population=force_population_size,
        random_seed=random_seed,
        gpus=num_gpus,
        timeout=None if timeout is None else _above_zero("--timeout", timeout),
        task_paths=tuple(task_search_path or ()),
        strategy=strategy,
        vllm=vllm,
        in_memory=in_memory,
        batch_size=batch_size,
        allow=_allowed(allow or ()),
    )
    document = import_evolve(file, out, options, places=places_of(source or ()))
    for remark in document["remarks"]:
        where = "" if remark["line"] is None else f"line {remark['line']}, "
        terminal.tell(f"{where}{remark['kind']}: {remark['text']}")
    print_document(terminal, document, json_, _imported_text)


def _above_zero(option: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InvalidInput(f"{option} {value:g}: give a number above 0")
    return value


def _allowed(given: Sequence[str]) -> tuple[str, ...]:
    from evomerge.spec.sections import Allowed

    known = get_args(Allowed)
    if unknown := next((each for each in given if each not in known), None):
        raise InvalidInput(f"--allow {unknown}: it can be {', '.join(known)}")
    return tuple(given)


def _imported_text(document: dict[str, Any]) -> Any:
    from rich.text import Text

    kinds = [remark["kind"] for remark in document["remarks"]]
    counts = f"{kinds.count('same')} mean the same, {kinds.count('differs')} differ, {kinds.count('left out')} left out"
    return Text(f"{counts}, above and in search.yaml\nnow: evomerge run {document['search']}")
