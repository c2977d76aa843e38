"""The command that writes a first search.yaml: `evomerge init`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.commands.completion import evaluator_names, example_names, permissions, space_names
from evomerge.commands.options import Json, terminal_of
from evomerge.errors import InvalidInput

if TYPE_CHECKING:
    from evomerge.report.terminal import Terminal


def init(
    context: typer.Context,
    base: Annotated[str | None, typer.Option(metavar="PLACE", help="The base: a directory or a hub id.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PLACE", help="A fine-tune or a LoRA adapter of the base; repeatable."),
    ] = None,
    evaluator: Annotated[
        str | None, typer.Option(help="How merges are scored: a name or a folder.", autocompletion=evaluator_names)
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:METRIC]", help="A task of lm-eval to score by; repeatable."),
    ] = None,
    task_search_path: Annotated[
        list[Path] | None, typer.Option(help="Folder that has the tasks, which are copied; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Search items of each --task; 200 without it.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space; by the sources without it.", autocompletion=space_names)
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials; by the space without it.")] = None,
    storage: Annotated[str | None, typer.Option(help="Storage URL; a file beside the spec without it.")] = None,
    out: Annotated[str | None, typer.Option(metavar="FOLDER|-", help="Folder of search.yaml; - prints it.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="pickle_weights, remote_code, …; repeatable.", autocompletion=permissions),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            help="toy: a ready search with its models, instead of one of yours.", autocompletion=example_names
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    json_: Json = False,
) -> None:
    """Write a search.yaml with a comment on each top-level key: on a terminal from a few questions, else from flags."""
    from evomerge.new_spec.answers import SpecAnswers, check_complete, named_sources, with_questions

    if example is not None:
        _example(context, example, {**context.params}, json_)
        return
    named = _named(space=space, trials=trials, storage=storage, out=out, limit=limit)
    answers = SpecAnswers(
        base=base,
        experts=named_sources(source or ()),
        evaluator=evaluator,
        tasks=tuple(task or ()),
        task_paths=tuple(task_search_path or ()),
        allow=tuple(allow or ()),
        force=force,
        **named,
    )
    if sys.stdin.isatty() and not json_ and _lacks(answers):
        answers = with_questions(answers, _asking(context), set(named))
    check_complete(answers, set(named))
    terminal = terminal_of(context)
    from evomerge.new_spec.spec_folder import new_search

    _print(terminal, new_search(answers), json_)


def _named(**given: Any) -> dict[str, Any]:
    """The flags that were given, of those that have a default of their own."""
    return {name: value for name, value in given.items() if value is not None}


def _example(context: typer.Context, name: str, given: dict[str, Any], as_json: bool) -> None:
    others = set(given) - {"example", "out", "json_"}
    if given["out"] in (None, "-") or any(given[each] for each in others):
        raise InvalidInput(f"--example {name} is a whole search: give --out FOLDER beside it, and nothing else")
    terminal = terminal_of(context)
    from evomerge.new_spec.example_search import copy_example

    _print(terminal, copy_example(name, Path(given["out"])), as_json)


def _lacks(answers: Any) -> bool:
    """Whether an answer is missing that has no default."""
    return answers.base is None or not answers.experts or not (answers.evaluator or answers.tasks)


def _asking(context: typer.Context) -> Any:
    """A function that asks a question on standard error; standard output may be the spec's."""
    from rich.prompt import Prompt

    from evomerge.report.terminal import Terminal

    console = context.ensure_object(Terminal).console

    def ask(question: str, default: str) -> str:
        # The questions hold no markup; brackets in them would be read as such.
        return Prompt.ask(question, console=console, default=default, show_default=bool(default))

    return ask


def _print(terminal: Terminal, document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.document(document)
        return
    for note in document["notes"]:
        terminal.tell(f"note: {note}")
    if document["search"] is None:
        terminal.write(document["text"].rstrip("\n"))
    else:
        terminal.write(f"written: {document['search']}\nnow: evomerge check {document['search']}")
