"""OT fusion: the units of one model are aligned to those of another before the two are averaged. arXiv 1910.05653.

    T_0 = I;  for layer l = 1 .. L:
        Ah  = A_l T_{l-1}                                   aligned inputs
        T   = transport plan for M_ij = distance of unit i of A to unit j of B, by rows of Ah and B_l or by activations
        T_l = T diag(1 / (beta + 1e-7)), beta = column sums of T
        A'_l = T_l' Ah;   out_l = (1 - t) A'_l + t B_l

With equal widths and the exact solver T_l is a permutation, and is applied as one: a permuted copy comes back exactly.
The result has the units of the second model, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.merging.transport import (
    Mixture,
    UnitMap,
    assignment,
    corrected,
    cost_matrix,
    exact_plan,
    sinkhorn_plan,
)
from evomerge.messages import some

Tensors = Mapping[str, Tensor]


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
    """

    tensors: dict[str, Tensor]
    moved: dict[str, int]


def align_chain(
    source: Tensors,
    target: Tensors,
    settings: OtSettings = OtSettings(),
    activations: Sequence[Tensors] | None = None,
) -> Alignment:
    """Align a chain of fully connected layers to another one of the same depth.

    The layers are the two-dimensional tensors [outputs, inputs] in the source's order. The bias of the layer
    "name.weight" is "name.bias" and moves with its units. Scalars and tensors that are not floating-point stay.

    Args:
        activations: for mode acts, of source and target: weight name -> [samples, units], for the same samples.

    Returns:
        Tensors in float64 where they were mixed, otherwise in the dtype of the source.

    Raises:
        InvalidInput: no chain, models of different depth, a tensor that belongs to no layer, layers of different width
            where the settings need equal ones, or activations that are missing or do not fit.
        MergeError: a distance between units is not finite.
    """
    layers = chain_of(source, target)
    owners = _owners(source, layers)
    if _owners(target, layers) != owners:
        raise InvalidInput("the models differ in their biases, so that they cannot be aligned")
    if settings.mode == "acts" and (activations is None or len(activations) != 2):
        raise InvalidInput("mode acts compares activations; give `statistics`, {weight name: [samples, units]} of both")
    aligned = {name: tensor for name, tensor in source.items() if owners.get(name) is None}
    moved = {}
    incoming: UnitMap | None = None
    for name in layers:
        weight, other = source[name], target[name]
        shifted = weight if incoming is None else incoming.columns(weight)
        if name == layers[-1] and not settings.align_output:
            units: UnitMap | None = None
            _refuse_other_widths(name, weight, other, "align_output: false")
        else:
            if settings.mode == "acts":
                vectors = _activations(name, activations or (), (weight, other))
            else:
                vectors = (shifted, other)
            units = unit_map(*vectors, settings)
            if not settings.past_correction:
                _refuse_other_inputs(name, weight, other)
                shifted = weight
            moved[name] = units.moved
        for owned in (each for each, owner in owners.items() if owner == name):
            tensor = shifted if owned == name else source[owned]
            aligned[owned] = tensor if units is None else units.rows(tensor)
        incoming = units
    return Alignment({name: aligned[name] for name in source}, moved)


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


def fuse(aligned: Tensors, target: Tensors, t: float) -> dict[str, Tensor]:
    """(1 - t) A' + t B of every floating-point tensor, in float64; B's other tensors as they are."""
    return {
        name: (1 - t) * aligned[name].to(tensor.device).double() + t * tensor.double()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in target.items()
    }


def chain_of(source: Tensors, target: Tensors) -> list[str]:
    """Names of the layers of two chains of the same depth, from the first to the last.

    Raises:
        InvalidInput: no layers, other names, or layers whose inputs are not the outputs of the layer before.
    """
    if alone := sorted(source.keys() ^ target.keys()):
        raise InvalidInput(f"both models need the same tensor names; only one has {some(alone, 5)}")
    layers = [name for name, tensor in source.items() if tensor.is_floating_point() and tensor.dim() == 2]
    if not layers:
        raise InvalidInput("ot_fusion aligns layers with two-dimensional weights, but the models have none")
    for which, model in (("first", source), ("second", target)):
        for name in layers:
            if model[name].dim() != 2 or not model[name].is_floating_point():
                raise InvalidInput(f"tensor {name!r} is a layer of the first model, but not of the {which}")
        for before, name in pairwise(layers):
            if model[name].shape[1] != model[before].shape[0]:
                raise InvalidInput(
                    f"{name!r} of the {which} model has {model[name].shape[1]} inputs, but the layer before it, "
                    f"{before!r}, {model[before].shape[0]} outputs; ot_fusion needs a chain of layers"
                )
    _refuse_other_inputs(layers[0], source[layers[0]], target[layers[0]])
    return layers


def _owners(source: Tensors, layers: Sequence[str]) -> dict[str, str]:
    """Tensor name -> the layer with whose units it moves."""
    owners = {name: name for name in layers}
    biases = {name.removesuffix("weight") + "bias": name for name in layers if name.endswith("weight")}
    for name, tensor in source.items():
        if name in owners or not tensor.is_floating_point() or tensor.dim() == 0:
            continue
        if name not in biases or tensor.shape != source[biases[name]].shape[:1]:
            raise InvalidInput(
                f"tensor {name!r} of shape {tuple(tensor.shape)} is neither the weight of a fully connected layer nor "
                "the bias of one, so that ot_fusion cannot know with which units it moves"
            )
        owners[name] = biases[name]
    return owners


def _activations(name: str, activations: Sequence[Tensors], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Activations of both models as one row for each unit."""
    found = []
    for which, (given, weight) in enumerate(zip(activations, weights, strict=True)):
        if name not in given:
            raise InvalidInput(f"mode acts needs the activations of layer {name!r}; source {which} has none")
        values = given[name]
        if values.dim() != 2 or values.shape[1] != weight.shape[0] or not values.is_floating_point():
            raise InvalidInput(
                f"activations of layer {name!r} are [samples, {weight.shape[0]}], but those of source {which} have "
                f"shape {tuple(values.shape)}"
            )
        found.append(values)
    if found[0].shape[0] != found[1].shape[0]:
        raise InvalidInput(
            f"activations of layer {name!r} are of {found[0].shape[0]} and {found[1].shape[0]} samples; both sources "
            "need the same samples in the same order"
        )
    return found[0].mT, found[1].mT


def _refuse_other_widths(name: str, weight: Tensor, other: Tensor, reason: str) -> None:
    if weight.shape[0] != other.shape[0]:
        raise InvalidInput(
            f"{reason} needs equal widths, but {name!r} has {weight.shape[0]} and {other.shape[0]} units"
        )


def _refuse_other_inputs(name: str, weight: Tensor, other: Tensor) -> None:
    if weight.shape[1] != other.shape[1]:
        raise InvalidInput(
            f"layer {name!r} has {weight.shape[1]} inputs in the first model and {other.shape[1]} in the second; "
            "inputs that are not aligned must be the same"
        )
