"""L1 norms of task vectors, whole and masked, whose bits depend on the pieces of a tensor alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from evomerge.native.masked_norms import PieceMask, masked_norm
from evomerge.tensors.masks import index_words
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.sums import ordered_sum
from evomerge.tensors.task_vectors import Change, TaskVectors


@dataclass(frozen=True)
class Mask:
    """The random mask of one tensor of one source.

    Attributes:
        key: see `masks.mask_key`.
        drop_rate: of all elements alike.
        ranks: int16 or int32, of elements that are kept with probability slope * rank + least instead.
        line: (slope, least).
    """

    key: int
    drop_rate: float = 0.0
    ranks: Tensor | None = None
    line: tuple[float, float] = (0.0, 0.0)

    def of_piece(self, start: int) -> PieceMask:
        limit = 0 if self.ranks is not None else math.ceil(self.drop_rate * (1 << 24))  # masks (4)
        return PieceMask(limit, *index_words(self.key, start))


NO_MASK = Mask(key=0)


def whole_norm(tensors: RuleTensors, source: int, name: str) -> float:
    """The sum of |tau_i| over one tensor, in float64; computed once for all candidates."""
    return tensors.cached(("L1 norm", source, name), lambda: _norm(tensors, source, name, None, NO_MASK))


def masked_vector_norm(tensors: RuleTensors, source: int, name: str, change: Change, mask: Mask) -> float:
    """The sum over what a change leaves of a task vector that masks it and does no more."""
    return _norm(tensors, source, name, change, mask)


def _norm(tensors: RuleTensors, source: int, name: str, change: Change | None, mask: Mask) -> float:
    vectors = TaskVectors(tensors, lambda source, name: change)
    models, norm = tensors.pair(source, name), None
    if models is not None:
        norm = masked_norm(
            *models,
            piece=tensors.piece_size(name),
            mask=mask.of_piece,
            rest=_magnitudes(*models, change),
            ranks=mask.ranks,
            line=mask.line,
        )
    return ordered_sum(piece.abs() for piece in vectors.pieces(source, name)) if norm is None else norm


def _magnitudes(base: Tensor, source: Tensor, change: Change | None) -> Callable[[int, int], Tensor]:
    flat_base, flat_source = base.reshape(-1), source.reshape(-1)

    def magnitudes(start: int, stop: int) -> Tensor:
        vector = flat_source[start:stop].float() - flat_base[start:stop].float()
        return (vector if change is None else change(start, vector)).abs()

    return magnitudes
