"""Tensors that a recipe brings with it, by role: trained coefficients and statistics of the sources alike.

A recipe names files by the digest of their content. The file of a role has one more dimension in front of each tensor,
of the sources, and its metadata names them in that order. Statistics may also be in one file per source, whose metadata
has the fingerprint of the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evomerge.checkpoints.recipe_files import load_tensors
from evomerge.errors import InvalidInput
from evomerge.methods import method_info
from evomerge.recipe import Recipe, Rule, source_role

BySource = Sequence[Mapping[str, torch.Tensor]]
"""For each source of a rule, in its order, {tensor name: tensor}."""


class RecipeTensors:
    """The files of recipes, each read once and held on the device."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        """`folder` holds the files; None: recipes with files are refused."""
        self._folder = folder
        self._device = device
        self._loaded: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {}
        self._split: dict[str, BySource] = {}

    def parameters(self, rule: Rule, recipe: Recipe) -> dict[str, BySource]:
        """The parameters of the rule that are tensors.

        Raises:
            InvalidInput: the recipe names no file of one, there is no folder, or the file belongs to another rule.
        """
        tensors = method_info(rule.method).tensors
        return {each.name: self._by_source(each.name, rule, recipe, each.options) for each in tensors}

    def statistics(self, rule: Rule, recipe: Recipe) -> BySource | None:
        """The statistics of the rule's sources; None where its method takes none, or can do without and has none.

        Raises:
            InvalidInput: as `parameters`.
        """
        info = method_info(rule.method)
        if info.statistics is None:
            return None
        role = info.statistics.name
        if role in recipe.files:
            return self._by_source(role, rule, recipe, ())
        if any(source_role(role, source) in recipe.files for source in rule.sources):
            return [self._of_source(source_role(role, source), source, rule, recipe) for source in rule.sources]
        return self._by_source(role, rule, recipe, ()) if "statistics" in info.needs else None

    def _of_source(self, role: str, source: str, rule: Rule, recipe: Recipe) -> Mapping[str, torch.Tensor]:
        if source in recipe.ingredients:
            raise InvalidInput(
                f"a rule with {rule.method} needs the {role.removesuffix(f'.{source}')} of the ingredient {source!r}, "
                "but only models are measured; merge ingredients by a method without statistics"
            )
        tensors, metadata = self._load(*self._file(role, rule, recipe))
        ref = next(each for each in (*recipe.sources, recipe.base) if each.name == source)
        if metadata.get("source") != ref.fingerprint:
            raise InvalidInput(
                f"the file of {role} {recipe.files[role]} belongs to another model than {source!r}: it was measured on "
                f"{metadata.get('source')}, the source is {ref.fingerprint}"
            )
        return tensors

    def _file(self, role: str, rule: Rule, recipe: Recipe) -> tuple[Path, str]:
        """The folder and the digest of a file.

        Raises:
            InvalidInput: the recipe names none, or there is no folder.
        """
        digest = recipe.files.get(role)
        if digest is None or self._folder is None:
            raise InvalidInput(
                f"a rule with {rule.method} needs a file of {role}, but "
                + ("the recipe names none" if digest is None else "this bank has no folder of files; give `files`")
            )
        return self._folder, digest

    def _by_source(self, role: str, rule: Rule, recipe: Recipe, options: tuple[str, ...]) -> BySource:
        folder, digest = self._file(role, rule, recipe)
        stacked, metadata = self._load(folder, digest)
        described = {option: str(rule.options.get(option)) for option in options}
        described["sources"] = json.dumps(list(rule.sources))
        if any(metadata.get(key) != value for key, value in described.items()):
            raise InvalidInput(
                f"the file of {role} {digest} belongs to another rule: it is for {metadata}, the rule is {described}"
            )
        if digest not in self._split:
            self._split[digest] = _by_first_dimension(stacked, len(rule.sources), f"the file of {role} {digest}")
        return self._split[digest]

    def _load(self, folder: Path, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        if digest not in self._loaded:
            tensors, metadata = load_tensors(folder, digest)
            self._loaded[digest] = {name: tensor.to(self._device) for name, tensor in tensors.items()}, metadata
        return self._loaded[digest]


def _by_first_dimension(stacked: Mapping[str, torch.Tensor], sources: int, file: str) -> BySource:
    for name, tensor in stacked.items():
        if tensor.dim() == 0 or len(tensor) != sources:
            raise InvalidInput(
                f"{file} has the tensor {name!r} of shape {list(tensor.shape)} for {sources} sources; "
                "its first dimension has to be that of the sources"
            )
    return [{name: tensor[index] for name, tensor in stacked.items()} for index in range(sources)]
