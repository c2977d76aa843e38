"""A recipe as a point of a search space: the inverse of `BoundSpace.decode`, as far as there is one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.genomes.arrival import key_params, keys_of
from evomerge.genomes.pairs import SCORE, score_of, takes_scores
from evomerge.methods import METHODS, method_info
from evomerge.recipe import Recipe, Rule
from evomerge.spaces.bound import BoundSpace, key_prefix, method_param, owners_of, param_name
from evomerge.spaces.control_points import Equation, solve
from evomerge.spaces.groups import TensorGroup
from evomerge.spaces.space import Range

_SMALLEST = 1e-6  # share of a source that has none, where shares are searched as logarithms of ratios

MeanWeights = Mapping[str, Mapping[str, float]]
"""Tensor name -> source name -> its weight in a merge that is a sum of the sources."""


def nearest_params(space: BoundSpace, recipe: Recipe, trained: MeanWeights | None = None) -> dict[str, Any] | None:
    """The params whose recipe comes closest to this one, or None where the space has nothing like it.

    A recipe of the space itself comes back exactly, up to rounding. Others are averaged over the tensors of each group,
    and a value outside of a range is moved to its end. Control points of a smooth space are those whose interpolated
    values have the least sum of squared errors. Weighted averages, task arithmetic and trained coefficients (their mean
    in each group) can stand for each other.

    Args:
        trained: the weights of tensors with trained coefficients.

    Raises:
        InvalidInput: the recipe is a path of more layers than the space allows.
    """
    known = {space.base.name, *(source.name for source in space.sources)}
    if any(set(rule.sources) - known for rule in recipe.rules):
        return None  # it merges models that this search does not have
    if space.paths is not None:
        return space.paths.params_of(recipe)
    if recipe.layers:
        return None
    if space.genome is not None:
        return space.genome.nearest({**_rules(recipe), **_averages(trained or {})})
    rules = _rules(recipe)
    params: dict[str, Any] = dict(_methods(space, rules))
    if any(_is_another_pair(space, group, params, rules) for group in space.groups):
        return None
    equations: list[Equation] = []
    for group in space.groups:
        for shares, value in _values(space, group, params, rules=rules, trained=trained or {}):
            if value is None:
                return None
            equations.append(Equation(shares, value))
    found = solve(equations, space.distributions)
    params.update((name, found[name]) for name in space.active(params) if name in found)
    ordered = {name: params[name] for name in space.distributions if name in params}
    return ordered if space.is_complete(ordered) else None


def _rules(recipe: Recipe) -> dict[str, Rule]:
    return {tensor: rule for rule in recipe.rules for tensor in rule.tensors}


def _averages(trained: MeanWeights) -> dict[str, Rule]:
    """Trained coefficients as averages with their mean weights."""
    return {
        tensor: Rule(
            tensors=(tensor,), method="linear", sources=tuple(weights), parameters={"weight": tuple(weights.values())}
        )
        for tensor, weights in trained.items()
    }


def _methods(space: BoundSpace, rules: Mapping[str, Rule]) -> Iterator[tuple[str, str]]:
    """(param, method) of every group where methods are searched: the recipe's own if the space has it, or its first."""
    allowed = list(space.space.methods)
    if len(allowed) == 1:
        return
    for group in space.groups:
        tensors = [tensor for each in space.chosen_with(group) for tensor in each.tensors]
        found = {rules[tensor].method for tensor in tensors if tensor in rules}
        yield method_param(space.space, group), next((method for method in allowed if method in found), allowed[0])


def _is_another_pair(
    space: BoundSpace, group: TensorGroup, params: Mapping[str, Any], rules: Mapping[str, Rule]
) -> bool:
    """Whether a tensor of the group is merged of two sources that the group's method, one for two, never takes so."""
    method = space.method_of(group, params)
    info, names = method_info(method), [source.name for source in space.sources]
    if info.sources != 2:
        return False
    pairs = {rules[name].sources for name in group.tensors if name in rules and rules[name].method == method}
    has_order = not (takes_scores(info) or info.relative_weights)  # the others can be written for either order
    return any(set(pair) - set(names) or (has_order and _is_reversed(pair, names)) for pair in pairs)


def _is_reversed(pair: Sequence[str], names: Sequence[str]) -> bool:
    return list(pair) != [name for name in names if name in pair]


def _values(
    space: BoundSpace, group: TensorGroup, params: Mapping[str, Any], *, rules: Mapping[str, Rule], trained: MeanWeights
) -> Iterator[tuple[dict[str, float], float | None]]:
    """(param -> share, value) of everything that is searched in a group."""
    method = space.method_of(group, params)
    names = [source.name for source in space.sources]
    if space.space.methods[method].order == "searched":
        yield from _keys(space, method, names, [rules.get(tensor) for tensor in group.tensors])
    for parameter, searched in space.space.methods[method].parameters.items():
        if not isinstance(searched, Range):
            continue
        for owner in owners_of(method, parameter, searched, names):
            read = [
                _read(
                    method,
                    parameter,
                    searched,
                    owner=owner,
                    names=names,
                    rule=rules.get(tensor),
                    trained=trained.get(tensor),
                )
                for tensor in group.tensors
            ]
            known = [value for value in read if value is not None]
            value = math.fsum(known) / len(known) if len(known) == len(read) else None
            shares: dict[str, float] = defaultdict(float)
            for knot, share in group.knots:
                shares[param_name(space.space, method, parameter, searched, knot=knot, source=owner)] += share
            yield shares, value


def _keys(
    space: BoundSpace, method: str, names: list[str], rules: list[Rule | None]
) -> Iterator[tuple[dict[str, float], float | None]]:
    """(param -> share, value) of the keys of an order, from the first rule with these sources."""
    prefix = key_prefix(space.space, method)
    orders = (
        rule.sources for rule in rules if rule and rule.method == method and sorted(rule.sources) == sorted(names)
    )
    order = next(orders, None)
    keys = None if order is None else keys_of(prefix, names, order)
    for param in key_params(prefix, names).values():
        yield {param: 1.0}, None if keys is None else keys[param]


def _read(
    method: str,
    parameter: str,
    searched: Range,
    *,
    owner: str | None,
    names: Sequence[str],
    rule: Rule | None,
    trained: Mapping[str, float] | None,
) -> float | None:
    if parameter == SCORE and owner is not None:
        return _score(method, searched, owner=owner, rule=rule)
    if searched.log_ratio and owner is not None:
        weights = [_one(method, parameter, name, names=names, rule=rule, trained=trained) for name in names]
        known = [weight for weight in weights if weight is not None]
        return None if len(known) < len(names) else _log_ratios(known, searched.log_ratio)[names.index(owner)]
    return _one(method, parameter, owner, names=names, rule=rule, trained=trained)


def _log_ratios(weights: Sequence[float], limit: float) -> list[float]:
    """Logarithms of the weights, each divided by the first, in [-limit, limit].

    Where one is above, all of them are lowered by its excess, which gives the first source the least weight that the
    space has and keeps the ratios between the others. To cut each one off would make large and small weights equal.
    """
    ratios = [math.log(max(weight, _SMALLEST) / max(weights[0], _SMALLEST)) for weight in weights]
    excess = max(0.0, max(ratios) - limit)
    return [max(ratio - excess, -limit) for ratio in ratios]


def _score(method: str, searched: Range, *, owner: str, rule: Rule | None) -> float | None:
    if rule is None or rule.method != method:
        return None
    t = rule.parameters["t"]
    assert isinstance(t, float)  # shared by the two
    assert searched.low is not None  # checked when the space was loaded
    assert searched.high is not None
    return score_of(owner, rule.sources, t, low=searched.low, high=searched.high)


def _one(
    method: str,
    parameter: str,
    owner: str | None,
    *,
    names: Sequence[str],
    rule: Rule | None,
    trained: Mapping[str, float] | None,
) -> float | None:
    """The value of a parameter for one tensor and source (None: shared by the sources)."""
    if rule is not None and rule.method == method and parameter in rule.parameters:
        value = rule.parameters[parameter]
        if not isinstance(value, tuple):
            is_share = parameter == "t" and takes_scores(method_info(method))  # of the second of a pair
            return 1 - value if is_share and _is_reversed(rule.sources, names) else value
        if owner is None:  # the space has one for all
            return math.fsum(value) / len(value)
        return value[rule.sources.index(owner)] if owner in rule.sources else 0.0
    if parameter != "weight" or not _is_weighted_sum(method):
        return None
    weights = trained if trained is not None else _sum(rule)
    if weights is None:
        return None
    if owner is None:
        return math.fsum(weights.values()) / len(weights)
    return weights.get(owner, 0.0)


def _sum(rule: Rule | None) -> dict[str, float] | None:
    """Source -> weight of a rule that is a weighted sum."""
    if rule is None or not _is_weighted_sum(rule.method):
        return None
    given = rule.parameters["weight"]
    assert isinstance(given, tuple)  # weights are per source
    total = math.fsum(given) if rule.options.get("normalize") else 1.0
    return {source: weight / total for source, weight in zip(rule.sources, given, strict=True)}


def _is_weighted_sum(method: str) -> bool:
    return method in METHODS and METHODS[method].weighted_sum  # a recipe of another release may name others
