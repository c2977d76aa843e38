"""Alignment of a chain of fully connected layers to another one, layer by layer. OT fusion, arXiv 1910.05653.

    T_0 = I;  for layer l = 1 .. L:
        Ah  = A_l T_{l-1}                                   aligned inputs
        T   = transport plan for M_ij = distance of unit i of A to unit j of B, by rows of Ah and B_l or by activations
        T_l = T diag(1 / (beta + 1e-7)), beta = column sums of T
        A'_l = T_l' Ah

With equal widths and the exact solver T_l is a permutation, and is applied as one: a permuted copy comes back exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from evomerge.alignment.activations import paired_activations
from evomerge.alignment.alignment import Alignment, OtSettings, unit_map
from evomerge.alignment.transport import UnitMap
from evomerge.errors import InvalidInput
from evomerge.messages import some

Tensors = Mapping[str, Tensor]


def align_chain(
    source: Tensors,
    target: Tensors,
    settings: OtSettings,
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
                vectors = paired_activations(name, activations, (weight.shape[0], other.shape[0]))
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
    counts = {name: target[name].shape[0] for name in moved}
    return Alignment({name: aligned[name] for name in source}, moved, counts)


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
