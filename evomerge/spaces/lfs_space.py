"""The flat genome of layer-wise fusion over the tensors and sources of one search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.catalogue import TensorCatalogue
from evomerge.genomes.genes import require_names
from evomerge.genomes.genome_settings import LFS_METHODS, LfsSettings
from evomerge.genomes.pairs import score_of
from evomerge.recipe import Rule
from evomerge.spaces.bound_genome import GenomePart, divide_by_filters, genome_rule
from evomerge.spaces.groups import TensorGroup
from evomerge.spaces.lfs import (
    lfs_decode,
    lfs_distributions,
    lfs_initial,
    linear_gene,
    mask_rate_gene,
    method_gene,
    slerp_gene,
    task_weight_gene,
    ties_lambda_gene,
)


@dataclass(frozen=True, kw_only=True)
class LfsSpace:
    """See `BoundGenome`. The initial design is each source alone; samplers start from the uniform soup.

    Attributes:
        sources: their names, in the order of per-source values.
        layers: of the model.
        tensors: those of every group and part that has some.
    """

    settings: LfsSettings
    semantics: str
    sources: tuple[str, ...]
    layers: int
    tensors: Mapping[GenomePart, TensorGroup]

    @property
    def groups(self) -> tuple[TensorGroup, ...]:
        return tuple(self.tensors.values())

    @cached_property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        return lfs_distributions(*self._shape)

    @cached_property
    def centre(self) -> Mapping[str, Any]:
        return {gene: _middle(distribution) for gene, distribution in self.distributions.items()}

    @cached_property
    def initial(self) -> Sequence[Mapping[str, Any]]:
        return lfs_initial(*self._shape)

    @property
    def _shape(self) -> tuple[tuple[str, ...], int, int, tuple[str, ...]]:
        return self.sources, self.layers, self.settings.granularity, self.settings.filters

    def rules(self, params: Mapping[str, Any]) -> tuple[Rule, ...]:
        decoded = lfs_decode(params, *self._shape)
        return tuple(
            genome_rule(
                decoded[group].method,
                tensors.tensors,
                decoded[group].sources,
                decoded[group].parameters[part],
                options=self.settings.options.get(decoded[group].method, {}),
                semantics=self.semantics,
            )
            for (group, part), tensors in self.tensors.items()
        )

    def nearest(self, rules: Mapping[str, Rule]) -> dict[str, Any] | None:
        """Genes of methods that are not chosen are those of the initial design."""
        genes = dict(self.initial[0])
        for group in range(self.layers // self.settings.granularity):
            parts = {part: tensors for (of, part), tensors in self.tensors.items() if of == group}
            found = [[rules.get(name) for name in tensors.tensors] for tensors in parts.values()]
            method = next((each.method for some in found for each in some if each is not None), "")
            if method not in LFS_METHODS:
                return None
            genes[method_gene(group)] = method
            for part, given in zip(parts, found, strict=True):
                if any(
                    rule is None or rule.method != method or set(rule.sources) - set(self.sources) for rule in given
                ):
                    return None
                genes.update(self._genes_of(group, part, method, [rule for rule in given if rule is not None]))
        return genes

    def _genes_of(self, group: int, part: str, method: str, rules: Sequence[Rule]) -> Iterator[tuple[str, float]]:
        """(gene, value) of one part under the method of its rules, averaged over them."""
        if method == "linear":
            weights = [math.fsum(_of(rule, source) for rule in rules) / len(rules) for source in self.sources]
            largest = max(1.0, *weights)  # only ratios matter
            for source, weight in zip(self.sources, weights, strict=True):
                yield linear_gene(source, group, part), max(weight / largest, 0.0)
        elif method == "slerp":
            for source in self.sources:
                scores = [score_of(source, rule.sources, _mean(rule, "t"), low=0.0, high=1.0) for rule in rules]
                yield slerp_gene(source, group, part), math.fsum(scores) / len(scores)
        elif method == "task_arithmetic":
            yield task_weight_gene(group, part), self._inside(task_weight_gene(group, part), rules, "weight")
        else:
            yield mask_rate_gene(group, part), self._inside(mask_rate_gene(group, part), rules, "density")
            yield ties_lambda_gene(group, part), self._inside(ties_lambda_gene(group, part), rules, "lambda")

    def _inside(self, gene: str, rules: Sequence[Rule], parameter: str) -> float:
        value = math.fsum(_mean(rule, parameter) for rule in rules) / len(rules)
        distribution = self.distributions[gene]
        assert isinstance(distribution, FloatDistribution)  # all genes but the methods
        return min(max(1 - value if parameter == "density" else value, distribution.low), distribution.high)


def bind_lfs(settings: LfsSettings, catalogue: TensorCatalogue, sources: Sequence[str], *, semantics: str) -> LfsSpace:
    """Give the genome its tensors and sources.

    Raises:
        InvalidInput: fewer than two sources, of which slerp could take no pair; or see `divide_by_filters`.
    """
    require_names("sources", sources, minimum=2)
    return LfsSpace(
        settings=settings,
        semantics=semantics,
        sources=tuple(sources),
        layers=catalogue.depth,
        tensors=divide_by_filters(catalogue, settings.granularity, settings.filters),
    )


def _of(rule: Rule, source: str) -> float:
    """The weight of a source; 0 for one that the rule does not merge."""
    weights = rule.parameters["weight"]
    assert isinstance(weights, tuple)  # one per source
    return weights[rule.sources.index(source)] if source in rule.sources else 0.0


def _mean(rule: Rule, parameter: str) -> float:
    value = rule.parameters[parameter]
    return math.fsum(value) / len(value) if isinstance(value, tuple) else value


def _middle(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution)  # the genome has no other kind
    return (distribution.low + distribution.high) / 2
