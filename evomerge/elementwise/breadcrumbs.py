"""Model Breadcrumbs: task vectors without their smallest and their largest elements. arXiv 2312.06795."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.elementwise.task_arithmetic import merge_scaled
from evomerge.elementwise.ties import Election
from evomerge.tensors.order_statistics import order_statistics
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.task_vectors import TaskVectors


def merge_breadcrumbs(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + lambda sum_i w_i t_i, with t_i the elements of tau_i between two of its magnitudes.

    Of the d elements of a tensor int(density d) are kept, at least one, and int(gamma d) larger ones dropped, or as
    many as the density leaves. What is tied with the smallest or the largest kept magnitude is kept. No rescaling.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    return merge_scaled(tensors, _vectors(tensors))


def merge_breadcrumbs_ties(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """The election of TIES (`merge_ties`, arXiv 2306.01708) on the vectors of `merge_breadcrumbs`.

    Yields, Raises:
        As `merge_ties`.
    """
    return Election(tensors, _vectors(tensors), None).merge()


def kept_ranks(density: float, gamma: float, elements: int) -> tuple[int, int]:
    """Ranks of the smallest and the largest kept magnitude, counted from 1 upwards.

    Args:
        density, gamma: share that is kept, and share of larger ones that is dropped.
        elements: at least 1.
    """
    kept = max(1, int(density * elements))
    larger = min(int(gamma * elements), elements - kept)
    return elements - larger - kept + 1, elements - larger


@dataclass(frozen=True)
class Band:
    """The magnitudes of a tensor that are kept, both included."""

    least: float
    most: float

    def __call__(self, start: int, vector: Tensor) -> Tensor:
        """The vector with 0 for all others; NaN is kept, so that it is seen in the result."""
        magnitude = vector.abs()
        return torch.where((magnitude < self.least) | (magnitude > self.most), 0.0, vector)


def _vectors(tensors: RuleTensors) -> TaskVectors:
    """The t_i.

    Bounds are counted, whether or not there is a table of thresholds: its number for a rank may be smaller than the
    element of that rank, which an upper bound must not be.
    """
    densities, gammas = tensors.per_source("density"), tensors.per_source("gamma")
    whole = TaskVectors(tensors)
    bands: dict[tuple[int, str], Band | None] = {}

    def band(source: int, name: str) -> Band | None:
        """None: everything is kept."""
        elements = tensors.like(name).numel()
        if elements == 0:
            return None
        least, most = kept_ranks(densities[source], gammas[source], elements)
        if (least, most) == (1, elements):
            return None
        ((low, high),) = order_statistics(
            lambda: ([piece.abs()] for piece in whole.pieces(source, name)), [[least, most]], tensors.dtype([name])
        )
        return Band(low, high)

    def change(source: int, name: str) -> Band | None:
        if (source, name) not in bands:
            bands[source, name] = band(source, name)
        return bands[source, name]

    return TaskVectors(tensors, change)
