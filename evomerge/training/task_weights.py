"""The coefficients that AdaMerging learns: one per source for each group of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from evomerge.catalogue import layer_of
from evomerge.errors import InvalidInput
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.optimisation.coefficients import source_weights
from evomerge.recipe import Recipe, Rule
from evomerge.training.adamerging_settings import AdaSettings


@dataclass(frozen=True, kw_only=True)
class TaskWeights:
    """The raw coefficients lambda of theta_0 + sum_i clamp(lambda_i, 0, 1) tau_i.

    Attributes:
        sources: names, in the order of the coefficients.
        groups: group -> the tensors that share its coefficients.
        values: group -> float32 [n sources], on the CPU; raw, before they are clamped.
        clamp: whether they are clamped in the merge.
        method: merge method of the sum.
    """

    sources: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Tensor]
    clamp: bool
    method: str

    def rules(self) -> tuple[Rule, ...]:
        """One rule for each distinct set of weights, in the order of the groups."""
        options = resolve_options(self.method, {})
        by_weights: dict[tuple[float, ...], list[str]] = {}
        for group, names in self.groups.items():
            raw = self.values[group]
            weights = tuple((raw.clamp(0, 1) if self.clamp else raw).tolist())
            by_weights.setdefault(weights, []).extend(names)
        rules = []
        for weights, tensors in by_weights.items():
            parameters = resolve_parameters(self.method, {"weight": weights}, len(self.sources))
            rules.append(
                Rule(
                    tensors=tuple(tensors),
                    method=self.method,
                    sources=self.sources,
                    parameters=parameters,
                    options=options,
                )
            )
        return tuple(rules)

    def recipe(self, initial: Recipe) -> Recipe:
        """The merge. A tensor has the weights themselves, so that the recipe needs no file."""
        return Recipe(
            base=initial.base, sources=initial.sources, rules=self.rules(), dtype=initial.dtype, seed=initial.seed
        )

    def zero_outside(self, gradients: Mapping[str, Tensor]) -> None:
        """Set the gradients of clamped coefficients to 0, in place."""
        if self.clamp:
            for group, gradient in gradients.items():
                gradient[(self.values[group] < 0) | (self.values[group] > 1)] = 0


def initial_task_weights(recipe: Recipe, names: Sequence[str], settings: AdaSettings) -> TaskWeights:
    """The coefficients at the start of a training.

    Args:
        recipe: its experts are merged; where the settings give no initial coefficient, it gives them all.
        names: the tensors to merge.

    Raises:
        InvalidInput: there is no expert, or the recipe cannot be written with such coefficients.
    """
    sources = tuple(source.name for source in recipe.sources if source.name != recipe.base.name)
    if not sources:
        raise InvalidInput("AdaMerging merges task vectors, and the recipe has no source beside the base; give some")
    groups = _groups(names, settings.granularity)
    if settings.initial is None:
        values = _given(recipe, groups, sources, settings)
    else:
        values = {group: torch.full((len(sources),), settings.initial) for group in groups}
    return TaskWeights(sources=sources, groups=groups, values=values, clamp=settings.clamp, method=settings.method)


def _groups(names: Sequence[str], granularity: str) -> dict[str, tuple[str, ...]]:
    if granularity == "tensor":
        return {name: (name,) for name in names}
    if granularity == "task":
        return {"all": tuple(names)}
    layers = layer_of(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("rest" if layers[name] is None else f"layer {layers[name]}", []).append(name)
    return {group: tuple(members) for group, members in groups.items()}


def _given(
    recipe: Recipe, groups: Mapping[str, tuple[str, ...]], sources: Sequence[str], settings: AdaSettings
) -> dict[str, Tensor]:
    """The coefficients of a recipe that is a weighted sum of task vectors."""
    rules = {name: rule for rule in recipe.rules for name in rule.tensors}
    values = {}
    for group, names in groups.items():
        distinct = {vector_weights(rules.get(name), recipe.base.name, sources, settings.method) for name in names}
        if len(distinct) > 1:
            raise InvalidInput(
                f"the initial recipe weighs the tensors of {group!r} differently; "
                "use granularity: tensor, or give `initial`"
            )
        (weights,) = distinct
        if settings.clamp and not all(0 <= weight <= 1 for weight in weights):
            raise InvalidInput(
                f"the initial recipe weighs {group!r} by {list(weights)}, which clamp: true would change; "
                "use clamp: false, or give `initial`"
            )
        values[group] = torch.tensor(weights)
    return values


def vector_weights(
    rule: Rule | None,
    base: str,
    sources: Sequence[str],
    method: str,
    parameters: Mapping[str, float] = MappingProxyType({}),
) -> tuple[float, ...]:
    """The factor of each vector; 0 for a tensor that is the base's.

    Args:
        method: that merges the vectors: whole task vectors, or what it makes of them.
        parameters: of the method, beside the weights, where they are not its defaults.

    Raises:
        InvalidInput: the rule's merge is no weighted sum of these vectors.
    """
    if rule is None:
        return (0.0,) * len(sources)
    if method != "task_arithmetic":
        return _same_method(rule, sources, method, parameters)
    weights = source_weights(rule, base)
    if others := weights.keys() - {base, *sources}:
        raise InvalidInput(
            f"the initial recipe weighs {rule.tensors[0]!r} by {min(others)!r}, which is none of the sources; start "
            "from a merge of the sources alone"
        )
    if abs(math.fsum(weights.values()) - 1) > 1e-6:
        raise InvalidInput(
            f"the initial recipe weighs {rule.tensors[0]!r} by {weights}, which do not sum to 1 and so are no sum of "
            "task vectors on the base; give `initial`"
        )
    return tuple(weights.get(source, 0.0) for source in sources)


def _same_method(rule: Rule, sources: Sequence[str], method: str, parameters: Mapping[str, float]) -> tuple[float, ...]:
    plain = {**resolve_parameters(method, parameters, len(sources)), "weight": rule.parameters.get("weight")}
    same = rule.sources == tuple(sources) and rule.parameters == plain
    if rule.method != method or not same or rule.options != resolve_options(method, {}):
        raise InvalidInput(
            f"this variant can start from a merge of all sources by {method} with "
            f"{parameters or 'its defaults'}, and "
            f"{rule.tensors[0]!r} of the initial recipe is merged by {rule.method} otherwise; give `initial`"
        )
    weights = rule.parameters["weight"]
    return tuple(weights) if isinstance(weights, tuple) else (weights,) * len(sources)
