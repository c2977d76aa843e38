"""Weights written as they are made: each tensor goes to its place in a file whose header is written first.

Names, shapes and dtypes have to be known beforehand; then no tensor is held, however large the model is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from evomerge.artefacts.tensor_file import PlannedTensor, TensorPlace, begin_file
from evomerge.artefacts.weight_files import MAX_SHARD_BYTES, as_json, write_text
from evomerge.catalogue import TensorCatalogue
from evomerge.catalogue.layer_stack import stacked_catalogue
from evomerge.checkpoints.safetensors_files import INDEX, ONE_FILE, SafetensorsTensors, read_headers
from evomerge.messages import counted
from evomerge.recipe import Recipe


def stream_weights(
    folder: Path,
    planned: Sequence[PlannedTensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors as one file, or as shards with an index, in whatever order they come.

    Args:
        planned: all of them, in the order in which they fill the shards.
        max_shard_bytes: tensors beyond this go to a further file.

    Raises ValueError where the tensors are not the planned ones.
    """
    shards = list(_shards(planned, max_shard_bytes))
    count = len(shards)
    names = (
        [ONE_FILE] if count == 1 else [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    )
    with ExitStack() as opened:
        places: dict[str, TensorPlace] = {}
        for name, shard in zip(names, shards, strict=True):
            places |= begin_file(folder / name, shard, opened)
        for name, tensor in tensors:
            if (place := places.pop(name, None)) is None or not place.fits(tensor):
                raise ValueError(f"{name} was not planned, was given before, or has another shape or dtype")
            place.write(tensor)
            del tensor  # one is in memory, while the next is made
    if places:
        raise ValueError(f"{counted(len(places), 'planned tensor')} not given, such as {min(places)}")
    if count > 1:
        _write_index(folder, dict(zip(names, shards, strict=True)))


def spilled(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], catalogue: TensorCatalogue, recipe: Recipe
) -> Mapping[str, torch.Tensor]:
    """The tensors of a merge, written to a folder in this one and read from there, so that they are mapped, not held.

    Those that are there from an earlier call are read again: several merges may have one ingredient in common.

    Args:
        tensors: left alone where they have been written before.
        catalogue: of the base.
    """
    own = folder / recipe.digest
    if not own.exists():
        stacked = stacked_catalogue(catalogue, [layer.layer for layer in recipe.layers]) if recipe.layers else catalogue
        aside = own.with_name(f"{own.name}.writing")
        aside.mkdir(parents=True, exist_ok=True)
        stream_weights(aside, planned_tensors(stacked, recipe.dtype), tensors)
        aside.rename(own)  # a folder of this name is whole
    return SafetensorsTensors(read_headers(own))


def planned_tensors(catalogue: TensorCatalogue, dtype: str) -> list[PlannedTensor]:
    """The tensors of a merge in a dtype; those that hold no floating-point numbers keep theirs."""
    return [
        PlannedTensor(entry.name, entry.shape, dtype if entry.is_floating else entry.dtype)
        for entry in catalogue.entries
    ]


def _shards(planned: Sequence[PlannedTensor], max_bytes: int) -> Iterator[list[PlannedTensor]]:
    shard: list[PlannedTensor] = []
    size = 0
    for tensor in planned:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _write_index(folder: Path, shards: Mapping[str, Sequence[PlannedTensor]]) -> None:
    weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX, as_json(index))
