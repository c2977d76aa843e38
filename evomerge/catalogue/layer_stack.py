"""The tensors of a model whose stack of layers is another one: renumbered names, and the outputs of its MLPs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from evomerge.catalogue.tensor_catalogue import TensorCatalogue, TensorEntry
from evomerge.catalogue.unit_patterns import MLP_PATTERNS
from evomerge.errors import InvalidInput

_NUMBER = re.compile(r"((?:^|\.))(\d+)(?=\.)")  # the first one in the name of a tensor of a layer is that of the layer
_NORM_BEHIND = re.compile(r"(^|\.)post_(feedforward|feed_forward|mlp|ffn|ffw|ff)_?(layer|rms)?_?norm\.")


def renumbered(name: str, layer: int) -> str:
    """The name of the same tensor in another layer: "model.layers.7.mlp.up_proj.weight" for 3 and 7."""
    return _NUMBER.sub(rf"\g<1>{layer}", name, count=1)


def divide_name(name: str) -> tuple[str, str]:
    """Name of the module list and name inside the layer: ("model.layers", "mlp.up_proj.weight")."""
    match = _NUMBER.search(name)
    if match is None:
        raise ValueError(f"{name} has no number, so that it belongs to no layer")
    return name[: match.start()], name[match.end() + 1 :]


def tensors_of_layer(catalogue: TensorCatalogue, layer: int) -> list[TensorEntry]:
    """The tensors of one layer, in the order of the catalogue."""
    return [entry for entry in catalogue.entries if entry.layer == layer]


def stacked_catalogue(catalogue: TensorCatalogue, layers: Sequence[int]) -> TensorCatalogue:
    """The catalogue of the model that has these layers one above the other, and all that is outside of layers.

    Raises:
        InvalidInput: no layers, an index without a layer, or a tensor of a layer that is also the tensor of another
            place.
    """
    depth = catalogue.depth
    if not depth:
        raise InvalidInput("no tensor name has a layer number, so that layers cannot be put into another order")
    if not layers:
        raise InvalidInput("a path of layers has at least one")
    for layer in layers:
        if not 0 <= layer < depth:
            raise InvalidInput(f"there is no layer {layer}: the models have the layers 0 to {depth - 1}")
    if shared := [entry.name for entry in catalogue.entries if entry.layer is not None and entry.aliases]:
        raise InvalidInput(f"{shared[0]} is the tensor of several places, so that layers cannot change theirs")
    entries = [entry for entry in catalogue.entries if entry.layer is None]
    for place, layer in enumerate(layers):
        for entry in tensors_of_layer(catalogue, layer):
            entries.append(replace(entry, name=renumbered(entry.name, place), layer=place))
    return TensorCatalogue(tuple(sorted(entries, key=lambda entry: entry.name)))


def mlp_outputs(catalogue: TensorCatalogue, layer: int) -> tuple[str, ...]:
    """Weights and biases of the output projections of a layer's MLP: multiplied by a factor, they multiply what the MLP
    adds to the residual stream.

    Raises:
        InvalidInput: no such projection is known by name, or a norm behind it would undo a factor.
    """
    entries = tensors_of_layer(catalogue, layer)
    shapes = {entry.name: entry.shape for entry in entries}
    if norm := next((name for name in shapes if _NORM_BEHIND.search(name)), None):
        raise InvalidInput(
            f"{norm} normalises what the MLP of a layer gives, so that a scale in its output projection changes "
            "nothing; use layers without scales (scale: false)"
        )
    stacked = [entry.name for entry in entries if entry.part == "mlp" and len(entry.shape) > 2]
    found = () if stacked else tuple(_outputs(shapes))
    if not found:
        raise InvalidInput(
            f"no output projection of the MLP in layer {layer} is known by name"
            f"{f' ({stacked[0]} has several in one)' if stacked else ''}; use layers without scales (scale: false)"
        )
    return found


def _outputs(shapes: dict[str, tuple[int, ...]]) -> Iterable[str]:
    found: dict[str, None] = {}
    for pattern in MLP_PATTERNS:
        ending = f"{pattern.columns}.weight"
        for name in shapes:
            prefix = name.removesuffix(ending)
            whole = name.endswith(ending) and (not prefix or prefix.endswith("."))
            if whole and all(f"{prefix}{row}.weight" in shapes for row in pattern.rows):
                found[name] = None
    biases = [name.removesuffix("weight") + "bias" for name in found]
    return [*found, *(name for name in biases if name in shapes)]
