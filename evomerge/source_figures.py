"""Figures of the sources for `evomerge check`: lengths, cosines and signs of their task vectors by group of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Final

import torch
from torch import Tensor

from evomerge.forms import finite_or_none
from evomerge.messages import listed
from evomerge.opening.inputs import Inputs

WHOLE: Final = 300_000_000  # elements of a model up to which all are read; of larger ones every k-th row
PIECE: Final = 1 << 20  # elements that are compared at once
UNEVEN: Final = 3.0  # ratio of two lengths
ALIKE: Final = 0.5  # cosine from which two task vectors are one change
OPPOSED: Final = -0.1  # cosine below which they undo each other
CHANCE: Final = 0.55  # share of equal signs below which they agree no more than coins do


def source_figures(inputs: Inputs) -> dict[str, Any]:
    """Norms, cosines and sign agreement of the task vectors, in all and by group, and what they predict.

    Groups are those of the space where it has several, else the parts of the model. Figures that are not defined, such
    as the cosine of a task vector that is zero, are None.

    Returns:
        `rows_read` (1 of how many rows was read), `groups` (label -> figures) and `says`, sentences.
    """
    catalogue = inputs.catalogue
    stride = max(1, math.ceil(sum(entry.numel for entry in catalogue.mergeable) / WHOLE))
    names = [expert.ref.name for expert in inputs.experts]
    sums = {entry.name: _TensorSums.of(inputs, entry.name, stride) for entry in catalogue.mergeable}
    labels = {"all": list(sums), **_groups(inputs)}
    groups = {label: _figures(sum_up([sums[name] for name in members]), names) for label, members in labels.items()}
    return {"rows_read": stride, "groups": groups, "says": _sentences(groups["all"], names, stride)}


def _groups(inputs: Inputs) -> dict[str, list[str]]:
    groups = inputs.space.groups
    if len(groups) > 1:
        return {group.label or "rest": list(group.tensors) for group in groups}
    parts: dict[str, list[str]] = {}
    for entry in inputs.catalogue.mergeable:
        parts.setdefault(entry.part, []).append(entry.name)
    return parts


class _TensorSums:
    """Sums over the elements of some tensors for n task vectors, in fp64 on the CPU.

    Attributes:
        products: [n, n], <tau_i, tau_j>.
        differences: [n, n], elements of equal sign minus elements of opposite sign.
        both: [n, n], elements where neither is zero.
        base: sum of the squares of the base.
    """

    def __init__(self, products: Tensor, differences: Tensor, both: Tensor, base: float) -> None:
        self.products, self.differences, self.both, self.base = products, differences, both, base

    @classmethod
    def of(cls, inputs: Inputs, name: str, stride: int) -> _TensorSums:
        nothing = torch.zeros(len(inputs.experts), len(inputs.experts), dtype=torch.float64)
        found = cls(nothing.clone(), nothing.clone(), nothing.clone(), 0.0)
        for base, *experts in _pieces([each.tensors[name] for each in (inputs.base, *inputs.experts)], stride):
            vectors = torch.stack([expert - base for expert in experts])
            signs = vectors.sign()
            found.products += vectors @ vectors.T
            found.differences += signs @ signs.T
            found.both += signs.abs() @ signs.abs().T
            found.base += float(base.square().sum())
        return found


def _pieces(tensors: Sequence[Tensor], stride: int) -> Iterator[list[Tensor]]:
    rows = [(each[::stride] if each.dim() > 1 else each).reshape(-1) for each in tensors]
    for start in range(0, rows[0].numel(), PIECE):
        yield [each[start : start + PIECE].to("cpu", torch.float64) for each in rows]


def sum_up(sums: Sequence[_TensorSums]) -> _TensorSums:
    """The sums over all of these tensors."""
    total = _TensorSums(sums[0].products * 0, sums[0].differences * 0, sums[0].both * 0, 0.0)
    for each in sums:
        total.products += each.products
        total.differences += each.differences
        total.both += each.both
        total.base += each.base
    return total


def _figures(sums: _TensorSums, names: Sequence[str]) -> dict[str, Any]:
    lengths = sums.products.diagonal().clamp(min=0).sqrt()
    base = math.sqrt(sums.base)
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        both, product = float(sums.both[i, j]), float(lengths[i] * lengths[j])
        cosine = float(sums.products[i, j]) / product if product else math.nan
        equal = (both + float(sums.differences[i, j])) / 2 / both if both else math.nan
        pairs.append(
            {"sources": [names[i], names[j]], "cosine": finite_or_none(cosine), "same_sign": finite_or_none(equal)}
        )
    relative = {
        name: finite_or_none(float(length) / base if base else math.nan) for name, length in _zipped(names, lengths)
    }
    return {
        "norms": {name: finite_or_none(float(length)) for name, length in _zipped(names, lengths)},
        "relative_norms": relative,
        "pairs": pairs,
    }


def _zipped(names: Sequence[str], lengths: Tensor) -> list[tuple[str, float]]:
    return list(zip(names, lengths.tolist(), strict=True))


def _sentences(figures: dict[str, Any], names: Sequence[str], stride: int) -> list[str]:
    """Predictions from the figures of all tensors, a sentence each. None of them takes the place of a score."""
    norms = {name: value or 0.0 for name, value in figures["norms"].items()}
    says = [*_on_lengths(norms)]
    if len(names) > 1:
        says += [*_on_cosines(figures["pairs"]), *_on_signs(figures["pairs"])]
    if stride > 1:
        says.append(f"Of a model of this size one row in {stride} was read.")
    return says


def _on_lengths(norms: dict[str, float]) -> Iterator[str]:
    if same := [name for name, value in norms.items() if value == 0]:
        yield f"{listed(same)} has the weights of the base: nothing can be merged from it."
    lengths = {name: value for name, value in norms.items() if value > 0}
    if len(lengths) < 2:
        return
    longest, shortest = max(lengths, key=lambda name: lengths[name]), min(lengths, key=lambda name: lengths[name])
    ratio = lengths[longest] / lengths[shortest]
    if ratio >= UNEVEN:
        yield (
            f"The task vector of {longest} is {ratio:.1f} times as long as that of {shortest}: with equal weights it "
            "decides most elements, in TIES as well; search one weight per source."
        )
    else:
        yield f"Task vectors are of like length (at most {ratio:.1f} times): equal weights are a fair start."


def _on_cosines(pairs: Sequence[dict[str, Any]]) -> Iterator[str]:
    known = [pair for pair in pairs if pair["cosine"] is not None]
    if not known:
        return
    high, low = max(known, key=lambda pair: pair["cosine"]), min(known, key=lambda pair: pair["cosine"])
    if high["cosine"] >= ALIKE:
        yield (
            f"{listed(high['sources'])} changed the base alike (cosine {high['cosine']:.2f}): in a sum their change "
            "counts nearly twice, and between the two the weights matter little."
        )
    if low["cosine"] <= OPPOSED:
        yield (
            f"{listed(low['sources'])} undo each other (cosine {low['cosine']:.2f}): a weighted sum loses part of "
            "both; search weights per group, or a method that elects signs."
        )
    if high["cosine"] < ALIKE and low["cosine"] > OPPOSED:
        yield (
            f"Task vectors are nearly independent (cosines {low['cosine']:.2f} to {high['cosine']:.2f}): in a sum each "
            "keeps its length, and task arithmetic with one weight for all is a fair start."
        )


def _on_signs(pairs: Sequence[dict[str, Any]]) -> Iterator[str]:
    known = [pair["same_sign"] for pair in pairs if pair["same_sign"] is not None]
    if not known:
        return
    lowest, mean = min(known), sum(known) / len(known)
    coins = ", hardly more than by chance" if mean < CHANCE else ""
    yield (
        f"Where two experts changed an element, {mean:.0%} of the signs agree{coins} (the least alike pair: "
        f"{lowest:.0%}): a method that elects signs (TIES) has a conflict in {1 - mean:.0%} of them."
    )
