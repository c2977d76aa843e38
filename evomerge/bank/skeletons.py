"""Live models of several depths over one pool of layers: a layer that stays in a path is neither copied nor read again.

The model class builds each of them, without weights, from the config that an export of the path has: the indices of
layers, by which caches are found, and the kinds of layers are those of the export. Their tensors are then the pool's;
everything outside of layers is that of the live model of the base.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evomerge.bank.layer_pool import LayerPool
from evomerge.catalogue.layer_stack import divide_name, mlp_outputs, renumbered, tensors_of_layer
from evomerge.checkpoints import Source
from evomerge.checkpoints.stacked_model import build_stacked, check_alike, layers_in, list_of_layers
from evomerge.checkpoints.stacked_source import check_stored_form, layers_of_settings, stacked_source
from evomerge.engine.live_state import LiveState
from evomerge.errors import InvalidInput
from evomerge.recipe import PathLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST = 8  # models that are kept; building one takes about as long as scoring a few items

Kind = tuple[Any, ...]


@dataclass(kw_only=True)
class _Skeleton:
    """A model without layers of its own.

    Attributes:
        layers: the modules of its layers.
        state: see `LiveState`.
        held: the layer of the path that each place holds, None before the first.
    """

    model: PreTrainedModel
    layers: torch.nn.ModuleList
    state: LiveState
    held: list[PathLayer | None]


class Skeletons:
    """Live models by number and kinds of layers.

    Args:
        base: gives config, kinds and names.
        model: the live model of the base; all that is outside of its layers is shared.
        pool: gives the layers.
        live: the tensors of that model by their names in the catalogue.

    Raises:
        InvalidInput: see `check_stored_form`.
    """

    def __init__(self, base: Source, model: PreTrainedModel, pool: LayerPool, live: Mapping[str, torch.Tensor]) -> None:
        check_stored_form(base)
        self._base = base
        self._model = model
        self._pool = pool
        self._dtypes = {name: tensor.dtype for name, tensor in live.items()}
        self._kinds = [self._kind(layer) for layer in range(base.catalogue.depth)]
        self._models: OrderedDict[tuple[Kind, ...], _Skeleton] = OrderedDict()
        self._scaled: dict[tuple[str, float, str], torch.Tensor] = {}

    def model(self, layers: Sequence[int]) -> PreTrainedModel:
        """The live model of a path through these layers, with whatever weights it has.

        Raises:
            InvalidInput: the model class cannot put these layers one above the other.
        """
        return self._skeleton(layers).model

    def follow(self, path: Sequence[PathLayer]) -> PreTrainedModel:
        """The live model with the layers of a path. Only places that hold another layer are touched.

        Raises:
            InvalidInput: see `model`.
            MergeError: a scaled tensor is not finite.
        """
        skeleton = self._skeleton([layer.layer for layer in path])
        skeleton.state.restore()
        scaled = {key: tensor for layer in path for key, tensor in self._scales(layer)}
        for place, layer in enumerate(path):
            if skeleton.held[place] != layer:
                skeleton.held[place] = None
                self._hold(skeleton.layers[place], layer, scaled)
                skeleton.held[place] = layer
        self._scaled = scaled
        self._release(but=skeleton)
        return skeleton.model

    def reference(self, layers: Sequence[int]) -> PreTrainedModel:
        """The live model of a path through these layers with layers of the base that depend on their kinds alone."""
        kinds = [self._kinds[layer] for layer in layers]
        path = []
        for place, kind in enumerate(kinds):
            same = [layer for layer, other in enumerate(self._kinds) if other == kind]
            nearest = min(same, key=lambda layer: (abs(layer - min(place, len(self._kinds) - 1)), layer))
            path.append(PathLayer(self._base.ref.name, nearest, 1.0))
        return self.follow(path)

    def tensors(self, path: Sequence[PathLayer]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and live tensor of all that is in the layers of the path that was followed last."""
        skeleton = self._skeleton([layer.layer for layer in path])
        for place, layer in enumerate(path):
            own = skeleton.layers[place].state_dict(keep_vars=True)
            for name, inside in self._names(layer.layer):
                yield renumbered(name, place), own[inside]

    def _skeleton(self, layers: Sequence[int]) -> _Skeleton:
        key = tuple(self._kinds[layer] for layer in layers)
        if key not in self._models:
            self._models[key] = self._build(layers)
            if len(self._models) > MOST:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]

    def _kind(self, layer: int) -> Kind:
        """All that tells layers apart that cannot take each other's place in a model."""
        settings = tuple(repr(values[layer]) for values in layers_of_settings(self._base).values())
        shapes = tuple(sorted((name, self._base.header[of][0]) for of, name in self._names(layer)))
        return (*settings, shapes)

    def _names(self, layer: int) -> list[tuple[str, str]]:
        """Of the tensors of a layer: name in the catalogue, and name inside the live layer."""
        entries = tensors_of_layer(self._base.catalogue, layer)
        return [(entry.name, divide_name(self._base.live_names[entry.name])[1]) for entry in entries]

    def _scales(self, layer: PathLayer) -> Iterator[tuple[tuple[str, float, str], torch.Tensor]]:
        if layer.scale != 1:
            for name in mlp_outputs(self._base.catalogue, layer.layer):
                key = (layer.source, layer.scale, name)
                tensor = self._scaled.get(key)
                if tensor is None:
                    tensor = self._pool.scaled(layer.source, name, layer.scale).to(self._dtypes[name])
                yield key, tensor

    def _hold(
        self, module: torch.nn.Module, layer: PathLayer, scaled: Mapping[tuple[str, float, str], torch.Tensor]
    ) -> None:
        for name, inside in self._names(layer.layer):
            tensor = scaled.get((layer.source, layer.scale, name))
            if tensor is None:
                tensor = self._pool.tensor(layer.source, name, self._dtypes[name])
            owner, _, attribute = inside.rpartition(".")
            _place(module.get_submodule(owner), attribute, tensor)

    def _release(self, but: _Skeleton) -> None:
        """Let the models that are not in use give their scaled tensors back."""
        for skeleton in self._models.values():
            for place, layer in enumerate(skeleton.held):
                if skeleton is not but and layer is not None and layer.scale != 1:
                    skeleton.held[place] = plain = PathLayer(layer.source, layer.layer, 1.0)
                    self._hold(skeleton.layers[place], plain, {})

    def _build(self, layers: Sequence[int]) -> _Skeleton:
        source = stacked_source(self._base, layers)
        model = build_stacked(source, like=self._model)
        own, theirs = layers_in(model, source), layers_in(self._model, source)
        _share_outside(model, self._model, list_of_layers(source))
        for layer in set(layers):
            for other in range(layer):
                if self._kinds[other] == self._kinds[layer]:
                    check_alike(theirs[other], theirs[layer], f"layer {layer} beside {other}", computed=True)
        for place, layer in enumerate(layers):
            check_alike(theirs[layer], own[place], f"layer {layer} at place {place}")
            _complete(own[place], theirs[layer])
            self._hold(own[place], PathLayer(self._base.ref.name, layer, 1.0), {})
        _check_complete(model)
        return _Skeleton(model=model, layers=own, state=LiveState(model), held=[None] * len(layers))


def _share_outside(model: torch.nn.Module, base: torch.nn.Module, prefix: str) -> None:
    """Give the model all modules and tensors of the base but for the list of layers at `prefix`."""
    for part in prefix.split("."):
        for name, child in base._modules.items():
            if name != part:
                model._modules[name] = child
        for name in model._parameters:
            model._parameters[name] = base._parameters[name]
        _complete_tensors(model, base)
        model, base = model.get_submodule(part), base.get_submodule(part)


def _complete(module: torch.nn.Module, like: torch.nn.Module) -> None:
    """Give a layer the tensors that no checkpoint holds, of a layer of the same kind."""
    for own, other in zip(module.modules(), like.modules(), strict=True):
        _complete_tensors(own, other)


def _complete_tensors(module: torch.nn.Module, like: torch.nn.Module) -> None:
    for name, tensor in like._buffers.items():
        if tensor is not None:
            module._buffers[name] = tensor.clone() if name in like._non_persistent_buffers_set else tensor
    for name, value in vars(like).items():
        if isinstance(value, torch.Tensor):
            vars(module)[name] = value.clone()


def _place(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    if name in module._parameters:
        module._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[name] = tensor


def _check_complete(model: PreTrainedModel) -> None:
    """No tensor is left on the meta device, where it would have no numbers."""
    for name, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers, **vars(module)}
        empty = [key for key, value in tensors.items() if isinstance(value, torch.Tensor) and value.is_meta]
        if empty:
            raise InvalidInput(
                f"{type(model).__name__} computes {name}.{empty[0]} for its number of layers, so that layers cannot be "
                "taken one by one"
            )
