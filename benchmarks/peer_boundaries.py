"""Elements at the bounds of what a method keeps: where several are tied there, programs may keep other ones of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from peer_comparison import Tensors
from torch import Tensor

from evomerge.elementwise.breadcrumbs import kept_ranks
from evomerge.elementwise.sce import variance
from evomerge.recipe import Recipe, Rule


def at_bounds(recipe: Recipe, models: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Tensor name -> which of its elements are tied at a bound; without the tensors that nothing is left out of."""
    found = {}
    for rule in recipe.rules:
        for name in rule.tensors:
            start = models[recipe.base.name][name].float()
            vectors = [models[source][name].float() - start for source in rule.sources]
            tied = [_tied(values, bound) for values, bound in _bounds(rule, vectors)]
            if tied:
                found[name] = torch.stack(tied).any(0)
    return found


def _tied(values: Tensor, bound: float) -> Tensor:
    at = torch.isclose(values, torch.tensor(bound), rtol=1e-6, atol=0.0)  # variances are rounded
    return at if int(at.sum()) > 1 else torch.zeros_like(at)


def _bounds(rule: Rule, vectors: list[Tensor]) -> Iterator[tuple[Tensor, float]]:
    """(numbers that are compared, one that is the bound) of a tensor."""
    elements = vectors[0].numel()
    if rule.method == "ties":
        for vector, density in zip(vectors, rule.parameters["density"], strict=True):
            kept = max(1, int(elements * density))
            if density > 0 and kept < elements:
                yield vector.abs(), _kth(vector.abs(), elements - kept + 1)
    elif rule.method.startswith("breadcrumbs"):
        shares = zip(rule.parameters["density"], rule.parameters["gamma"], strict=True)
        for vector, (density, gamma) in zip(vectors, shares, strict=True):
            for rank in kept_ranks(density, gamma, elements):
                yield vector.abs(), _kth(vector.abs(), rank)
    elif rule.method == "sce" and rule.parameters["select_topk"] < 1:
        varied = variance(vectors)
        kept = int(rule.parameters["select_topk"] * int(varied.count_nonzero()))
        if kept:
            yield varied, _kth(varied, elements - kept + 1)


def _kth(values: Tensor, rank: int) -> float:
    return float(values.reshape(-1).kthvalue(rank).values)
