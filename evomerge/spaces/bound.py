"""A search space bound to a model: Optuna distributions, the centre of the box, and params -> recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.catalogue import TensorCatalogue
from evomerge.errors import InvalidInput
from evomerge.genomes.arrival import arrival_order, key_distributions
from evomerge.genomes.pairs import SCORE, chosen_pair, takes_scores
from evomerge.messages import some
from evomerge.methods import method_info, resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule, source_role
from evomerge.spaces.bound_genome import BoundGenome
from evomerge.spaces.genomes import bind_genome
from evomerge.spaces.groups import TensorGroup, divide
from evomerge.spaces.layer_paths import BoundPaths, bind_paths
from evomerge.spaces.space import MethodSpace, Range, SearchSpace


@dataclass(frozen=True)
class Infeasible:
    """A proposal that is refused without being scored: the reason, and a number by which a worse one is told apart."""

    reason: str
    excess: float


@dataclass(frozen=True, kw_only=True)
class BoundSpace:
    """A search space with its tensors and sources: what may be proposed, and the recipe of each proposal.

    Attributes:
        space: the space as its file defines it.
        base: the base model; sources: what is merged, in the order of per-source values.
        groups: the tensors of each group.
        distributions: param -> Optuna distribution, in a fixed order.
        conditions: param -> (parent param, the parent's values for which it exists).
        genome: what decides where the space is the genome of another search.
        paths: what decides where it is layer paths.
        centre: the middle of the box, of a choice its first value; or where the genome has it, or the first path.
        dtype, seed: passed on to every recipe.
        files: role -> digest of the files that rules may need, which the study has measured before its first trial.
    """

    space: SearchSpace
    base: ModelRef
    sources: tuple[ModelRef, ...]
    groups: tuple[TensorGroup, ...]
    distributions: Mapping[str, BaseDistribution]
    conditions: Mapping[str, tuple[str, tuple[str, ...]]]
    dtype: str
    seed: int
    genome: BoundGenome | None = None
    paths: BoundPaths | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        return len(self.distributions)

    @property
    def active_dimensions(self) -> int:
        """The largest number of params that exist at a time: of each choice, the value with most."""
        children = Counter((parent, value) for parent, values in self.conditions.values() for value in values)
        largest: dict[str, int] = {}
        for (parent, _), count in children.items():
            largest[parent] = max(largest.get(parent, 0), count)
        return self.dimensions - len(self.conditions) + sum(largest.values())

    @property
    def conditional(self) -> bool:
        return bool(self.conditions)

    @property
    def first_step(self) -> float:
        """A sampler's first steps from the centre, as a share of the usual ones."""
        return 1.0

    @property
    def ingredients(self) -> int:
        """Number of merges that its recipes may name as sources."""
        return 0

    @cached_property
    def centre(self) -> dict[str, Any]:
        if self.genome is not None or self.paths is not None:
            return dict(self.genome.centre if self.genome is not None else self.initial[0])
        values = {name: _middle(distribution) for name, distribution in self.distributions.items()}
        return {name: value for name, value in values.items() if self._is_active(name, values)}

    @cached_property
    def initial(self) -> tuple[Mapping[str, Any], ...]:
        """The params that are scored first: the centre, those that the genome's authors begin with, or the own stack of
        each source."""
        if self.paths is not None:
            return tuple(self.paths.starts())
        return (self.centre,) if self.genome is None else tuple(self.genome.initial)

    def active(self, params: Mapping[str, Any]) -> Iterator[str]:
        """The params that exist given those already chosen, in order; a parent comes before its children."""
        return (name for name in self.distributions if self._is_active(name, params))

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Whether every param that exists has a value, so that the params can be decoded."""
        return all(name in params for name in self.active(params))

    def decode(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of the params. Pure: the same params always give the same recipe."""
        missing = [name for name in self.active(params) if name not in params]
        if missing:
            raise InvalidInput(f"params are incomplete: {some(missing)} missing of {self.dimensions}")
        if self.paths is not None:
            return self.paths.recipe(params, self.base, self.sources, dtype=self.dtype, seed=self.seed)
        if self.genome is not None:
            rules = self.genome.rules(params)
        else:
            rules = tuple(self._rule(group, params) for group in self.groups)
        return Recipe(
            base=self.base,
            sources=self.sources,
            rules=rules,
            dtype=self.dtype,
            seed=self.seed,
            files=self._files_of(rules),
            space=self.space.space,
        )

    def _files_of(self, rules: Sequence[Rule]) -> dict[str, str]:
        """The files that these rules take: a recipe names no other."""
        roles = {
            source_role(role, source)
            for rule in rules
            for role in method_info(rule.method).roles
            for source in rule.sources
        }
        return {role: digest for role, digest in self.files.items() if role in roles}

    def infeasible(self, recipe: Recipe) -> Infeasible | None:
        """Reason and extent where a recipe of this space is not to be scored: its path is over the budget of depth."""
        if self.paths is None or not (excess := self.paths.excess(recipe.layers)):
            return None
        return Infeasible(self.paths.refusal(recipe.layers), excess)

    def method_of(self, group: TensorGroup, params: Mapping[str, Any]) -> str:
        """The method by which a group is merged."""
        methods = list(self.space.methods)
        return methods[0] if len(methods) == 1 else str(params[method_param(self.space, group)])

    def chosen_with(self, group: TensorGroup) -> tuple[TensorGroup, ...]:
        """The groups that choose their method, or the pair of sources, together with this one; it is among them."""
        if not self.space.groups.one_method:
            return (group,)
        return tuple(each for each in self.groups if each.depth == group.depth)

    def _is_active(self, name: str, params: Mapping[str, Any]) -> bool:
        parent, values = self.conditions.get(name, (None, ()))
        return parent is None or params.get(parent) in values

    def _rule(self, group: TensorGroup, params: Mapping[str, Any]) -> Rule:
        method = self.method_of(group, params)
        chosen = self.space.methods[method]
        names = tuple(source.name for source in self.sources)
        values = {
            parameter: _value(self.space, method, parameter, value, group=group, sources=names, params=params)
            for parameter, value in chosen.parameters.items()
        }
        if SCORE in values:
            own = values.pop(SCORE)
            pair, values["t"] = chosen_pair([*self._scores(group, method, params)], own)
            names = tuple(names[position] for position in pair)
        resolved = resolve_parameters(method, values, n_sources=len(names))
        options = resolve_options(
            method, chosen.options, semantics=self.space.semantics, scope="layer_group", n_sources=len(names)
        )
        order = names
        if chosen.order == "searched":
            order = arrival_order(key_prefix(self.space, method), names, params)
        parameters = {
            name: tuple(value[names.index(each)] for each in order) if isinstance(value, tuple) else value
            for name, value in _frozen(resolved).items()
        }
        return Rule(tensors=group.tensors, method=method, sources=order, parameters=parameters, options=options)

    def _scores(self, group: TensorGroup, method: str, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
        names, value = [source.name for source in self.sources], self.space.methods[method].parameters[SCORE]
        for each in self.chosen_with(group):
            yield _value(self.space, method, SCORE, value, group=each, sources=names, params=params)


def bind(
    space: SearchSpace,
    catalogue: TensorCatalogue,
    base: ModelRef,
    experts: Sequence[ModelRef],
    *,
    dtype: str,
    seed: int,
) -> BoundSpace:
    """Give a space its tensors and sources.

    Raises:
        InvalidInput: a method cannot merge this number of sources, or the model has no layers to divide by.
    """
    sources = (base, *experts) if space.sources == "all" else tuple(experts)
    names = [source.name for source in sources]
    for method in space.methods:
        _check_number(space, method, names)
    bound = partial(BoundSpace, space=space, base=base, sources=sources, dtype=dtype, seed=seed)
    if space.layers is not None:
        paths = bind_paths(space, catalogue, base.name, names)
        return bound(groups=(), distributions=paths.distributions(), conditions={}, paths=paths)
    if space.genome is not None:
        genome = bind_genome(space.genome, catalogue, names, semantics=space.semantics)
        return bound(groups=genome.groups, distributions=genome.distributions, conditions={}, genome=genome)
    groups = divide(catalogue, space.groups)
    distributions, conditions = _box(space, groups, names)
    if not distributions:
        raise InvalidInput(f"search space {space.name!r} has nothing to search: every parameter is fixed")
    return bound(groups=groups, distributions=distributions, conditions=conditions)


def _box(
    space: SearchSpace, groups: Sequence[TensorGroup], sources: Sequence[str]
) -> tuple[dict[str, BaseDistribution], dict[str, tuple[str, tuple[str, ...]]]]:
    """The parameters of all groups, and those that exist only for some methods: name -> (parent, its values)."""
    distributions: dict[str, BaseDistribution] = {}
    conditions: dict[str, tuple[str, tuple[str, ...]]] = {}
    for group, knot in [(each, knot) for each in groups for knot, _ in each.knots]:
        if len(space.methods) > 1:
            distributions.setdefault(method_param(space, group), CategoricalDistribution(tuple(space.methods)))
        for method, chosen in space.methods.items():
            for param, distribution in _genes(space, method, chosen, knot=knot, sources=sources):
                distributions.setdefault(param, distribution)
                if len(space.methods) > 1 and param.startswith(_join(knot, method)):
                    conditions[param] = (method_param(space, group), (method,))
    return distributions, conditions


def _check_number(space: SearchSpace, method: str, sources: Sequence[str]) -> None:
    wanted = method_info(method).sources
    scored = SCORE in space.methods[method].parameters
    if wanted is None or len(sources) == wanted or (scored and len(sources) > wanted):
        return
    further = "" if scored else f", or search {method}'s {SCORE}" if takes_scores(method_info(method)) else ""
    raise InvalidInput(
        f"search space {space.name!r}: {method} merges {'at least' if scored else 'exactly'} {wanted} sources, but the "
        f"spec gives {len(sources)} ({', '.join(sources)}); name {wanted} or use another space{further}"
    )


def method_param(space: SearchSpace, group: TensorGroup) -> str:
    """The name of the param by which a group chooses its method."""
    return _join(group.depth if space.groups.one_method else group.knots[0][0], "method")


def _genes(
    space: SearchSpace, method: str, chosen: MethodSpace, *, knot: str, sources: Sequence[str]
) -> Iterator[tuple[str, BaseDistribution]]:
    if chosen.order == "searched":
        yield from key_distributions(key_prefix(space, method), sources)
    for parameter, value in chosen.parameters.items():
        if isinstance(value, Range):
            for owner in owners_of(method, parameter, value, sources):
                name = param_name(space, method, parameter, value, knot=knot, source=owner)
                yield name, _distribution(value, len(sources))


def key_prefix(space: SearchSpace, method: str) -> str:
    """First part of the names of the params that are keys of an order: the method, where methods are chosen."""
    return method if len(space.methods) > 1 else ""


def owners_of(method: str, parameter: str, value: Range, sources: Sequence[str]) -> Sequence[str | None]:
    """The sources whose values are searched: all, or all but the first for ratios to it; [None] for a shared value."""
    if not _per_source(method, parameter):
        return (None,)
    return sources[1:] if value.log_ratio else sources


def _per_source(method: str, parameter: str) -> bool:
    return parameter == SCORE or any(known.name == parameter for known in method_info(method).per_source)


def param_name(space: SearchSpace, method: str, parameter: str, value: Range, *, knot: str, source: str | None) -> str:
    """The name of a param, such as "layers0-1.attention.reverse.weight"; where methods are chosen, with the method."""
    return _join(
        "" if value.shared in {"groups", "all"} else knot,
        method if len(space.methods) > 1 else "",
        "" if source is None or value.shared in {"sources", "all"} else source,
        "log_ratio" if value.log_ratio else parameter,
    )


def _distribution(value: Range, n_sources: int) -> BaseDistribution:
    if value.choices is not None:
        return CategoricalDistribution(value.choices)
    if value.log_ratio is not None:
        return FloatDistribution(-value.log_ratio, value.log_ratio)
    if value.low is None or value.high is None:
        raise InvalidInput(f"the range {value} has no ends")
    scale = n_sources if value.divided_by_sources else 1
    return FloatDistribution(value.low / scale, value.high / scale, log=value.log)


def _value(
    space: SearchSpace,
    method: str,
    parameter: str,
    value: Range | float,
    *,
    group: TensorGroup,
    sources: Sequence[str],
    params: Mapping[str, Any],
) -> Any:
    """The value of one parameter in one group: a number, or one number per source."""
    if isinstance(value, float):
        return value
    read = []
    for owner in owners_of(method, parameter, value, sources):
        values = [
            (params[param_name(space, method, parameter, value, knot=knot, source=owner)], share)
            for knot, share in group.knots
        ]
        read.append(_interpolate(value, values))
    if value.log_ratio:
        return _softmax([0.0, *read])
    return read if _per_source(method, parameter) else read[0]


def _interpolate(value: Range, shares: list[tuple[Any, float]]) -> Any:
    if len(shares) == 1:
        return shares[0][0]
    if value.log:
        return math.exp(math.fsum(share * math.log(number) for number, share in shares))
    return math.fsum(share * number for number, share in shares)


def _softmax(logs: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(logs)) for x in logs]
    return [x / math.fsum(exponentials) for x in exponentials]


def _middle(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution)  # bind makes no other kind
    if distribution.log:
        return math.sqrt(distribution.low * distribution.high)
    return (distribution.low + distribution.high) / 2


def _frozen(values: Mapping[str, Any]) -> dict[str, float | tuple[float, ...]]:
    return {name: tuple(value) if isinstance(value, list | tuple) else float(value) for name, value in values.items()}


def _join(*labels: str) -> str:
    return ".".join(label for label in labels if label)
