"""Activations of two models on the same samples, as vectors that their units are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.errors import InvalidInput


def paired_activations(
    name: str, activations: Sequence[Mapping[str, Tensor]] | None, widths: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The activations of one layer in both models, with a row for each output: [outputs, samples].

    Args:
        name: the layer's weight.
        activations: of both models: weight name -> [samples, outputs].
        widths: outputs of the layer in both models.

    Raises:
        InvalidInput: they are missing, or do not fit the layer or each other.
    """
    if activations is None or len(activations) != 2:
        raise InvalidInput("mode acts compares activations; give `statistics`, {weight name: [samples, units]} of both")
    found = []
    for which, (given, width) in enumerate(zip(activations, widths, strict=True)):
        if name not in given:
            raise InvalidInput(f"mode acts needs the activations of layer {name!r}; source {which} has none")
        values = given[name]
        if values.dim() != 2 or values.shape[1] != width or not values.is_floating_point():
            raise InvalidInput(
                f"activations of layer {name!r} are [samples, {width}], but those of source {which} have "
                f"shape {tuple(values.shape)}"
            )
        found.append(values)
    if found[0].shape[0] != found[1].shape[0]:
        raise InvalidInput(
            f"activations of layer {name!r} are of {found[0].shape[0]} and {found[1].shape[0]} samples; both sources "
            "need the same samples in the same order"
        )
    return found[0].mT, found[1].mT
