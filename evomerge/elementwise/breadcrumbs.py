"""Model Breadcrumbs: task vectors without their smallest and their largest elements. arXiv 2312.06795."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.elementwise.task_arithmetic import merge_scaled
from evomerge.elementwise.ties import Election, plan_election
from evomerge.native.ranked_magnitudes import Ranked
from evomerge.tensors.order_statistics import expected_order_statistics, order_statistics
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.task_vectors import TaskVectors

SAMPLED = 1 << 15  # magnitudes of a tensor, which tell about where its bounds are


def merge_breadcrumbs(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + lambda sum_i w_i t_i, with t_i the elements of tau_i between two of its magnitudes.

    Of the d elements of a tensor int(density d) are kept, at least one, and int(gamma d) larger ones dropped, or as
    many as the density leaves. What is tied with the smallest or the largest kept magnitude is kept, or (`kept_rule:
    exact`) of it the elements of lowest index alone, and nothing at density 0. No rescaling.

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


def plan_breadcrumbs(tensors: RuleTensors) -> Plan:
    """The formula of `merge_breadcrumbs`."""
    formula = Formula(kind="scaled", bands=True, ties=is_exact(tensors))
    return Plan(formula=formula, factors=_factors(tensors), scale=tensors.shared("lambda"))


def plan_breadcrumbs_ties(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_breadcrumbs_ties`."""
    return plan_election(tensors, None, None, _factors(tensors))


@dataclass(frozen=True)
class Band:
    """The magnitudes of a tensor that are kept, both included.

    Attributes:
        ends: what has the least, and the most, magnitude is kept below these indices; None: everywhere.
    """

    least: float = 0.0
    most: float = math.inf
    ends: tuple[int, int] | None = None

    def __call__(self, start: int, vector: Tensor) -> Tensor:
        """The vector with 0 for all others; what is not finite gives NaN, so that it is seen in the result."""
        magnitude = vector.abs()
        dropped = (magnitude < self.least) | (magnitude > self.most)
        if self.ends is not None:
            index = torch.arange(start, start + vector.numel(), device=vector.device)
            for bound, end in zip((self.least, self.most), self.ends, strict=True):
                dropped |= (magnitude == bound) & (index >= end)
        return torch.where(dropped, magnitude * 0.0, vector)


NOTHING = Band(math.inf, math.inf)


def _factors(tensors: RuleTensors) -> Callable[[str], list[Factors]]:
    weights, bands = tensors.per_source("weight"), Bands(tensors)

    def factors(name: str) -> list[Factors]:
        kept = [bands(source, name) or Band() for source in range(len(weights))]
        return [
            Factors(weight, band.least, None, (0.0, band.most, 0.0, 0.0, 0.0), *(band.ends or ()))
            for weight, band in zip(weights, kept, strict=True)
        ]

    return factors


def _vectors(tensors: RuleTensors) -> TaskVectors:
    """The t_i."""
    return TaskVectors(tensors, Bands(tensors))


def is_exact(tensors: RuleTensors) -> bool:
    """Whether as many are kept as the density says. Recipes from before there was the option do not name it."""
    return tensors.options.get("kept_rule") == "exact"


class Bands:
    """The `Band` of each tensor of each source."""

    def __init__(self, tensors: RuleTensors) -> None:
        self._tensors = tensors
        self._densities, self._gammas = tensors.per_source("density"), tensors.per_source("gamma")
        self._exact = is_exact(tensors)
        self._vectors = TaskVectors(tensors)
        self._found: dict[tuple[int, str], Band | None] = {}

    def __call__(self, source: int, name: str) -> Band | None:
        """None: everything is kept."""
        if (source, name) not in self._found:
            self._found[source, name] = self._band(source, name)
        return self._found[source, name]

    def _band(self, source: int, name: str) -> Band | None:
        elements = self._tensors.like(name).numel()
        if elements == 0:
            return None
        if self._exact and int(self._densities[source] * elements) == 0:
            return NOTHING
        ranks = kept_ranks(self._densities[source], self._gammas[source], elements)
        if ranks == (1, elements):
            return None
        known = self._tensors.thresholds
        found = None if known is None else known.exact_magnitudes(source, name, ranks)
        least, most = found or self._counted(source, name, ranks)
        return Band(least.value, most.value, self._ends(source, name, ranks, least, most) if self._exact else None)

    def _ends(self, source: int, name: str, ranks: tuple[int, int], least: Ranked, most: Ranked) -> tuple[int, int]:
        """`Band.ends` under which as many elements are kept as there are ranks."""
        first, last = ranks
        if least.value == most.value:
            end = self._end(source, name, least, last - first + 1)
            return end, end
        kept_at_least = least.smaller + least.equal - first + 1
        return self._end(source, name, least, kept_at_least), self._end(source, name, most, last - most.smaller)

    def _end(self, source: int, name: str, ranked: Ranked, kept: int) -> int:
        """The index below which elements of this magnitude are kept, so that there are as many."""
        if kept == ranked.equal:
            return self._tensors.like(name).numel()
        return self._vectors.end_of_equal(source, name, ranked.value, kept)

    def _magnitudes(self, source: int, name: str) -> Iterator[Tensor]:
        return (piece.abs_() for piece in self._vectors.pieces(source, name))  # in new memory

    def _counted(self, source: int, name: str, ranks: Sequence[int]) -> list[Ranked]:
        """The magnitudes of these ranks; what is smaller or equal is counted where it matters."""
        bounds = self._bounds(source, name, ranks)
        smaller, equal = [0] * len(bounds), [0] * len(bounds)
        for piece in self._magnitudes(source, name) if self._exact else ():
            for place, bound in enumerate(bounds):
                smaller[place] += int((piece < bound).count_nonzero())
                equal[place] += int((piece == bound).count_nonzero())
        return [Ranked(*each) for each in zip(bounds, smaller, equal, strict=True)]

    def _bounds(self, source: int, name: str, ranks: Sequence[int]) -> list[float]:
        like, dtype = self._tensors.like(name), self._tensors.dtype([name])

        def magnitudes() -> Iterator[Sequence[Tensor]]:
            return ([piece] for piece in self._magnitudes(source, name))

        if like.device.type != "cpu":  # where copying to main memory takes longer than counting
            return order_statistics(magnitudes, [ranks], dtype)[0]
        sample = [[self._sample(source, name)]]
        (found,) = expected_order_statistics(
            magnitudes, ranks, dtype, elements=like.numel(), sample=sample, signed=False
        )
        return found

    def _sample(self, source: int, name: str) -> Tensor:
        """Some of the magnitudes, spread over the tensor."""
        like, dtype = self._tensors.like(name), self._tensors.dtype([name])
        models = (self._tensors.sources[source], self._tensors.base or {})
        step = max(like.numel() // SAMPLED, 1)
        one, other = (model[name].detach().reshape(-1)[::step].to(like.device, dtype) for model in models)
        return (one - other).abs()
