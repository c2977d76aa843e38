"""Slices of mergekit's passthrough as paths of layers: the inverse of `layer_slices.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

from evomerge.catalogue import TensorCatalogue
from evomerge.catalogue.layer_stack import mlp_outputs, tensors_of_layer
from evomerge.errors import InvalidInput
from evomerge.mergekit.imported_parameters import MethodReader
from evomerge.mergekit.merge_file import InputModel, MergeDocument, OutputSlice
from evomerge.mergekit.parameter_settings import place_in_stack
from evomerge.recipe import PathLayer, Rule, copying_rule


def imported_path(
    document: MergeDocument,
    reader: MethodReader,
    catalogue: TensorCatalogue,
    known: Mapping[str, str],
    *,
    base: str,
) -> tuple[tuple[PathLayer, ...], tuple[Rule, ...]]:
    """The layers of the slices, and the rules that copy what is before and behind them from the ends of the path.

    Args:
        known: model as the file names it -> its name in the recipe.
        base: name of the base, whose tensors need no rule.

    Raises:
        InvalidInput: a slice merges models or scales other tensors than the outputs of MLPs.
    """
    layers = tuple(layer for each in document.slices for layer in _layers(document, reader, catalogue, known, each))
    rules = []
    for place, before in ((0, True), (-1, False)):
        each, source = document.slices[place], layers[place].source
        names = [
            entry.name for entry in catalogue.mergeable if entry.layer is None and (entry.part == "embedding") == before
        ]
        for name in names:
            if reader.scale(name, Fraction(0), each) != 1:
                raise document.refusal(each.keys, f"the scale of {name}, which is outside of layers, has to be 1")
        if names and source != base:
            rules.append(copying_rule(source, tuple(names)))
    return layers, tuple(rules)


def _layers(
    document: MergeDocument,
    reader: MethodReader,
    catalogue: TensorCatalogue,
    known: Mapping[str, str],
    each: OutputSlice,
) -> Iterator[PathLayer]:
    model = _only_model(document, each)
    first, last = model.layers or (0, 0)
    if last > catalogue.depth:
        raise document.refusal((*model.keys, "layer_range"), f"{model.model} has {catalogue.depth} layers")
    for layer in range(first, last):
        place = place_in_stack(layer - first, last - first)
        entries = tensors_of_layer(catalogue, layer)
        scales = {entry.name: reader.scale(entry.name, place, each) for entry in entries if entry.is_floating}
        yield PathLayer(known[model.model], layer, _common_scale(document, catalogue, each, layer, scales))


def _only_model(document: MergeDocument, each: OutputSlice) -> InputModel:
    if len(each.models) > 1:
        raise document.refusal(each.keys, "passthrough takes layers of one model a slice; merge the models before")
    return each.models[0]


def _common_scale(
    document: MergeDocument, catalogue: TensorCatalogue, each: OutputSlice, layer: int, scales: Mapping[str, float]
) -> float:
    if all(scale == 1 for scale in scales.values()):
        return 1.0
    try:
        outputs = mlp_outputs(catalogue, layer)
    except InvalidInput as error:
        raise document.refusal(each.keys, str(error)) from None
    scaled = {scales[name] for name in outputs}
    other = next((name for name, scale in scales.items() if name not in outputs and scale != 1), None)
    if other is not None or len(scaled) > 1:
        raise document.refusal(
            each.keys,
            f"a recipe scales the outputs of a layer's MLP ({', '.join(outputs)}), all by one number, and nothing else,"
            f" and this slice scales {other or 'them differently'}",
        )
    return scaled.pop()
