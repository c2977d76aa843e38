"""The tensors of an adapter's file, as changes of the tensors of its base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from evomerge.adapters.adapted_tensors import Change, LowRank, common_rows
from evomerge.adapters.adapter_settings import AdapterSettings
from evomerge.checkpoints.source import Source
from evomerge.errors import InvalidInput
from evomerge.messages import counted, some
from evomerge.tensors.common_dtype import common_dtype

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<letter>[AB])(\.default)?(\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_FORMER = ".original_module."  # what a module that is saved whole was before
_TOKENS = ("embedding", "head")  # parts of the catalogue whose rows are tokens


@dataclass
class _Parts:
    """Stored names of what changes one tensor, by their roles.

    Attributes:
        whole: stored name of values -> the parameter of the live model that has them.
    """

    module: str
    whole: dict[str, str] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    magnitude: str | None = None
    embedding: bool = False


@dataclass(frozen=True)
class Changes:
    """An adapter over its base.

    Attributes:
        changes: tensor name of the base -> its change. A tensor that is stored as the base has it has none.
        notes: sentences on what of the adapter a merge leaves out.
    """

    changes: Mapping[str, Change]
    notes: tuple[str, ...]


def stored_changes(tensors: Mapping[str, Tensor], settings: AdapterSettings, base: Source, file: Path) -> Changes:
    """The changes that the tensors of an adapter's file make.

    Args:
        tensors: by the names in the file.
        file: for errors.

    Raises:
        InvalidInput: the file has tensors that the base lacks, half a product, shapes that do not fit, or changes one
            of several uses of a tied tensor.
    """
    return _Reading(tensors, settings, base, file).result()


class _Reading:
    def __init__(self, tensors: Mapping[str, Tensor], settings: AdapterSettings, base: Source, file: Path) -> None:
        self._tensors = tensors
        self._settings = settings
        self._base = base
        self._file = file
        self._names = _names_by_place(base)
        self._notes: list[str] = []

    def result(self) -> Changes:
        changes = {}
        for name, parts in sorted(self._grouped().items()):
            change = self._change(name, parts)
            if change is not None:
                changes[name] = change
        return Changes(changes, tuple(self._notes))

    def _grouped(self) -> dict[str, _Parts]:
        grouped: dict[str, _Parts] = {}
        unknown = []
        for stored in sorted(each for each in self._tensors if _FORMER not in each):
            place = stored.removeprefix(PREFIX)
            factor, magnitude = _FACTOR.fullmatch(place), _MAGNITUDE.fullmatch(place)
            match = factor or magnitude
            module = match["module"] if match else _WRAPPERS.sub("", place).rpartition(".")[0]
            used = f"{module}.weight" if match else _WRAPPERS.sub("", place)
            name = self._names.get(used)
            if name is None:
                unknown.append(stored)
                continue
            parts = grouped.setdefault(name, _Parts(module))
            if factor:
                parts.factors[factor["letter"]] = stored
                parts.embedding = factor["embedding"] is not None
            elif magnitude:
                parts.magnitude = stored
            else:
                parts.whole[stored] = self._parameter(used, name)
            if match and len(_uses(self._base, name)) > 1:
                self._refuse_tied(used, name)
        if unknown:
            raise InvalidInput(
                f"{self._file} changes {counted(len(unknown), 'tensor')} that {self._base.name!r} lacks under these "
                f"names ({some(unknown)}); give the model that the adapter was trained on as base"
                + (f", {self._settings.base}" if self._settings.base else "")
            )
        return grouped

    def _parameter(self, used: str, name: str) -> str:
        """The parameter of the live model that a place in the file is. A tensor's name in the base's files, which
        adapters of earlier transformers have, is the parameter that holds it."""
        return used if used in _uses(self._base, name) else self._base.live_names.get(name, name)

    def _change(self, name: str, parts: _Parts) -> Change | None:
        whole = self._whole(name, parts)
        product, transposed = self._product(name, parts)
        magnitude = None if parts.magnitude is None else self._tensors[parts.magnitude]
        if (magnitude is not None) != (product is not None and self._settings.weight_decomposed):
            raise InvalidInput(
                f"{self._file}: use_dora is {self._settings.weight_decomposed}, but {parts.module} has "
                f"{'a' if magnitude is not None else 'no'} magnitude; save the adapter again with PEFT"
            )
        if magnitude is not None:
            outputs = self._base.header[name][0][1 if transposed else 0]
            if magnitude.numel() != outputs:
                self._refuse_shape(str(parts.magnitude), magnitude, name)
        if whole is None and product is None:
            return None
        return Change(whole=whole, product=product, magnitude=magnitude, transposed=transposed)

    def _whole(self, name: str, parts: _Parts) -> Tensor | None:
        """The stored values of a tensor; None where there are none, or they are the base's."""
        if not parts.whole:
            return None
        stored, changed = [self._tensors[each] for each in parts.whole], set(parts.whole.values())
        if not _uses(self._base, name) <= changed or any(not _equal(stored[0], each) for each in stored[1:]):
            self._refuse_tied(" and ".join(sorted(changed)), name)
        tensor, base = stored[0], self._base.tensors[name]
        resized = tensor.shape != base.shape
        if resized and (self._base.catalogue[name].part not in _TOKENS or tensor.shape[1:] != base.shape[1:]):
            self._refuse_shape(next(iter(parts.whole)), tensor, name)
        if resized:
            self._notes.append(
                f"{name} has {len(tensor)} rows in the adapter and {len(base)} in {self._base.name!r}; merges have the "
                "tokens of the base, and its values where the adapter has no row"
            )
        if _equal(*common_rows(base, tensor)):
            return None
        if not base.is_floating_point():
            raise InvalidInput(
                f"{self._file} changes {name}, which holds no floating-point numbers in {self._base.name!r} and is not "
                "merged; leave it out of modules_to_save"
            )
        return tensor

    def _product(self, name: str, parts: _Parts) -> tuple[LowRank | None, bool]:
        """The product of two factors as it is added to the stored tensor, and whether it had to be transposed."""
        if not parts.factors:
            return None, False
        if parts.factors.keys() != {"A", "B"}:
            raise InvalidInput(
                f"{self._file} has only {some([*parts.factors.values()])} of the two factors of {parts.module}; it is "
                "incomplete"
            )
        inner, outer = (self._tensors[parts.factors[letter]] for letter in "AB")
        shape = self._base.header[name][0]
        rank = self._settings.rank_of(parts.module)
        if inner.dim() != 2 or outer.dim() != 2 or (len(inner), outer.shape[1]) != (rank, rank):
            raise InvalidInput(
                f"{self._file}: the factors of {parts.module} are {list(inner.shape)} and {list(outer.shape)}, "
                f"expected [{rank}, inputs] and [outputs, {rank}] by the rank in adapter_config.json"
            )
        fits = {False: (len(outer), inner.shape[1]) == shape, True: (inner.shape[1], len(outer)) == shape}
        transposed = parts.embedding or self._is_transposed(name)
        if not fits[transposed]:
            transposed = not transposed and not parts.embedding
        if not fits[transposed]:
            if parts.embedding and inner.shape[1] != shape[0] and len(outer) == shape[1]:
                return self._resized(name, parts, inner.T, outer.T), True
            self._refuse_shape(parts.factors["B"], outer, name)
        left, right = (inner.T, outer.T) if transposed else (outer, inner)
        return LowRank(left, right, self._settings.scale_of(parts.module)), transposed

    def _is_transposed(self, name: str) -> bool:
        """Whether a weight is [inputs, outputs]: by its module, since PEFT goes by that and not by the settings."""
        architecture = self._base.architecture
        if architecture is None:
            return self._settings.transposed
        return self._base.live_names.get(name) in architecture.transposed

    def _resized(self, name: str, parts: _Parts, left: Tensor, right: Tensor) -> LowRank:
        """The product of an embedding of another number of tokens, on the base's tokens."""
        rows = self._base.header[name][0][0]
        if len(left) < rows:
            left = torch.cat([left, left.new_zeros(rows - len(left), left.shape[1])])
        return LowRank(left[:rows], right, self._settings.scale_of(parts.module))

    def _refuse_tied(self, use: str, name: str) -> NoReturn:
        raise InvalidInput(
            f"{self._file} changes {use}, but {some(sorted(_uses(self._base, name)))} are one tied tensor in "
            f"{self._base.name!r}, and the adapter does not change all of these uses alike; give the base and the "
            "model that the adapter is merged into, both untied"
        )

    def _refuse_shape(self, stored: str, tensor: Tensor, name: str) -> NoReturn:
        raise InvalidInput(
            f"{self._file}: {stored} of shape {list(tensor.shape)} does not fit {name}, which has the shape "
            f"{list(self._base.header[name][0])} in {self._base.name!r}; give the model that the adapter was trained "
            "on as base"
        )


def _names_by_place(base: Source) -> dict[str, str]:
    """Name of a parameter, as the live model or the base's files have it -> name of the tensor."""
    places = {name: name for name in base.catalogue.names} | dict(base.tied)
    live = {place: name for name, place in base.live_names.items()}
    ties = base.architecture.ties if base.architecture else {}
    return places | live | {further: live[first] for further, first in ties.items() if first in live}


def _uses(base: Source, name: str) -> set[str]:
    """The parameters of the live model that are this tensor."""
    place = base.live_names.get(name, name)
    ties = base.architecture.ties if base.architecture else {}
    return {place, *(further for further, first in ties.items() if first == place)}


def _equal(one: Tensor, other: Tensor) -> bool:
    wide = common_dtype(one.dtype, other.dtype)
    return torch.equal(one.to(wide), other.to(wide))
