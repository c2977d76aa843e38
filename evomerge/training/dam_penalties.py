"""The losses of DAM on the coefficients themselves: similarity, overlaps and norms, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.optimisation.coefficients import Coefficients, ModuleRole
from evomerge.training import dam
from evomerge.training.dam_settings import LossWeights

Penalty = Callable[[Mapping[str, Tensor]], Tensor]  # of the trained coefficients by tensor name: a weighted loss


def dam_penalties(
    losses: LossWeights,
    roles: Mapping[str, ModuleRole],
    coefficients: Coefficients,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    base: str,
) -> dict[str, Penalty]:
    """Name -> weighted loss on the trained coefficients, for those that are switched on.

    Similarity and overlaps compare vectors, the weighted overlap those of linear layers and embeddings.

    Args:
        roles: of all tensors that have coefficients.
        weights: source name -> its tensors by name.
        base: name of the base, from which task vectors are taken.
    """
    vectors = [name for name in coefficients.trainable if roles[name].shape]
    found: dict[str, Penalty] = {}
    if weight := losses.similarity:
        found["similarity"] = lambda values: dam.similarity(_rows(values, vectors), weight)
    if overlap := losses.overlap:
        found["overlap"] = lambda values: dam.overlap(_rows(values, vectors), overlap)
    if (weighted := losses.weighted_overlap) and len(coefficients.sources) > 1:
        columns = [name for name in vectors if roles[name].kind != "norm"]
        factors = [
            dam.between_columns(
                [_by_column(weights[source][name], roles[name]) - _by_column(weights[base][name], roles[name])
                 for source in coefficients.sources]
            )
            for name in columns
        ]  # fmt: skip
        found["weighted_overlap"] = lambda values: dam.overlap_at_angles(_rows(values, columns), factors, weighted)
    if both := losses.l1_l2:
        found["l1_l2"] = lambda values: dam.l1_l2(_rows(values, coefficients.trainable), both, both)
    return found


def add_penalties(
    gradients: Mapping[str, Tensor], penalties: Mapping[str, Penalty], trained: Mapping[str, Tensor]
) -> dict[str, float]:
    """The value of each penalty; their gradients are added to the given ones.

    Args:
        gradients, trained: by tensor name, of the same shapes.
    """
    if not penalties:
        return {}
    with torch.enable_grad():
        leaves = {name: value.detach().clone().requires_grad_() for name, value in trained.items()}
        values = {name: penalty(leaves) for name, penalty in penalties.items()}
        total = sum(values.values())
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            gradients[name].add_(leaf.grad)
    return {name: float(value.detach()) for name, value in values.items()}


def _rows(values: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    return [values[name].flatten(1) if values[name].ndim > 1 else values[name][:, None] for name in names]


def _by_column(weight: Tensor, role: ModuleRole) -> Tensor:
    """[out, in], also where the weight is stored [in, out]."""
    return weight.float() if len(role.shape) == 1 else weight.float().T
