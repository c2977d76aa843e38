"""Trainable coefficients: their shapes by the role of a tensor, and their initial values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from evomerge.checkpoints.recipe_files import load_tensors, store_tensors
from evomerge.elementwise.column_linear import NONLINEARITIES
from evomerge.errors import InvalidInput
from evomerge.methods import method_info
from evomerge.recipe import Recipe, Rule

FILE_ROLE = "coefficients"

Kind = Literal["linear", "embedding", "norm", "bias", "other"]
_STRENGTH: tuple[Kind, ...] = ("other", "bias", "norm", "embedding", "linear")


@dataclass(frozen=True)
class ModuleRole:
    """The role of a tensor in its module, and the shape of a coefficient of one source for it."""

    kind: Kind
    shape: tuple[int, ...]


def roles_of(model: torch.nn.Module, live: Mapping[str, Tensor]) -> dict[str, ModuleRole]:
    """Tensor name -> its role, from the types of the modules that hold it, never from names of architectures.

    A linear layer has a coefficient per input column, an embedding per column, a norm per element; a bias has one
    number, and so has every other tensor (mixture-of-experts weights that are no linear layers, convolutions). A
    tensor that several modules share is linear where one of them is a linear layer.
    """
    names = {id(tensor): name for name, tensor in live.items()}
    roles = {name: ModuleRole("other", ()) for name in live}
    for module in model.modules():
        for attribute, tensor in module.named_parameters(recurse=False):
            name = names.get(id(tensor))
            if name is not None:
                found = _role(module, attribute, tensor)
                roles[name] = max(roles[name], found, key=lambda role: _STRENGTH.index(role.kind))
    return roles


def _role(module: torch.nn.Module, attribute: str, tensor: Tensor) -> ModuleRole:
    if attribute == "bias" and tensor.ndim == 1:
        return ModuleRole("bias", ())
    if attribute != "weight":
        return ModuleRole("other", ())
    if isinstance(module, Conv1D):
        return ModuleRole("linear", (tensor.shape[0], 1))  # its weight is [in, out]
    if isinstance(module, torch.nn.Linear):
        return ModuleRole("linear", (tensor.shape[1],))
    if isinstance(module, torch.nn.Embedding):
        return ModuleRole("embedding", (tensor.shape[1],))
    return ModuleRole("norm", tuple(tensor.shape)) if tensor.ndim == 1 else ModuleRole("other", ())


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The raw coefficients (before phi) of all sources.

    Attributes:
        sources: names, in the order of the first dimension of the values.
        values: tensor name -> float32 [n sources, *shape of a coefficient].
        trainable: the names of those that are trained.
    """

    sources: tuple[str, ...]
    phi: str
    values: dict[str, Tensor]
    trainable: tuple[str, ...]

    @property
    def by_source(self) -> list[dict[str, Tensor]]:
        """As the method `column_linear` takes them."""
        return [{name: value[index] for name, value in self.values.items()} for index in range(len(self.sources))]

    def recipe(self, initial: Recipe, files: Path) -> Recipe:
        """The recipe of the merge, whose coefficients are stored in the folder `files`."""
        digest = store_tensors(files, self.values, {"phi": self.phi, "sources": json.dumps(list(self.sources))})
        rule = Rule(
            tensors=tuple(sorted(self.values)),
            method="column_linear",
            sources=self.sources,
            parameters={},
            options={"phi": self.phi},
        )
        return replace(initial, rules=(rule,), files={FILE_ROLE: digest})


def initial_coefficients(
    recipe: Recipe,
    roles: Mapping[str, ModuleRole],
    *,
    include_base: bool,
    uniform: bool,
    trainable: Sequence[str],
    phi: str,
    files: Path,
    device: torch.device,
) -> Coefficients:
    """Coefficients that give the merge of a recipe, exactly up to rounding.

    The sources are in the recipe's order, the base last where the recipe needs it and does not name it as a source:
    for task arithmetic, whose base has the weight 1 − sum of the others, and for tensors that no rule names.

    Args:
        roles: of all floating-point tensors.
        include_base: the base is a source in any case.
        uniform: start with 1/n for each source, regardless of the recipe's weights.
        trainable: kinds whose coefficients are trained.
        files: folder of the recipe's own coefficients.

    Raises:
        InvalidInput: a rule's merge is no weighted sum of the sources, or phi cannot give one of its weights, or has no
            slope there.
    """
    base = recipe.base.name
    rules = {name: rule for rule in recipe.rules for name in rule.tensors}
    names_of_sources = [source.name for source in recipe.sources]
    names = list(names_of_sources)
    if base not in names and (include_base or (not uniform and _needs_base(recipe, roles, rules))):
        names.append(base)
    stored = _stored(recipe, files, phi) if not uniform else {}
    values: dict[str, Tensor] = {}
    for name, role in roles.items():
        shape = role.shape if role.kind in trainable else ()
        if uniform:
            weights = {source: 1 / len(names) for source in names}
        elif name in stored:
            values[name] = _reorder_stored(
                name, stored[name], phi, order=rules[name].sources, sources=names, shape=shape
            ).to(device)
            continue
        else:
            weights = source_weights(rules[name], base) if name in rules else {base: 1.0}
            if phi == "relu" and role.kind in trainable:
                _refuse_idle(name, weights, names if include_base else names_of_sources)
        raw = torch.tensor([_raw(phi, weights.get(source, 0.0), name, source) for source in names])
        values[name] = raw.reshape(-1, *(1 for _ in shape)).expand(-1, *shape).contiguous().to(device)
    chosen = tuple(name for name, role in roles.items() if role.kind in trainable)
    return Coefficients(sources=tuple(names), phi=phi, values=values, trainable=chosen)


def mean_weights(recipe: Recipe, files: Path) -> dict[str, dict[str, float]]:
    """Tensor name -> source name -> the mean weight that its trained coefficients give it; nothing without any.

    The weights are those of the sources, or of their task vectors under `column_arithmetic`.
    """
    found = {}
    for rule in recipe.rules:
        if rule.method == "column_arithmetic":
            for name, given in stored_columns(recipe, files, rule).items():
                means = given.double().reshape(len(given), -1).mean(dim=1)
                found[name] = dict(zip(rule.sources, means.tolist(), strict=True))
        elif rule.method == "column_linear":
            phi = str(rule.options["phi"])
            for name, given in _stored(
                Recipe(base=recipe.base, sources=recipe.sources, rules=(rule,), dtype=recipe.dtype, files=recipe.files),
                files,
                phi,
            ).items():
                means = NONLINEARITIES[phi].value(given.double()).reshape(len(given), -1).mean(dim=1)
                found[name] = dict(zip(rule.sources, means.tolist(), strict=True))
    return found


def stored_columns(recipe: Recipe, files: Path, rule: Rule) -> dict[str, Tensor]:
    """Tensor name -> the coefficients of task vectors under `column_arithmetic`, [n sources, ...], times `weight`.

    Args:
        files: folder with the file of the recipe.
        rule: of the recipe.

    Raises:
        InvalidInput: the recipe names no such file, or it is not there.
    """
    if FILE_ROLE not in recipe.files:
        raise InvalidInput(f"the recipe has a rule with column_arithmetic, but names no file of {FILE_ROLE}")
    tensors, _ = load_tensors(files, recipe.files[FILE_ROLE])
    weights = torch.tensor(rule.parameters["weight"], dtype=torch.float64)

    def weighted(given: Tensor) -> Tensor:
        return (given.double() * weights.reshape(-1, *(1 for _ in given.shape[1:]))).to(given.dtype)

    return {name: weighted(tensors[name]) for name in rule.tensors}


def _needs_base(recipe: Recipe, roles: Mapping[str, ModuleRole], rules: Mapping[str, Rule]) -> bool:
    used = any("base" in method_info(rule.method).needs or recipe.base.name in rule.sources for rule in recipe.rules)
    return used or not roles.keys() <= rules.keys()


def source_weights(rule: Rule, base: str) -> dict[str, float]:
    """Source name -> its weight in a rule whose merge is a weighted sum of models, the base among them where needed.

    Raises:
        InvalidInput: the merge is no such sum.
    """
    info = method_info(rule.method)
    if not info.weighted_sum:
        raise InvalidInput(
            f"a training cannot start from a merge by {rule.method}: it is no sum of the sources with one weight "
            "each; start from the uniform average, or from a merge by linear or task_arithmetic"
        )
    given: Any = rule.parameters["weight"]
    total = sum(given) if rule.options.get("normalize") else 1.0
    weights = dict.fromkeys(rule.sources, 0.0)
    for source, weight in zip(rule.sources, given, strict=True):
        weights[source] += weight / total
    if "base" in info.needs:
        # theta_0 + sum_i w_i (theta_i − theta_0)
        weights[base] = weights.get(base, 0.0) + 1 - sum(weights.values())
    return weights


def _raw(phi: str, weight: float, tensor: str, source: str) -> float:
    raw = NONLINEARITIES[phi].inverse(weight)
    if raw is None:
        raise InvalidInput(
            f"the initial weight {weight:g} of source {source!r} in {tensor!r} is out of the range of phi {phi!r}; "
            "use phi: identity, or start: uniform"
        )
    return raw


def _refuse_idle(tensor: str, weights: Mapping[str, float], sources: Iterable[str]) -> None:
    """Refuse a weight 0 under relu, which has no slope there: it would never change."""
    if idle := [source for source in sources if weights.get(source, 0.0) == 0]:
        raise InvalidInput(
            f"the initial weight of source {idle[0]!r} in {tensor!r} is 0, where phi 'relu' has no slope, so that "
            "nothing is learned; use phi: identity, or start: uniform"
        )


def _stored(recipe: Recipe, files: Path, phi: str) -> dict[str, Tensor]:
    """The coefficients of the recipe's own file, by tensor name; nothing where no rule needs it."""
    rules = [rule for rule in recipe.rules if rule.method == "column_linear"]
    if not rules:
        return {}
    if FILE_ROLE not in recipe.files:
        raise InvalidInput(f"the initial recipe has a rule with column_linear, but names no file of {FILE_ROLE}")
    if others := {str(rule.options["phi"]) for rule in rules} - {phi}:
        raise InvalidInput(f"the initial recipe has phi {min(others)!r}, the training {phi!r}; set phi: {min(others)}")
    tensors, _ = load_tensors(files, recipe.files[FILE_ROLE])
    return {name: tensors[name] for rule in rules for name in rule.tensors}


def _reorder_stored(
    name: str, given: Tensor, phi: str, *, order: Sequence[str], sources: Sequence[str], shape: tuple[int, ...]
) -> Tensor:
    """Stored coefficients in another order of the sources, spread over columns where they were one number."""
    absent = torch.full_like(given[0], _raw(phi, 0.0, name, "")) if set(sources) - set(order) else given[0]
    raw = torch.stack([given[order.index(source)] if source in order else absent for source in sources])
    return raw if raw.ndim > 1 else raw.reshape(-1, *(1 for _ in shape)).expand(-1, *shape).contiguous()
