"""The genome of mergekit-evolve over the tensors and sources of one search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution

from evomerge.catalogue import TensorCatalogue
from evomerge.genomes.genes import parts_of
from evomerge.genomes.genome_settings import EVOLUTIONARY_PARAMETERS, EvolutionarySettings
from evomerge.genomes.pairs import score_of
from evomerge.recipe import Rule
from evomerge.spaces.bound_genome import GenomePart, divide_by_filters, genome_rule
from evomerge.spaces.evolutionary import evo_decode, evo_initial, evo_shape
from evomerge.spaces.groups import TensorGroup


@dataclass(frozen=True, kw_only=True)
class EvolutionarySpace:
    """See `BoundGenome`. Samplers start from the authors' first genome, and score it first.

    Genes are named "group0.SOURCE.PART.PARAMETER", under `smooth` "point0.…".

    Attributes:
        sources: their names, in the order of per-source values.
        layers: of the model.
        tensors: those of every group and part that has some; under `smooth` every layer is a group.
    """

    settings: EvolutionarySettings
    semantics: str
    sources: tuple[str, ...]
    layers: int
    tensors: Mapping[GenomePart, TensorGroup]

    @property
    def groups(self) -> tuple[TensorGroup, ...]:
        return tuple(self.tensors.values())

    @cached_property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        return dict.fromkeys(self.centre, FloatDistribution(-self.settings.limit, self.settings.limit))

    @cached_property
    def centre(self) -> Mapping[str, Any]:
        return dict(zip(self._genes(), evo_initial(*self._shape), strict=True))

    @property
    def initial(self) -> Sequence[Mapping[str, Any]]:
        return (self.centre,)

    @property
    def _shape(self) -> tuple[str, tuple[str, ...], int, int, tuple[str, ...]]:
        settings = self.settings
        return settings.method, self.sources, self.layers, settings.layer_granularity, settings.filters

    def _genes(self) -> Iterator[str]:
        groups, *_ = evo_shape(*self._shape)
        parts, parameters = parts_of(self.settings.filters), EVOLUTIONARY_PARAMETERS[self.settings.method]
        order = product(range(groups), self.sources, parts, parameters)
        return (self._gene(*each) for each in order)

    def _gene(self, group: int, source: str, part: str, parameter: str) -> str:
        return f"{'point' if self.settings.smooth else 'group'}{group}.{source}.{part}.{parameter}"

    def rules(self, params: Mapping[str, Any]) -> tuple[Rule, ...]:
        settings = self.settings
        decoded = evo_decode(
            [params[gene] for gene in self.distributions],
            *self._shape,
            allow_negative_weights=settings.allow_negative_weights,
            smooth=settings.smooth,
        )
        rules = []
        for (group, part), tensors in self.tensors.items():
            chosen = decoded[0 if settings.smooth else group]
            values = chosen.parameters[part]
            if settings.smooth:
                values = {name: [self._at(group, points) for points in curves] for name, curves in values.items()}
            rules.append(self._rule(tensors, chosen.sources, values))
        return tuple(rules)

    def _rule(self, tensors: TensorGroup, sources: Sequence[str], values: Mapping[str, Any]) -> Rule:
        method = self.settings.method
        if method == "dare_ties":  # the density of DARE; what it has left is not trimmed again
            values = {"weight": values["weight"], "drop_rate": [1 - kept for kept in values["density"]], "density": 1.0}
        return genome_rule(
            method, tensors.tensors, sources, values, options=self.settings.options, semantics=self.semantics
        )

    def _at(self, layer: int, points: Sequence[float]) -> float:
        """The value of a layer, between the control points around it."""
        place = layer * (len(points) - 1) / max(self.layers - 1, 1)
        left = min(int(place), max(len(points) - 2, 0))
        right = min(left + 1, len(points) - 1)
        return points[left] + (place - left) * (points[right] - points[left])

    def nearest(self, rules: Mapping[str, Rule]) -> dict[str, Any] | None:
        """None also under `smooth`, where control points would have to be fitted."""
        if self.settings.smooth:
            return None
        genes = dict(self.centre)
        for (group, part), tensors in self.tensors.items():
            found = [rule for name in tensors.tensors if (rule := rules.get(name)) is not None]
            if len(found) < len(tensors.tensors):
                return None
            if any(rule.method != self.settings.method or set(rule.sources) - set(self.sources) for rule in found):
                return None
            for source, parameter in product(self.sources, EVOLUTIONARY_PARAMETERS[self.settings.method]):
                value = math.fsum(self._read(rule, source, parameter) for rule in found) / len(found)
                limit = self.settings.limit
                genes[self._gene(group, source, part, parameter)] = min(max(value, -limit), limit)
        return genes

    def _read(self, rule: Rule, source: str, parameter: str) -> float:
        """The gene of one source that gives a rule's value."""
        if parameter == "score":
            t = rule.parameters["t"]
            assert isinstance(t, float)  # shared by the two
            return score_of(source, rule.sources, t, low=0.0, high=self.settings.limit)
        name = "drop_rate" if (rule.method, parameter) == ("dare_ties", "density") else parameter
        values = rule.parameters[name]
        assert isinstance(values, tuple)  # one per source
        value = values[rule.sources.index(source)] if source in rule.sources else 0.0
        return 1 - value if name == "drop_rate" else value


def bind_evolutionary(
    settings: EvolutionarySettings, catalogue: TensorCatalogue, sources: Sequence[str], *, semantics: str
) -> EvolutionarySpace:
    """Give the genome its tensors and sources.

    Raises:
        InvalidInput: see `divide_by_filters` and `evo_shape`.
    """
    granularity = settings.layer_granularity
    tensors = divide_by_filters(catalogue, granularity, settings.filters)
    evo_shape(settings.method, sources, catalogue.depth, layer_granularity=granularity, filters=settings.filters)
    if settings.smooth:
        tensors = divide_by_filters(catalogue, 1, settings.filters)
    return EvolutionarySpace(
        settings=settings, semantics=semantics, sources=tuple(sources), layers=catalogue.depth, tensors=tensors
    )
