"""The elements of a tensor in bins by their variance over the sources, so that any share of the largest is found again
without sorting: all bins but one are selected or dropped whole.

A bin holds all elements of its variances, how many they are, and their energy. Where the limits of the bins are has no
influence on what is found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.selection import variance

BINS = 256
SAMPLED = 1 << 14  # variances, of which the limits of the bins are taken
SCANNED = 1 << 22  # elements in which those of one bin are looked for together

Energies = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Selected:
    """The elements of largest variance.

    Attributes:
        least: their least variance.
        end: of the elements with exactly this variance those below this index; None: all.
        shares: c_i of each source.
        energy: the sum of their squares over all sources.
    """

    least: float
    shares: list[float]
    energy: float
    end: int | None = None


@dataclass(frozen=True)
class EnergyScale:
    """Squares as two whole numbers each, whose sums are exact in float64 whatever their order.

    Attributes:
        bits: of a whole number, of which there may be as many as the tensor has elements.
        factor: a power of two that makes the largest square less than 2^bits.
    """

    bits: int
    factor: float

    @classmethod
    def of(cls, largest: float, elements: int) -> EnergyScale:
        bits = 52 - elements.bit_length()
        return cls(bits, 2.0 ** (bits - math.frexp(largest * largest)[1]))

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The upper and the lower number of each square, in float64."""
        scaled = vector.double().square() * self.factor
        upper = scaled.floor()
        return upper, ((scaled - upper) * 2.0**self.bits).round()

    def shares(self, energies: Energies) -> tuple[list[float], float]:
        """Of sums of [both numbers, sources] the share of each source, equal ones where all are 0, and the total."""
        each = (energies[0] + energies[1] * 2.0**-self.bits).tolist()
        total = sum(each)
        return [energy / total if total else 1 / len(each) for energy in each], total / self.factor


class VarianceBins:
    """The bins of one tensor of a rule."""

    def __init__(self, tensors: RuleTensors, name: str, *, divided: bool = True) -> None:
        """
        Args:
            divided: False: only all elements will be asked for, and nothing is kept by element.
        """
        like, self._count = tensors.like(name), len(tensors.sources)
        self._elements = like.numel()
        largest = _largest(tensors, name)
        self._finite = math.isfinite(largest * largest)
        divided = divided and self._finite
        self._limits = _limits(tensors, name, divided)
        self._scale = EnergyScale.of(largest if self._finite else 1.0, self._elements)
        self._bin_of = torch.empty(self._elements if divided else 0, dtype=torch.uint8, device=like.device)
        self._held = np.zeros(len(self._limits) + 1, np.int64)
        self._energies = np.zeros((len(self._limits) + 1, 2, self._count))
        self.varied = 0
        if self._finite:
            self._fill(tensors, name)

    def everything(self) -> Selected:
        """All elements."""
        return self._selected(0.0, self._energies.sum(0))

    def nothing(self) -> Selected:
        return self._selected(math.inf, np.zeros((2, self._count)))

    def largest(self, tensors: RuleTensors, name: str, kept: int, *, exact: bool) -> Selected:
        """As many elements as were asked for, at most those with a variance, and all that are tied with the last; or
        (`exact`) of these the ones of lowest index alone. Everything where none has a variance that is known and not 0,
        or (`exact`) nothing where all are 0.

        Args:
            tensors, name: those that the bins were made of.
            kept: 1 or more, or (`exact`) 0 or more.
        """
        if not self._finite or not (self.varied or exact):
            return self.everything()
        if not kept:
            return self.nothing()
        above = np.cumsum(self._held[::-1])[::-1]  # elements of a bin and those above it
        place = int(np.flatnonzero(above >= kept)[-1])
        members = _joined(list(self._members(tensors, name, place)))
        rank = kept - int(above[place] - self._held[place])
        least = float(np.partition(members.varied, -rank)[-rank])
        chosen, end = members.varied >= least, None
        if exact:
            larger = members.varied > least
            tied = np.flatnonzero(members.varied == least)[: rank - int(larger.sum())]
            end, chosen = int(members.index[tied[-1]]) + 1, larger
            chosen[tied] = True
        energies = self._energies[place + 1 :].sum(0)
        for source, vector in enumerate(members.vectors):
            for part, numbers in enumerate(self._scale.split(vector[torch.from_numpy(chosen).to(vector.device)])):
                energies[part, source] += float(numbers.sum())
        return self._selected(least, energies, end)

    def _selected(self, least: float, energies: Energies, end: int | None = None) -> Selected:
        shares, energy = self._scale.shares(energies) if self._finite else ([math.nan] * self._count, math.nan)
        return Selected(least=least, shares=shares, energy=energy, end=end)

    def _fill(self, tensors: RuleTensors, name: str) -> None:
        limits = self._limits.to(self._bin_of.device)
        for piece in tensors.pieces(name):
            vectors = piece.task_vectors()
            varied = variance(vectors)
            places = torch.bucketize(varied, limits, right=True)
            if len(self._bin_of):
                self._bin_of[piece.start : piece.stop] = places
            self.varied += int(varied.count_nonzero())
            self._held += torch.bincount(places, minlength=len(self._held)).cpu().numpy()
            for source, vector in enumerate(vectors):
                for part, numbers in enumerate(self._scale.split(vector)):
                    added = torch.bincount(places, weights=numbers, minlength=len(self._held))
                    self._energies[:, part, source] += added.cpu().numpy()

    def _members(self, tensors: RuleTensors, name: str, place: int) -> Iterator[_Members]:
        """The elements of a bin, in order."""
        models = [model[name].detach().reshape(-1) for model in (tensors.base or {}, *tensors.sources)]
        device, dtype = self._bin_of.device, tensors.dtype([name])
        for start in range(0, self._elements, SCANNED):
            index = (self._bin_of[start : start + SCANNED] == place).nonzero()[:, 0] + start
            base, *sources = (model[index.to(model.device)].to(device, dtype) for model in models)
            vectors = [source - base for source in sources]
            yield _Members(index.cpu().numpy(), vectors, variance(vectors).cpu().numpy())


@dataclass(frozen=True)
class _Members:
    """Elements by index, with their task vectors and variances."""

    index: npt.NDArray[np.int64]
    vectors: Sequence[Tensor]
    varied: npt.NDArray[np.floating]


def _joined(parts: Sequence[_Members]) -> _Members:
    return _Members(
        np.concatenate([part.index for part in parts]),
        [torch.cat(each) for each in zip(*(part.vectors for part in parts), strict=True)],
        np.concatenate([part.varied for part in parts]),
    )


def _largest(tensors: RuleTensors, name: str) -> float:
    """The largest magnitude of the task vectors; NaN where one is."""
    found = [max_of.abs().amax() for piece in tensors.pieces(name) for max_of in piece.task_vectors()]
    return float(torch.stack(found).amax()) if found else 0.0


def _limits(tensors: RuleTensors, name: str, divided: bool) -> Tensor:
    """The variances at which a new bin begins, ascending."""
    like, dtype = tensors.like(name), tensors.dtype([name])
    if not divided or not like.numel():
        return torch.empty(0, dtype=dtype)
    step = max(like.numel() // SAMPLED, 1)
    models = (tensors.base or {}, *tensors.sources)
    base, *sources = (model[name].detach().reshape(-1)[::step].to(like.device, dtype) for model in models)
    ordered = variance([source - base for source in sources]).cpu().sort().values.numpy()
    chosen = np.unique(ordered[np.arange(1, BINS) * len(ordered) // BINS])
    return torch.from_numpy(chosen[chosen > 0])
