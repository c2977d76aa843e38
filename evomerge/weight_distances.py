"""`evomerge distances`: how far the weights of models, or of experts inside one, are apart, in all and per part."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from evomerge.adapters import open_expert
from evomerge.catalogue import PARTS, TensorCatalogue, TensorEntry, build_catalogue
from evomerge.catalogue.expert_names import find_copies, refuse_idle
from evomerge.checkpoints import Source, open_source
from evomerge.checkpoints.digests import weights_digest
from evomerge.checkpoints.state_dict_files import find_state_dict, open_state_dict
from evomerge.errors import InvalidInput
from evomerge.merging.distances import cosine, l2, ssd, tssd
from evomerge.messages import some
from evomerge.plain_table import plain_table
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
    (one, other), origin = _opened([first, second], base, allow)
    return {
        "schema": SCHEMA,
        "models": [_identity(one), _identity(other)],
        "base": None if origin is None else _identity(origin),
        "keep": keep,
        "distances": _rows(_Vectors.of_model(one, origin), _Vectors.of_model(other, origin), _scopes(one), keep),
    }


def compare_pairs(
    models: Sequence[ModelRef], *, base: ModelRef | None, keep: float, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Distances between every two of several models, as those of `compare_weights`.

    Args, Raises:
        As `compare_weights`; also fewer than two models.
    """
    if len(models) < 2:
        raise InvalidInput(f"distances are between two models, but there is only {[ref.name for ref in models]}")
    opened, origin = _opened(models, base, allow)
    scopes = _scopes(opened[0])
    return {
        "schema": SCHEMA,
        "models": [{"name": source.name, **_identity(source)} for source in opened],
        "base": None if origin is None else _identity(origin),
        "keep": keep,
        "pairs": [
            {
                "names": [one.name, other.name],
                "distances": _rows(_Vectors.of_model(one, origin), _Vectors.of_model(other, origin), scopes, keep),
            }
            for one, other in combinations(opened, 2)
        ],
    }


def compare_experts(
    model: str, patterns: Sequence[str], experts: Sequence[str], *, base: str | None, keep: float
) -> dict[str, Any]:
    """Distances between every two experts inside one checkpoint, over the tensors that both have.

    Args:
        model: folder, safetensors file or hub id of the checkpoint.
        patterns, experts: see `evomerge.catalogue.expert_names.find_experts`.
        base: likewise, with tensors by shared names; where it is given, experts minus base are compared.
        keep: share of each vector that TSSD compares.

    Raises:
        InvalidInput: a model is missing, a pattern or an expert matches nothing, or copies have different shapes.
    """
    if len(experts) < 2:
        raise InvalidInput(f"distances are between two experts, but there is only {list(experts)}")
    weights = open_state_dict(find_state_dict(model))
    origin = None if base is None else open_state_dict(find_state_dict(base))
    refuse_idle(weights.header, patterns, experts)
    tensors = weights.tensors, None if origin is None else origin.tensors
    shared = find_copies(weights.header, patterns, experts)
    pairs = []
    for pair in combinations(experts, 2):
        both = {key: copies for key, copies in shared.items() if set(pair) <= set(copies)}
        if both:
            scopes = _divided(build_catalogue({key: weights.header[copies[pair[0]]] for key, copies in both.items()}))
            x, y = (_Vectors({key: copies[each] for key, copies in both.items()}, *tensors) for each in pair)
            pairs.append({"names": list(pair), "distances": _rows(x, y, scopes, keep)})
    return {
        "schema": SCHEMA,
        "model": {"location": model, "fingerprint": weights_digest(weights.digests())},
        "base": None if origin is None else {"location": base, "fingerprint": weights_digest(origin.digests())},
        "keep": keep,
        "patterns": list(patterns),
        "pairs": pairs,
    }


def distances_table(document: Mapping[str, Any]) -> Table:
    """The same for a person."""
    models = " and ".join(model["location"] for model in document["models"])
    table = _table(f"{models}: {_compared(document)}", ("part",), document["keep"])
    for row in document["distances"]:
        table.add_row(row["part"], *_cells(row))
    return table


def pairs_table(document: Mapping[str, Any]) -> Table:
    """Distances of `compare_pairs` or `compare_experts` for a person: a line for each pair, without the parts."""
    what = f"experts of {document['model']['location']}" if "model" in document else "sources"
    table = _table(f"{what}: {_compared(document)}", ("first", "second"), document["keep"])
    for pair in document["pairs"]:
        table.add_row(*pair["names"], *_cells(pair["distances"][0]))
    return table


def _table(title: str, columns: Sequence[str], keep: float) -> Table:
    table = plain_table(title)
    for column in columns:
        table.add_column(column)
    for column in ("elements", "L2", "cosine", "SSD", f"TSSD ({keep:g})"):
        table.add_column(column, justify="right")
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{row['elements']:,}", *(f"{row[name]:.4g}" for name in ("l2", "cosine", "ssd", "tssd")))


def _compared(document: Mapping[str, Any]) -> str:
    return "weights" if document["base"] is None else f"task vectors from {document['base']['location']}"


def _opened(
    models: Sequence[ModelRef], base: ModelRef | None, allow: Collection[str]
) -> tuple[list[Source], Source | None]:
    """The models, which all have the tensors of the base or the first, and the base. Adapters need a base."""
    origin = None if base is None else open_source(base, allow=allow)
    first, *rest = models
    one = open_source(first, allow=allow) if origin is None else open_expert(first, base=origin, allow=allow)
    others = [open_expert(ref, base=origin or one, allow=allow) for ref in rest]
    for model in (*others, *([] if origin is None else [origin])):
        _refuse_misfit(one, model)
    return [one, *others], origin


def _identity(source: Source) -> dict[str, str | None]:
    return {"location": source.ref.location, "fingerprint": source.ref.fingerprint}


Scopes = Mapping[str, Sequence[TensorEntry]]
"""Part, or `all` -> its tensors."""


def _scopes(source: Source) -> Scopes:
    return _divided(source.catalogue)


def _divided(catalogue: TensorCatalogue) -> Scopes:
    parts = {part: [entry for entry in catalogue.mergeable if entry.part == part] for part in PARTS}
    return {"all": catalogue.mergeable, **{part: entries for part, entries in parts.items() if entries}}


def _rows(x: _Vectors, y: _Vectors, scopes: Scopes, keep: float) -> list[dict[str, Any]]:
    rows = []
    for part, entries in scopes.items():
        names = [entry.name for entry in entries]
        one, other = x.only(names), y.only(names)
        row = {"part": part, "tensors": len(names), "elements": sum(entry.numel for entry in entries)}
        distances = {"l2": l2(one, other), "cosine": cosine(one, other), "ssd": ssd(one, other)}
        rows.append({**row, **distances, "tssd": tssd(one, other, keep)})
    return rows


class _Vectors(Mapping[str, Tensor]):
    """Some tensors of a model, minus those of the base where there is one; each computed when it is asked for.

    Args:
        stored: name -> name of the tensor in `tensors`.
        base: the tensors that are taken away, by name.
    """

    def __init__(
        self, stored: Mapping[str, str], tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
    ) -> None:
        self._stored = stored
        self._tensors = tensors
        self._base = base

    @classmethod
    def of_model(cls, source: Source, base: Source | None) -> _Vectors:
        names = [entry.name for entry in source.catalogue.mergeable]
        return cls(dict(zip(names, names, strict=True)), source.tensors, None if base is None else base.tensors)

    def only(self, names: Sequence[str]) -> _Vectors:
        return _Vectors({name: self._stored[name] for name in names}, self._tensors, self._base)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[self._stored[name]]
        if self._base is None:
            return tensor
        if name not in self._base:
            raise InvalidInput(f"the base has no tensor {name!r}")
        origin = self._base[name]
        if origin.shape != tensor.shape:
            raise InvalidInput(
                f"{name!r} has the shape {tuple(origin.shape)} in the base, and {tuple(tensor.shape)} else"
            )
        dtype = torch.float64 if torch.float64 in (tensor.dtype, origin.dtype) else torch.float32
        return tensor.to(dtype) - origin.to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


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
