"""Synthetic landscapes that resemble merging: quality in (0, 1] over the unit cube, with a known best of 1.

Each instance is drawn from its seed: where the optimum lies, always 0.15 to 0.35 away from the centre in every
coordinate, and how the axes are turned. `quality = exp(-loss)`, and losses are scaled so that the centre of the box has
a loss of 1. With a number of items, what is measured is the share of that many items that are right: a binomial draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANDSCAPES", "Landscape", "landscape"]

Point = NDArray[np.float64]
Loss = Callable[[Point], float]

BLOCK: Final = 4  # parameters of one group of layers
PLATEAU_ITEMS: Final = 200


@dataclass(frozen=True)
class Landscape:
    """One instance.

    Attributes:
        loss: of the distance from the optimum; 0 at the optimum and above it elsewhere.
        optimum: where it lies.
        scale: what makes the centre's loss 1.
        steps: qualities are rounded down to multiples of 1 / steps, if given.
    """

    loss: Loss
    optimum: Point
    scale: float
    steps: int | None = None

    def quality(self, point: Point) -> float:
        """The true quality of a point."""
        quality = float(np.exp(-self.loss(point - self.optimum) / self.scale))
        return int(quality * self.steps + 1e-9) / self.steps if self.steps else quality

    def measured(self, point: Point, items: int | None, key: tuple[int, ...]) -> float:
        """What an evaluation says: the quality, or the share of `items` that are right, drawn by `key`."""
        quality = self.quality(point)
        if items is None:
            return quality
        return int(np.random.default_rng(key).binomial(items, quality)) / items


def landscape(name: str, dimensions: int, seed: int) -> Landscape:
    """The instance of that landscape that belongs to the seed."""
    generator = np.random.default_rng([sum(map(ord, name)), dimensions, seed])
    signs = generator.choice([-1.0, 1.0], size=dimensions)
    optimum = 0.5 + signs * generator.uniform(0.15, 0.35, size=dimensions)
    loss = LANDSCAPES[name](dimensions, generator)
    scale = loss(np.full(dimensions, 0.5) - optimum)
    return Landscape(loss, optimum, scale, PLATEAU_ITEMS if name == "plateaus" else None)


def _valley(dimensions: int, generator: np.random.Generator) -> Loss:
    """A curved valley in turned axes: pairs of coordinates bent like a banana, 30 times steeper across."""
    turn = _rotation(dimensions, generator)

    def loss(offset: Point) -> float:
        along, across = np.split(turn @ offset, 2)
        return float(np.sum(along**2) + 30.0 * np.sum((across - 2.0 * along**2) ** 2))

    return loss


def _separable(dimensions: int, generator: np.random.Generator) -> Loss:
    """An ellipsoid along the axes; the squared lengths of the axes differ by a factor of 1,000."""
    weights = generator.permutation(1000.0 ** np.linspace(0.0, 1.0, dimensions))
    return lambda offset: float(weights @ offset**2)


def _plateaus(dimensions: int, generator: np.random.Generator) -> Loss:
    """A turned ellipsoid, a factor of 10; its qualities are rounded: see `Landscape.steps`."""
    turn = _rotation(dimensions, generator)
    weights = 10.0 ** np.linspace(0.0, 1.0, dimensions)
    return lambda offset: float(weights @ (turn @ offset) ** 2)


def _groups(dimensions: int, generator: np.random.Generator) -> Loss:
    """Groups of layers: turned within each group of four, and neighbours must move together."""
    blocks = dimensions // BLOCK
    turns = [_rotation(BLOCK, generator) for _ in range(blocks)]
    weights = 10.0 ** generator.uniform(0.0, 1.0, size=blocks)
    inside = np.array([1.0, 3.0, 10.0, 30.0])

    def loss(offset: Point) -> float:
        parts = offset.reshape(blocks, BLOCK)
        own = sum(w * float(inside @ (t @ part) ** 2) for w, t, part in zip(weights, turns, parts, strict=True))
        return float(own + 100.0 * np.sum(np.diff(parts.mean(axis=1)) ** 2))

    return loss


def _saturating(dimensions: int, generator: np.random.Generator) -> Loss:
    """Each group of four saturates: far from its optimum, moving it changes nothing any more."""
    weights = 10.0 ** generator.uniform(0.0, 1.0, size=dimensions // BLOCK)

    def loss(offset: Point) -> float:
        distances = np.sum(offset.reshape(-1, BLOCK) ** 2, axis=1)
        return float(weights @ (distances / (distances + 0.1)))

    return loss


def _rotation(dimensions: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """A random rotation, evenly distributed (Stewart 1980)."""
    orthogonal, triangular = np.linalg.qr(generator.standard_normal((dimensions, dimensions)))
    return orthogonal * np.sign(np.diag(triangular))


LANDSCAPES: Final[Mapping[str, Callable[[int, np.random.Generator], Loss]]] = {
    "valley": _valley,
    "separable": _separable,
    "plateaus": _plateaus,
    "groups": _groups,
    "saturating": _saturating,
}
