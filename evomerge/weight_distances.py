"""`evomerge distances`: how far the weights of two models are apart, in all and per part of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from evomerge.catalogue import PARTS
from evomerge.checkpoints import Source, open_source
from evomerge.errors import InvalidInput
from evomerge.merging.distances import cosine, l2, ssd, tssd
from evomerge.messages import some
from evomerge.recipe import ModelRef

SCHEMA = 1


def compare_weights(
    first: ModelRef, second: ModelRef, *, base: ModelRef | None, keep: float, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Distances over all floating-point tensors and over those of each part, each tied tensor once.

    Args:
        base: where it is given, the task vectors (model minus base) are compared, and the weights themselves otherwise.
        keep: share of each vector that TSSD compares.
        allow: what may be done beyond reading tensors, see `open_source`.

    Raises:
        InvalidInput: a model is missing, or the models do not have the same tensors.
    """
    one = open_source(first, allow=allow)
    other = open_source(second, allow=allow, like=one)
    origin = None if base is None else open_source(base, allow=allow, like=one)
    for model in (other, origin):
        if model is not None:
            _refuse_misfit(one, model)
    parts = {part: [entry.name for entry in one.catalogue.mergeable if entry.part == part] for part in PARTS}
    everything = [entry.name for entry in one.catalogue.mergeable]
    scopes = {"all": everything, **{part: names for part, names in parts.items() if names}}
    return {
        "schema": SCHEMA,
        "models": [_identity(one), _identity(other)],
        "base": None if origin is None else _identity(origin),
        "keep": keep,
        "distances": [_row(part, names, (one, other), origin, keep) for part, names in scopes.items()],
    }


def distances_table(document: Mapping[str, Any]) -> Table:
    """The same for a person."""
    of = "weights" if document["base"] is None else f"task vectors from {document['base']['location']}"
    models = " and ".join(model["location"] for model in document["models"])
    table = Table(title=Text(f"{models}: {of}"), header_style="bold")
    table.add_column("part")
    for column in ("elements", "L2", "cosine", "SSD", f"TSSD ({document['keep']:g})"):
        table.add_column(column, justify="right")
    for row in document["distances"]:
        numbers = (f"{row[name]:.4g}" for name in ("l2", "cosine", "ssd", "tssd"))
        table.add_row(row["part"], f"{row['elements']:,}", *numbers)
    return table


def _identity(source: Source) -> dict[str, str | None]:
    return {"location": source.ref.location, "fingerprint": source.ref.fingerprint}


def _row(
    part: str, names: list[str], models: tuple[Source, Source], base: Source | None, keep: float
) -> dict[str, Any]:
    x, y = (_MergeableWeights(names, model.tensors, None if base is None else base.tensors) for model in models)
    return {
        "part": part,
        "tensors": len(names),
        "elements": sum(models[0].catalogue[name].numel for name in names),
        "l2": l2(x, y),
        "cosine": cosine(x, y),
        "ssd": ssd(x, y),
        "tssd": tssd(x, y, keep),
    }


class _MergeableWeights(Mapping[str, Tensor]):
    """Some tensors of a model, minus those of the base where there is one; each computed when it is asked for."""

    def __init__(self, names: list[str], tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None) -> None:
        self._names = names
        self._tensors = tensors
        self._base = base

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if self._base is None:
            return tensor
        origin = self._base[name]
        dtype = torch.float64 if torch.float64 in (tensor.dtype, origin.dtype) else torch.float32
        return tensor.to(dtype) - origin.to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _refuse_misfit(one: Source, other: Source) -> None:
    shapes = [{entry.name: entry.shape for entry in model.catalogue.mergeable} for model in (one, other)]
    if alone := sorted(shapes[0].keys() ^ shapes[1].keys()):
        raise InvalidInput(
            f"{one.ref.location} and {other.ref.location} have different tensors: only one has {some(alone, 5)}"
        )
    if misfits := sorted(name for name, shape in shapes[0].items() if shape != shapes[1][name]):
        raise InvalidInput(
            f"{one.ref.location} and {other.ref.location} have tensors of different shapes: {some(misfits, 5)}"
        )
