"""A source with another stack of layers: the config, the catalogue and the names of the model that a path describes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.catalogue import TensorCatalogue
from evomerge.catalogue.layer_stack import divide_name, mlp_outputs, renumbered, stacked_catalogue, tensors_of_layer
from evomerge.checkpoints.architecture import read_settings
from evomerge.checkpoints.source import RenamedTensors, Source
from evomerge.errors import InvalidInput
from evomerge.messages import counted, some
from evomerge.recipe import Recipe

_BY_LAYER = re.compile(r"layer|block")  # in the names of settings that have one value per layer: `layer_types`


def check_layers(recipe: Recipe, catalogue: TensorCatalogue) -> None:
    """Raises InvalidInput where the path of a recipe cannot be followed.

    That is so where it names a model or a layer that is not there, has a scale that is no number or cannot be folded
    into a weight, or where a rule names a tensor of a layer.
    """
    known = {recipe.base.name, *(source.name for source in recipe.sources)}
    for place, layer in enumerate(recipe.layers):
        if layer.source not in known:
            raise InvalidInput(
                f"layer {place} of the recipe is one of {layer.source!r}, which is neither base nor source"
            )
        if not math.isfinite(layer.scale):
            raise InvalidInput(f"layer {place} of the recipe has the scale {layer.scale}; give a finite number")
    stacked_catalogue(catalogue, [layer.layer for layer in recipe.layers])
    for index in sorted({layer.layer for layer in recipe.layers if layer.scale != 1}):
        mlp_outputs(catalogue, index)
    names = (name for rule in recipe.rules for name in rule.tensors)
    if inside := next((name for name in names if name in catalogue and catalogue[name].layer is not None), None):
        raise InvalidInput(
            f"a rule of the recipe merges {inside}, a tensor of a layer, and its path takes layers as they are; merge "
            "first, and take the layers of the exported merge"
        )


def layers_of_settings(source: Source) -> dict[str, list[Any]]:
    """The settings of a source that have one value for each of its layers, such as `layer_types`."""
    written, depth = source.settings, source.catalogue.depth
    return {
        name: value
        for name, value in written.items()
        if isinstance(value, list) and len(value) == depth and _BY_LAYER.search(name)
    }


def stacked_config(source: Source, layers: Sequence[int]) -> dict[str, Any]:
    """The config of the model that has these layers one above the other.

    Raises:
        InvalidInput: the config does not give the number of layers in one place.
    """
    settings = read_settings(source.directory, source.remote_code)
    depth = getattr(settings, "num_hidden_layers", None)
    if settings.get_text_config() is not settings or depth != source.catalogue.depth:
        raise InvalidInput(
            f"source {source.name!r}: its config does not give {source.catalogue.depth} as its number of layers "
            "(num_hidden_layers), so that no model with another number can be described; layer paths need a plain "
            "language model"
        )
    own = settings.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    config = dict(source.config)
    for name in {own, "num_hidden_layers"} & config.keys() | {own}:
        config[name] = len(layers)
    for name, values in layers_of_settings(source).items():
        config[name] = [values[layer] for layer in layers]
    return config


def stacked_source(source: Source, layers: Sequence[int]) -> Source:
    """The source as the model that has these of its layers one above the other.

    Stored tensors that the model class does not load are left out where they belong to layers.

    Raises:
        InvalidInput: see `check_stored_form`, `stacked_config` and `stacked_catalogue`.
    """
    check_stored_form(source)
    catalogue = stacked_catalogue(source.catalogue, layers)
    origins = origins_of(source.catalogue, layers)
    config = stacked_config(source, layers)
    if source.architecture is not None:
        config["architectures"] = [source.architecture.name]  # the class whose stack of layers this is

    def in_place(names: Mapping[str, str]) -> dict[str, str]:
        """Other names of the tensors, with the places that their layers have now."""
        moved = {}
        for name, origin in origins.items():
            layer = catalogue[name].layer
            if origin in names:
                moved[name] = names[origin] if layer is None else renumbered(names[origin], layer)
        return moved

    lists = {divide_name(source.stored_names[entry.name])[0] for entry in tensors_of_layer(source.catalogue, 0)}
    return replace(
        source,
        config=config,
        catalogue=catalogue,
        header={name: source.header[origin] for name, origin in origins.items()},
        tensors=RenamedTensors(source.tensors, origins),
        unused=tuple(name for name in source.unused if not any(name.startswith(f"{each}.") for each in lists)),
        language=frozenset(name for name, origin in origins.items() if origin in source.language),
        stored_names=in_place(source.stored_names),
        live_names=in_place(source.live_names),
    )


def check_stored_form(source: Source) -> None:
    """Raises InvalidInput where the live model keeps tensors of layers in another form than they are stored in.

    A layer of another model could not be put in the place of one then: its tensors are not those of the files.
    """
    inside = [name for name in source.places if source.catalogue[name].layer is not None]
    if inside:
        raise InvalidInput(
            f"source {source.name!r}: the live model keeps {counted(len(inside), 'tensor')} of its layers in another "
            f"form than stored ({some(inside)}), so that its layers cannot be put into another order; use a space "
            "without layer paths"
        )


def origins_of(catalogue: TensorCatalogue, layers: Sequence[int]) -> dict[str, str]:
    """Name in the model of these layers -> name of the tensor in the model that they are taken from."""
    origins = {entry.name: entry.name for entry in catalogue.entries if entry.layer is None}
    for place, layer in enumerate(layers):
        for entry in tensors_of_layer(catalogue, layer):
            origins[renumbered(entry.name, place)] = entry.name
    return dict(sorted(origins.items()))
