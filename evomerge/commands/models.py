"""Commands on models without a search: distances between them, and experts inside one merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.commands.options import Json, allowed_of, print_document, terminal_of
from evomerge.errors import InvalidInput

_PATTERN = typer.Option(help="Glob of the experts' tensors, as in 'blocks.*.attn.{expert}.*'; repeatable.")


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
    terminal = terminal_of(context)
    from evomerge.recipe import ModelRef
    from evomerge.spec import load_spec
    from evomerge.weight_distances import compare_experts, compare_pairs, compare_weights, distances_table, pairs_table

    if pattern or experts is not None:
        if first is None or second is not None or spec is not None or not pattern or experts is None:
            raise InvalidInput("experts are compared inside one model: give MODEL --pattern PATTERN --experts v,l")
        document = compare_experts(first, pattern, experts.split(","), base=base, keep=keep)
        print_document(terminal, document, json_, pairs_table)
        return
    if first is not None and second is None and spec is None and first.endswith((".yaml", ".yml")):
        spec, first = Path(first), None
    given = None if spec is None else load_spec(spec)
    sources = {} if given is None else {ref.name: ref for ref in (given.base.ref, *given.expert_refs)}
    allow = () if given is None else given.allow
    origin = None if base is None else sources.get(base, ModelRef(base, base))
    if first is None and sources:
        pairs = [ref for name, ref in sources.items() if name != base]
        print_document(terminal, compare_pairs(pairs, base=origin, keep=keep, allow=allow), json_, pairs_table)
        return
    if first is None or second is None:
        raise InvalidInput(
            "give two models, or --spec SPEC for every two of its sources, or --pattern for experts of one"
        )
    one, other = (sources.get(name, ModelRef(name, name)) for name in (first, second))
    print_document(terminal, compare_weights(one, other, base=origin, keep=keep, allow=allow), json_, distances_table)


def extend_vocabulary(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Directory or hub id of the base.")],
    experts: Annotated[list[str], typer.Argument(help="Directories or hub ids of models with tokens of their own.")],
    out: Annotated[Path, typer.Option(help="Folder that is made.")],
    allow: Annotated[list[str] | None, typer.Option(help="pickle_weights or remote_code; repeatable.")] = None,
    json_: Json = False,
) -> None:
    """Write the base with the tokens that experts have added, for merges that have them all.

    A new token has the mean of the rows of the experts that have it. Name the folder as the base of a search and write
    `tokenizer: base`.
    """
    terminal = terminal_of(context)
    from evomerge.extended_vocabulary import extended_base, extension_text

    document = extended_base(base, experts, out, allow=allowed_of(allow or ()))
    print_document(terminal, document, json_, extension_text)


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
    terminal = terminal_of(context)
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
    print_document(terminal, merge_checkpoint(request, out), json_, tower_text)
