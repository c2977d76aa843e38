"""Memory that adapters take in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.adapters.adapted_tensors import AdaptedTensors
from evomerge.checkpoints.source import Source


@dataclass(frozen=True)
class AdapterBytes:
    """Bytes of one adapter.

    Attributes:
        held: the sizes of its factors, and of what it replaces, tensor by tensor.
        made: of the largest tensor that it changes, while it is read.
    """

    held: tuple[int, ...]
    made: int


def adapter_bytes(sources: Sequence[Source]) -> list[AdapterBytes]:
    """The bytes of those sources that are adapters."""
    found = []
    for source in sources:
        if isinstance(source.tensors, AdaptedTensors):
            changed = [source.catalogue[name] for name in source.tensors.changes]
            made = max((entry.numel * (8 if entry.dtype == "float64" else 4) for entry in changed), default=0)
            found.append(AdapterBytes(held=tuple(tensor.nbytes for tensor in source.tensors.held), made=made))
    return found
