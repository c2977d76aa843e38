"""The coefficients that are learned, at any granularity, and the vectors that they weigh."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.elementwise.elected_arithmetic import ElectedVectors
from evomerge.errors import InvalidInput
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.messages import some
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.native.weighted_vectors import factor_slopes
from evomerge.optimisation.coefficients import FILE_ROLE, ModuleRole, stored_columns
from evomerge.optimisation.gradients import factor_gradients, nonzero_rows, vector_gradients
from evomerge.optimisation.student import Student
from evomerge.recipe import Recipe, Rule
from evomerge.tensors.dropping import Dropping
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.task_vectors import TaskVectors
from evomerge.training.task_weights import vector_weights

_REST = "all other tensors"


@dataclass(frozen=True, kw_only=True)
class VectorCoefficients:
    """The coefficients c of theta_0 + sum_i c_i v_i, with the vectors v_i of a basis.

    Attributes:
        sources: names, in the order of the first dimension of the values.
        groups: key of a coefficient -> the tensors that share it; every tensor is in one group.
        values: key -> float32 [n sources, *shape of a coefficient].
        settings: granularity and basis.
    """

    sources: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    values: dict[str, Tensor]
    settings: LearnedSettings

    def set_in(self, student: Student) -> None:
        """Set the merge of the coefficients in a student."""
        if self.settings.basis == "task_vectors":
            student.set_vectors(self.sources, self.by_source)
        else:
            student.set_rules(self.rules())

    @property
    def by_source(self) -> list[dict[str, Tensor]]:
        """As the method `column_arithmetic` takes them."""
        of_tensor = {name: self.values[key] for key, names in self.groups.items() for name in names}
        return [{name: value[index] for name, value in of_tensor.items()} for index in range(len(self.sources))]

    def rules(self) -> tuple[Rule, ...]:
        """One rule for each distinct set of weights, in the order of the groups; not for coefficients per column."""
        method, count = self.settings.method, len(self.sources)
        by_weights: dict[tuple[float, ...], list[str]] = {}
        for key, names in self.groups.items():
            by_weights.setdefault(tuple(self.values[key].tolist()), []).extend(names)
        return tuple(
            Rule(
                tensors=tuple(names),
                method=method,
                sources=self.sources,
                parameters=resolve_parameters(method, {**_basis(self.settings), "weight": weights}, count),
                options=resolve_options(method, {}),
            )
            for weights, names in by_weights.items()
        )

    def recipe(self, initial: Recipe, files: Path) -> Recipe:
        """The merge. Coefficients per column are stored in the folder `files`; others are weights of the rules."""
        merge = replace(initial, rules=(), files={})
        if self.settings.granularity != "column":
            return replace(merge, rules=self.rules())
        digest = store_tensors(files, self.values, {"sources": json.dumps(list(self.sources))})
        rule = Rule(
            tensors=tuple(sorted(self.values)),
            method=self.settings.method,
            sources=self.sources,
            parameters={"weight": (1.0,) * len(self.sources)},
        )
        return replace(merge, rules=(rule,), files={FILE_ROLE: digest})


def initial_vector_coefficients(
    recipe: Recipe, roles: Mapping[str, ModuleRole], settings: LearnedSettings, *, files: Path, device: torch.device
) -> VectorCoefficients:
    """The coefficients at the start of a training.

    Args:
        recipe: its experts are merged; where the settings give no initial coefficient, it gives them all.
        roles: of all tensors to merge.
        files: folder of the recipe's own coefficients.

    Raises:
        InvalidInput: a group has a tensor that does not exist or another group has, or the recipe cannot be written
            with such coefficients.
    """
    sources = tuple(source.name for source in recipe.sources if source.name != recipe.base.name)
    groups = _groups(tuple(roles), settings)
    start = _Start(recipe, sources, settings, files)
    values = {}
    for key, names in groups.items():
        shape = roles[key].shape if settings.granularity == "column" else ()
        given = torch.full((len(sources),), settings.initial) if settings.initial is not None else start.of(key, names)
        spread = given if given.ndim > 1 else given.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)
        values[key] = spread.float().contiguous().to(device if shape else "cpu")
    return VectorCoefficients(sources=sources, groups=groups, values=values, settings=settings)


class _Start:
    """The coefficients of a recipe."""

    def __init__(self, recipe: Recipe, sources: Sequence[str], settings: LearnedSettings, files: Path) -> None:
        self._base = recipe.base.name
        self._sources = sources
        self._settings = settings
        self._rules = {name: rule for rule in recipe.rules for name in rule.tensors}
        columns = [rule for rule in recipe.rules if rule.method == "column_arithmetic"]
        wanted = settings.initial is None and settings.granularity == "column"
        self._columns = {
            name: self._ordered(given, rule)
            for rule in (columns if wanted else ())
            for name, given in stored_columns(recipe, files, rule).items()
        }

    def of(self, key: str, names: Sequence[str]) -> Tensor:
        """The coefficients that a group begins with: [n sources], or with more dimensions where they differ within."""
        if key in self._columns:
            return self._columns[key]
        # Of one tensor a column has the same weight as all, whatever the granularity.
        method = "task_arithmetic" if self._settings.granularity == "column" else self._settings.method
        found = {
            vector_weights(self._rules.get(name), self._base, self._sources, method, _basis(self._settings))
            for name in names
        }
        if len(found) > 1:
            raise InvalidInput(
                f"the initial recipe weighs the tensors of {key!r} differently; use granularity: tensor, or give "
                "`initial`"
            )
        return torch.tensor(found.pop())

    def _ordered(self, given: Tensor, rule: Rule) -> Tensor:
        absent = torch.zeros_like(given[0])
        return torch.stack(
            [given[rule.sources.index(source)] if source in rule.sources else absent for source in self._sources]
        )


def _groups(names: Sequence[str], settings: LearnedSettings) -> dict[str, tuple[str, ...]]:
    match settings.granularity:
        case "global":
            return {"all": tuple(names)}
        case "groups":
            return _given_groups(names, settings.groups)
        case _:
            return {name: (name,) for name in names}


def _given_groups(names: Sequence[str], given: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    named = [name for members in given.values() for name in members]
    if unknown := set(named) - set(names):
        raise InvalidInput(f"groups name tensors that are not merged: {some(sorted(unknown))}")
    if twice := {name for name in named if named.count(name) > 1}:
        raise InvalidInput(f"groups name tensors twice: {some(sorted(twice))}; a tensor has one group")
    rest = tuple(name for name in names if name not in set(named))
    return {**{key: members for key, members in given.items() if members}, **({_REST: rest} if rest else {})}


def _basis(settings: LearnedSettings) -> dict[str, float]:
    """The parameters of the merge method beside the weights."""
    match settings.basis:
        case "ties":
            return {"density": settings.density}
        case "dare":
            return {"drop_rate": 1 - settings.density}
        case _:
            return {}


def _basis_rule(coefficients: VectorCoefficients) -> Rule:
    """A rule for all tensors, whose sources, parameters and options give the vectors of the basis."""
    settings, count = coefficients.settings, len(coefficients.sources)
    method = "task_arithmetic" if settings.granularity == "column" else settings.method
    return Rule(
        tensors=tuple(name for names in coefficients.groups.values() for name in names),
        method=method,
        sources=coefficients.sources,
        parameters=resolve_parameters(method, _basis(settings), count),
        options=resolve_options(method, {}),
    )


class CoefficientGradients:
    """dL/dc, summed up from the gradients dL/dW of tensors as they appear.

    Attributes:
        totals: key -> [n sources, *shape of a coefficient], float64 for one number per source, else float32.
    """

    def __init__(self, coefficients: VectorCoefficients, student: Student) -> None:
        self._coefficients = coefficients
        self._student = student
        self._key_of = {name: key for key, names in coefficients.groups.items() for name in names}
        self._rule = _basis_rule(coefficients)
        self.totals = {
            key: torch.zeros_like(value, dtype=torch.float64 if value.ndim == 1 else torch.float32)
            for key, value in coefficients.values.items()
        }

    def take(self, name: str, gradient: Tensor) -> None:
        """Add what one tensor contributes."""
        total = self.totals[self._key_of[name]]
        tensors = self._student.tensors(self._rule, [name])
        base = None if tensors.base is None else tensors.base[name]
        sources = [each[name] for each in tensors.sources]
        if total.ndim > 1:
            total += factor_gradients(gradient, sources, total.shape[1:], base)
            return
        is_plain = self._coefficients.settings.basis == "task_vectors"
        slopes = factor_slopes(*nonzero_rows(gradient, base, sources), ()) if is_plain else None
        total += vector_gradients(gradient, self._vectors(tensors)) if slopes is None else slopes

    def _vectors(self, tensors: RuleTensors) -> Iterator[tuple[int, list[Tensor]]]:
        """The pieces of the vectors that a tensor's coefficients weigh."""
        (name,) = tensors.names
        match self._coefficients.settings.basis:
            case "ties":
                elected = ElectedVectors(tensors).of(name)
                yield from ((piece.start, elected(piece)) for piece in tensors.pieces(name))
            case "dare":
                dropped = TaskVectors(tensors, Dropping(tensors))
                yield from ((piece.start, dropped.of(name, piece)) for piece in tensors.pieces(name))
            case _:
                yield from ((piece.start, piece.task_vectors()) for piece in tensors.pieces(name))
