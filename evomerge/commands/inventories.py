"""Commands that list spaces, evaluators, merge methods and settings."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.commands.completion import evaluator_names, method_names, section_names, space_names
from evomerge.commands.options import Json, print_document, terminal_of
from evomerge.errors import InvalidInput


def spaces(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(autocompletion=space_names)] = None,
    json_: Json = False,
) -> None:
    """The search spaces that ship with evomerge, or one of them."""
    terminal = terminal_of(context)
    from evomerge.report.inventory import describe_spaces, inventory_text

    print_document(terminal, describe_spaces(name), json_, inventory_text)


def evaluators(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(autocompletion=evaluator_names)] = None,
    json_: Json = False,
) -> None:
    """The evaluators that are installed, or one of them."""
    terminal = terminal_of(context)
    from evomerge.report.inventory import describe_evaluators, inventory_text

    print_document(terminal, describe_evaluators(name), json_, inventory_text)


def methods(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(autocompletion=method_names)] = None,
    json_: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The reference table of all, as docs/methods.md.")
    ] = False,
) -> None:
    """The merge methods, or one with formula, parameters, options, needs, cost, evidence, paper and an example."""
    terminal = terminal_of(context)
    from evomerge.report.inventory import describe_methods, inventory_text
    from evomerge.report.method_table import method_table

    if markdown:
        if name is not None or json_:
            raise InvalidInput("--markdown is the table of all methods; leave the name and --json out")
        terminal.write(method_table().rstrip("\n"))
        return
    print_document(terminal, describe_methods(name), json_, inventory_text)


def reference(
    context: typer.Context,
    section: Annotated[str | None, typer.Argument(autocompletion=section_names)] = None,
    json_: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page of all, as docs/reference.md.")] = False,
) -> None:
    """The settings of search.yaml, packs, spaces, samplers and baselines, or a section with values and defaults."""
    terminal = terminal_of(context)
    from evomerge.report.setting_page import describe_settings, setting_page, settings_text

    if markdown:
        if section is not None or json_:
            raise InvalidInput("--markdown is the page of all sections; leave the section and --json out")
        terminal.write(setting_page().rstrip("\n"))
        return
    print_document(terminal, describe_settings(section), json_, settings_text)
