"""Sizes of statistics, known from a model without weights."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.statistics.fisher import floating_parameters
from evomerge.statistics.grams import inputs_of, linear_layers
from evomerge.statistics.measurement import MeasuredModel, MeasurementSettings, StatisticKind

_SUM, _STORED = 8, 4  # bytes of an element: sums are float64, files float32


@dataclass(frozen=True, kw_only=True)
class MeasuredSize:
    """Bytes of the statistics of one source.

    Attributes:
        file: on the disk, and in memory while a worker merges with it.
        measuring: in the memory of the worker that measures it: sums, and gradients or the product that is added.
        checkpoint: on the disk while it is measured.
        products: of Grams and weights that a worker may keep, 0 for other kinds.
        solving: of the largest layer that is solved for, which a worker holds meanwhile; 0 for other kinds.
    """

    file: int
    measuring: int
    checkpoint: int
    products: int = 0
    solving: int = 0


def measured_size(
    kind: StatisticKind, measured: MeasuredModel, settings: MeasurementSettings, *, width: int
) -> MeasuredSize:
    """The size of what will be measured.

    Args:
        measured: its model may be on the meta device.
        width: bytes of an element of the live model, and of its gradient.
    """
    return _of_fishers(measured, width) if kind.gradients else _of_grams(measured, settings)


def _of_fishers(measured: MeasuredModel, width: int) -> MeasuredSize:
    parameters = floating_parameters(measured.model)
    elements = {name: tensor.numel() for name, tensor in parameters.items()}
    total = sum(elements.values())
    return MeasuredSize(
        file=_STORED * sum(elements[name] for name in measured.merged),
        measuring=(_SUM + width) * total,
        checkpoint=_SUM * total,
    )


def _of_grams(measured: MeasuredModel, settings: MeasurementSettings) -> MeasuredSize:
    layers = linear_layers(measured.model)
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    named = measured.named(weights)
    inputs = {name: inputs_of(layer) + (settings.constant and layer.bias is not None) for name, layer in layers.items()}
    outputs = {name: weight.numel() // inputs_of(layers[name]) for name, weight in weights.items()}
    sums = _SUM * sum(size**2 for size in inputs.values())
    return MeasuredSize(
        file=_STORED * sum(inputs[name] ** 2 for name in named),
        measuring=sums + _SUM * max(size**2 for size in inputs.values()),
        checkpoint=sums,
        products=_SUM * sum(inputs[name] * outputs[name] for name in named),
        # The sum of Grams, one that is added, the sum with a diagonal of ones, its triangle; right sides and solution.
        solving=_SUM * max((4 * inputs[name] ** 2 + 3 * inputs[name] * outputs[name] for name in named), default=0),
    )
