"""Memory in which merges are held that are sources of other merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from evomerge.bank.placement import Place, put
from evomerge.bank.shared_tensors import Named, SharedTensors
from evomerge.recipe import Recipe

Tensors = Mapping[str, torch.Tensor]


class MergeMemory:
    """The memory of the sources, where that is a memory one can write to; else main memory, or files in it.

    What a merge takes from the base without a change is the base's tensor.

    Args:
        base: its tensors by name.
        shared: the files that the workers of this machine have in common; None: each holds its own merges.
    """

    def __init__(self, base: Tensors, place: Place, device: torch.device, shared: SharedTensors | None) -> None:
        self._base = base
        self._place = place
        self._device = device
        self._shared = shared

    def hold(self, recipe: Recipe, merge: Callable[[], Named]) -> Tensors:
        """The tensors of a merge, in this memory. Where another worker has made them nothing is merged."""
        if self._shared is None:
            return {name: put(tensor, self._place, self._device) for name, tensor in merge()}
        if recipe.layers:  # of another depth than the base
            return self._shared.tensors(recipe.digest, merge)
        made = self._shared.tensors(recipe.digest, lambda: self._new(merge()))
        return {name: made.get(name, tensor) for name, tensor in self._base.items()}

    def drop(self, digest: str) -> None:
        """Free the memory of a merge that nothing refers to in this process."""
        if self._shared is not None:
            self._shared.forget(digest)

    def _new(self, tensors: Named) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            if tensor.data_ptr() != self._base[name].data_ptr():
                yield name, tensor
