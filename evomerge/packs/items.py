"""Items of an evaluation: the parts that they are divided into, and blocks of them that are scored together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["calibration", "search", "held_out"]


@dataclass(frozen=True)
class Split:
    """The items of each task in each part. Fixed when the study is created and stored in it.

    Attributes:
        parts: part -> task -> item ids (indices into the task's documents) in the study's fixed, seeded order.
        digests: part -> task -> digest over the contents of these items, so that changed data is noticed.
    """

    parts: Mapping[str, Mapping[str, tuple[int, ...]]]
    digests: Mapping[str, Mapping[str, str]]

    def items(self, block: ItemBlock) -> dict[str, tuple[int, ...]]:
        """The item ids of a block, by task."""
        if block.chosen is not None:
            chosen = dict(block.chosen)
            return {task: chosen.get(task, ()) for task in self.parts[block.part]}
        return {task: ids[slice(*block.positions(len(ids)))] for task, ids in self.parts[block.part].items()}


@dataclass(frozen=True)
class ItemBlock:
    """A block of the items of a part: positions [start, stop) of every task's fixed order. The default is all of it.

    With `of`, start and stop count in shares of each task: `ItemBlock("search", 2, 3, of=10)` is the third tenth of
    every task, however many items it has. Shares are rounded up, so that the first ones have an item of every task.

    Attributes:
        chosen: (task, item ids of the part) in place of positions, for items that were drawn.
    """

    part: Part
    start: int = 0
    stop: int | None = None
    of: int | None = None
    chosen: tuple[tuple[str, tuple[int, ...]], ...] | None = None

    def positions(self, items: int) -> tuple[int, int | None]:
        """First position, and the one after the last, in a task of so many items."""
        if self.of is None:
            return self.start, self.stop
        stop = self.of if self.stop is None else self.stop
        return -(-items * self.start // self.of), -(-items * stop // self.of)
