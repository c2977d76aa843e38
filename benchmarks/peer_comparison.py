"""Weights that two programs have merged, compared element by element, or by the distribution of random masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

import torch
from safetensors import safe_open
from torch import Tensor

Tensors = Mapping[str, Tensor]

MANTISSA = 8  # bits of a bfloat16, the leading one included
DECILES = 10


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The distance of the merges of one file.

    Attributes:
        elements: of the model.
        differing: elements whose bits differ.
        beyond: elements that are further apart than one step of bfloat16 at the largest of what is added there.
        tied: those of them that are tied at a bound of what the method keeps.
        steps: the largest distance, in such steps.
    """

    elements: int
    differing: int
    beyond: int
    tied: int = 0
    steps: float


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model directory."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118, it is no mapping
    return found


def difference(ours: Tensors, theirs: Tensors, models: Sequence[Tensors], bounds: Tensors) -> Difference:
    """Element by element, over the tensors of both, as rounded to the dtype of `ours`.

    Args:
        models: base and sources.
        bounds: by tensor, the elements that are tied at a bound.

    Raises:
        ValueError: a tensor that one of them lacks, or that has another shape there.
    """
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"{'evomerge' if name in ours else 'mergekit'} alone has {name}")
    elements = differing = beyond = tied = 0
    largest = 0.0
    for name, own in ours.items():
        if own.shape != theirs[name].shape:
            raise ValueError(f"{name} has the shape {tuple(own.shape)}, and {tuple(theirs[name].shape)}")
        one, other = own.double(), theirs[name].to(own.dtype).double()
        size = torch.stack([one.abs(), other.abs(), *(model[name].double().abs() for model in models)]).amax(0)
        step = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - MANTISSA)
        steps = torch.where(one == other, 0.0, (one - other).abs() / step)
        elements += one.numel()
        differing += int(steps.count_nonzero())
        beyond += int((steps > 1).count_nonzero())
        tied += int(((steps > 1) & bounds[name]).count_nonzero()) if name in bounds else 0
        largest = max(largest, float(steps.max()))
    return Difference(elements=elements, differing=differing, beyond=beyond, tied=tied, steps=largest)


def traits(merged: Tensors, base: Tensors, experts: Sequence[Tensors]) -> list[float]:
    """Numbers of one merge that its random masks decide: by decile of the largest |tau_i| in its row, the share of the
    elements that are changed, and the mean change in its direction."""
    changes, sizes, signs = [], [], []
    for name, tensor in merged.items():
        start = base[name].float()
        vectors = torch.stack([expert[name].float() - start for expert in experts])
        rows = vectors.abs().amax(0).reshape(-1, tensor.shape[-1])
        ranks = rows.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True) / rows.shape[-1]
        changes.append((tensor.float() - start).reshape(-1))
        sizes.append(ranks.reshape(-1))
        signs.append(vectors.sum(0).sign().reshape(-1))
    change, rank, sign = torch.cat(changes), torch.cat(sizes), torch.cat(signs)
    found = []
    for decile in range(DECILES):
        inside = (rank * DECILES).long().clamp(max=DECILES - 1) == decile
        found += [float((change[inside] != 0).float().mean()), float((change * sign)[inside].double().mean())]
    return found


def distance(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """The largest difference between the means of a trait, in its standard errors.

    Args:
        ours, theirs: the traits of several seeds.
    """
    largest = 0.0
    for own, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        error = math.sqrt(variance(own) / len(own) + variance(other) / len(other))
        apart = abs(fmean(own) - fmean(other))
        largest = max(largest, apart / error if error else math.inf if apart else 0.0)
    return largest
