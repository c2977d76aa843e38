"""Merges that stand as sources of other merges: built when first needed, and kept by the digest of their recipe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

import torch

from evomerge.recipe import Recipe

Tensors = Mapping[str, torch.Tensor]


class ResidentMerges:
    """The merges that were used last.

    Those that the recipe at hand names are kept in any case; of the others as many as memory was planned for, and what
    was not used for longest is dropped first.

    Args:
        build: the tensors of a merge, in the place of the sources. It may ask this object for the ingredients of that.
        forget: called with the digest of each merge that is dropped: nothing may refer to its tensors any longer.
        planned: number of merges that there is memory for.
    """

    def __init__(self, build: Callable[[Recipe], Tensors], forget: Callable[[str], None], *, planned: int) -> None:
        self._build = build
        self._forget = forget
        self._planned = planned
        self._held: OrderedDict[str, Tensors] = OrderedDict()
        self._named: frozenset[str] = frozenset()
        self._depth = 0

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, named: Collection[Recipe]) -> None:
        """Make room for the merges that the next recipe names. They are built when a rule asks for them."""
        self._named = frozenset(recipe.digest for recipe in named)
        self._drop()

    def tensors(self, recipe: Recipe) -> Tensors:
        """The tensors of a merge. Nobody writes to them.

        Raises:
            MergeError: it cannot be built.
        """
        digest = recipe.digest
        if digest in self._held:
            self._held.move_to_end(digest)
            return self._held[digest]
        self._depth += 1
        try:
            built = self._build(recipe)
        finally:
            self._depth -= 1
        self._held[digest] = built
        if not self._depth:  # until then its ingredients are needed, for one of its rules after the other
            self._drop()
        return built

    def _drop(self) -> None:
        """Drop what there is no room for."""
        others = [digest for digest in self._held if digest not in self._named]
        room = max(0, self._planned - len(self._named))
        for digest in others[: max(0, len(others) - room)]:
            del self._held[digest]
            self._forget(digest)
