"""Alignment of the units of one model to those of another by optimal transport: settings, results, maps of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evomerge.alignment.transport import (
    Mixture,
    UnitMap,
    assignment,
    corrected,
    cost_matrix,
    exact_plan,
    sinkhorn_plan,
)


@dataclass(frozen=True, kw_only=True)
class OtSettings:
    """Definition of an alignment; the defaults are those of the published commands.

    Attributes:
        mode: wts compares units by their incoming weights, acts by their activations before the non-linearity.
        cost, cost_scaling, unit_rows: see `cost_matrix`.
        solver: exact or sinkhorn.
        reg: weight of the entropy for sinkhorn, above 0.
        correction: divide plans by their marginals; otherwise a plan is its own map.
        past_correction: apply T_l to weights with aligned inputs; otherwise to those of A as they are.
        marginals: column_sums, uniform or row_sums.
        align_output: align the units of the last layer, too.
    """

    mode: str = "wts"
    cost: str = "euclidean"
    cost_scaling: str = "none"
    unit_rows: bool = False
    solver: str = "exact"
    reg: float = 1e-2
    correction: bool = True
    past_correction: bool = True
    marginals: str = "column_sums"
    align_output: bool = True


@dataclass(frozen=True)
class Alignment:
    """A model in the order of another one's units.

    Attributes:
        tensors: the aligned model.
        moved: layer -> number of units that come from another position; 0 everywhere for fine-tunes of one base.
        units: layer -> number of its units.
    """

    tensors: dict[str, Tensor]
    moved: dict[str, int]
    units: dict[str, int]


def unit_map(source: Tensor, target: Tensor, settings: OtSettings) -> UnitMap:
    """The map from the units of one layer to those of another, by a vector for each unit: [n, d] and [m, d]."""
    costs = cost_matrix(source, target, settings.cost, settings.cost_scaling, unit_rows=settings.unit_rows)
    if settings.solver == "exact":
        if settings.correction and costs.shape[0] == costs.shape[1]:
            return assignment(costs)
        plan = exact_plan(costs)
    else:
        plan = sinkhorn_plan(costs, settings.reg)
    return Mixture(corrected(plan, settings.marginals) if settings.correction else plan)
