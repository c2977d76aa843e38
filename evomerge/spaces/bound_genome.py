"""The genome of another search bound to a model: params that its authors' rules turn into a merge.

Its genes keep their authors' names and ranges; those without effect stay free, and folds and clamps are as published.
It is for reproductions: a space of methods and groups has the same merges and no such genes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.distributions import BaseDistribution

from evomerge.catalogue import TensorCatalogue, TensorEntry
from evomerge.errors import InvalidInput
from evomerge.genomes.genes import groups_of, parts_of
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import Rule
from evomerge.spaces.groups import TensorGroup

__all__ = ["BoundGenome", "GenomePart", "divide_by_filters", "genome_rule"]

GenomePart = tuple[int, str]
"""(Number of the group of layers, part): the key of the tensors that share the genes of a part."""


class BoundGenome(Protocol):
    """A genome over the tensors and sources of one search.

    Attributes:
        groups: the tensors that share genes.
        distributions: gene -> distribution, in the order of the genome.
        centre: where samplers start.
        initial: params that are scored first.
    """

    @property
    def groups(self) -> tuple[TensorGroup, ...]: ...

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]: ...

    @property
    def centre(self) -> Mapping[str, Any]: ...

    @property
    def initial(self) -> Sequence[Mapping[str, Any]]: ...

    def rules(self, params: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The rules of a recipe. Pure."""
        ...

    def nearest(self, rules: Mapping[str, Rule]) -> dict[str, Any] | None:
        """The genes whose rules come closest to these, by tensor; None where the genome has nothing like them."""
        ...


def divide_by_filters(
    catalogue: TensorCatalogue, granularity: int, filters: Sequence[str]
) -> dict[GenomePart, TensorGroup]:
    """The tensors of every group and part that has some, in order of depth, then part.

    Outside of the layers all is of the part "base": embeddings of the first group, final norm and head of the last.

    Args:
        granularity: layers per group; 0 for one group.

    Raises:
        InvalidInput: the model has no layers, or no number that the granularity divides, or a filter has no tensor.
    """
    if catalogue.depth == 0:
        raise InvalidInput("this genome is for layers, but no tensor name has a layer number")
    parts, size = parts_of(filters), granularity or catalogue.depth
    last = groups_of(catalogue.depth, size) - 1
    members: dict[GenomePart, list[str]] = defaultdict(list)
    for entry in catalogue.mergeable:
        members[_place(entry, size, last=last, filters=filters)].append(entry.name)
    if empty := [each for each in filters if not any(part == each for _, part in members)]:
        raise InvalidInput(
            f"the filter {empty[0]!r} is in no tensor name that an earlier filter has left; names are such as "
            f"{next((entry.name for entry in catalogue.mergeable if entry.layer is not None), '')!r}"
        )
    order = sorted(members, key=lambda key: (key[0], parts.index(key[1])))
    return {(group, part): _group(group, part, members[group, part], size=size) for group, part in order}


def _place(entry: TensorEntry, size: int, *, last: int, filters: Sequence[str]) -> GenomePart:
    if entry.layer is None:
        return (0 if entry.part == "embedding" else last), "base"
    return entry.layer // size, next((each for each in filters if each in entry.name), "base")


def _group(group: int, part: str, names: Sequence[str], *, size: int) -> TensorGroup:
    first, end = group * size, (group + 1) * size - 1
    depth = f"layers{first}-{end}" if end > first else f"layer{first}"
    label = f"{depth}.{part}"
    return TensorGroup(label, tuple(sorted(names)), ((label, 1.0),), depth=depth)


def genome_rule(
    method: str,
    tensors: Sequence[str],
    sources: Sequence[str],
    values: Mapping[str, Any],
    *,
    options: Mapping[str, Any],
    semantics: str,
) -> Rule:
    """A rule with all parameters and options of its method."""
    resolved = resolve_parameters(method, values, n_sources=len(sources))
    return Rule(
        tensors=tuple(tensors),
        method=method,
        sources=tuple(sources),
        parameters={name: value if isinstance(value, tuple) else float(value) for name, value in resolved.items()},
        options=resolve_options(method, options, semantics=semantics, scope="layer_group", n_sources=len(sources)),
    )
