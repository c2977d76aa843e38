"""Task vectors of a rule in pieces, unchanged or changed element by element."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from evomerge.native import ranked_magnitudes
from evomerge.tensors.order_statistics import end_of_equal
from evomerge.tensors.rule_tensors import Piece, RuleTensors

Change = Callable[[int, Tensor], Tensor]
"""(index of the first element, piece of a flattened task vector) -> the changed piece; may write into its argument."""


class TaskVectors:
    """tau_i = theta_i - theta_0 of each source, or what `change(source, tensor name)` makes of it (None: nothing)."""

    def __init__(
        self, tensors: RuleTensors, change: Callable[[int, str], Change | None] = lambda source, name: None
    ) -> None:
        self._tensors = tensors
        self._change = change

    def of(self, name: str, piece: Piece) -> list[Tensor]:
        """The vectors of all sources in a piece that holds all of them, in new memory."""
        return [self._changed(source, name, piece.start, tau) for source, tau in enumerate(piece.task_vectors())]

    def pieces(self, source: int, name: str) -> Iterator[Tensor]:
        """The vector of one source in element order."""
        for piece in self._tensors.pieces(name, [source]):
            yield self._changed(source, name, piece.start, piece.task_vectors()[0])

    def end_of_equal(self, source: int, name: str, value: float, count: int) -> int:
        """The index, in one tensor, after the count-th element of this magnitude, of at least as many; for none 0."""
        models, end = self._tensors.pair(source, name), None
        if count and models is not None and self._change(source, name) is None:
            end = ranked_magnitudes.end_of_equal(*models, value, count)
        return end_of_equal((piece.abs() for piece in self.pieces(source, name)), value, count) if end is None else end

    def _changed(self, source: int, name: str, start: int, task_vector: Tensor) -> Tensor:
        change = self._change(source, name)
        return task_vector if change is None else change(start, task_vector)
