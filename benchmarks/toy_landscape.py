"""The toy models as a landscape: the merges of examples/toy by one weight per expert and block of two layers."""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported

import logging
import statistics
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from toy_example import toy_search

from evomerge.evaluation import ItemBlock
from evomerge.jobs import Score, Scored
from evomerge.opening.inputs import open_inputs
from evomerge.packs.items import Part
from evomerge.worker import Worker

__all__ = ["DIMENSIONS", "ToyModels", "toy_models"]

Point = NDArray[np.float64]

DIMENSIONS: Final = 18
BATCH_SIZE: Final = 1024


class ToyModels:
    """A `Landscape` whose quality is the mean score over the held-out items; measured is that over the search items."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        logging.disable(logging.WARNING)
        inputs = open_inputs(toy_search())
        self._space = inputs.space
        self._worker = Worker(inputs.setup(None))

    def quality(self, point: Point) -> float:
        return self._score(point, "held_out")

    def measured(self, point: Point, items: int | None, key: tuple[int, ...]) -> float:
        return self._score(point, "search")

    def _score(self, point: Point, part: Part) -> float:
        ranges = self._space.distributions.items()
        params = {name: r.low + (r.high - r.low) * float(x) for (name, r), x in zip(ranges, point, strict=True)}
        outcome = self._worker.run(
            Score(key="", recipe=self._space.decode(params), items=ItemBlock(part), batch_size=BATCH_SIZE)
        )
        if not isinstance(outcome.result, Scored):
            raise SystemExit(f"a merge of the toy models cannot be scored: {outcome.result}")
        return statistics.fmean(task.value for task in outcome.result.scores.tasks.values())


@cache
def toy_models() -> ToyModels:
    """One per process: the models and the items are read once."""
    return ToyModels()
