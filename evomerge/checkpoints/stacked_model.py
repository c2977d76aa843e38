"""A model with another stack of layers, as its class builds it without weights; and whether that can be told at all."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evomerge.catalogue.layer_stack import divide_name, tensors_of_layer
from evomerge.checkpoints.architecture import build_on_meta, read_settings
from evomerge.checkpoints.live import meta_model
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.stacked_source import stacked_source
from evomerge.errors import InvalidInput, first_reason
from evomerge.messages import in_one_line, some

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_INDEX = re.compile(r"(layer|block).*(id|idx|index|num|number)$|^idx$|^index$")


def check_stackable(source: Source) -> None:
    """Refuse a model whose layers cannot be put into another order and number, without reading its weights.

    Raises:
        InvalidInput: see `build_stacked` and `check_alike`.
    """
    layers = [*reversed(range(source.catalogue.depth)), 0]
    model, stacked = meta_model(source), stacked_source(source, layers)
    own, theirs = layers_in(build_stacked(stacked, like=model), stacked), layers_in(model, source)
    for place, layer in enumerate(layers):
        check_alike(theirs[layer], own[place], f"layer {layer} at place {place}")


def build_stacked(source: Source, like: PreTrainedModel) -> PreTrainedModel:
    """The model of a source from `stacked_source`, on the meta device, in eval mode.

    Args:
        like: the model that the layers are from; gives dtype, attention implementation and generation settings.

    Raises:
        InvalidInput: the config or the model class refuses this stack, or has other tensors than the path has.
    """
    settings = _settings(source)
    settings.dtype = like.dtype
    settings._attn_implementation = like.config._attn_implementation
    model = build_on_meta(source.directory, settings, source.remote_code).eval()
    model.generation_config = copy.deepcopy(like.generation_config)
    _check_names(model, source)
    return model


def list_of_layers(source: Source) -> str:
    """The name of the module list of the layers in the live model."""
    return divide_name(source.live_names[tensors_of_layer(source.catalogue, 0)[0].name])[0]


def layers_in(model: PreTrainedModel, source: Source) -> torch.nn.ModuleList:
    """The layers of a live model."""
    found = model.get_submodule(list_of_layers(source))
    if not isinstance(found, torch.nn.ModuleList):
        raise InvalidInput(f"{type(model).__name__} keeps its layers in no list, so that they cannot be exchanged")
    return found


def check_alike(one: torch.nn.Module, other: torch.nn.Module, where: str, *, computed: bool = False) -> None:
    """Refuse layers of one kind that compute otherwise because of their place.

    Args:
        computed: compare the tensors that are computed, not stored, as well.

    Raises:
        InvalidInput: a module has another class or setting, apart from its index.
    """
    others = dict(other.named_modules())
    for name, mine in one.named_modules():
        theirs = others.pop(name, None)
        if theirs is None or type(theirs) is not type(mine):
            raise _otherwise(name, "class", where)
        different = [key for key, value in _settings_of(mine) if vars(theirs).get(key) != value]
        if computed:
            for key in mine._non_persistent_buffers_set:
                tensors = mine._buffers.get(key), theirs._buffers.get(key)
                if tensors[0] is not None and (tensors[1] is None or not torch.equal(tensors[0], tensors[1])):
                    different.append(key)
        if different:
            raise _otherwise(name, different[0], where)
    if others:
        raise _otherwise(next(iter(others)), "module", where)


def _otherwise(name: str, what: str, where: str) -> InvalidInput:
    return InvalidInput(
        f"a layer computes otherwise at another place: {name or 'it'} has another {what} ({where}); layers of such a "
        "model cannot be put into another order"
    )


def _settings_of(module: torch.nn.Module) -> list[tuple[str, object]]:
    simple = (bool, int, float, str, type(None))
    return [
        (key, value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and not _INDEX.search(key) and isinstance(value, simple)
    ]


def _settings(source: Source) -> PreTrainedConfig:
    """The config object that transformers makes of a config, from a file like that of an export.

    Raises:
        InvalidInput: the config class refuses it.
    """
    config_class = type(read_settings(source.directory, source.remote_code))
    with first_reason(tempfile.TemporaryDirectory(), "while a temporary folder was removed") as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(source.config), encoding="utf-8")
        try:
            return config_class.from_json_file(file)
        except Exception as error:  # each config class validates with exceptions of its own
            raise InvalidInput(
                f"transformers has no such model with {source.catalogue.depth} layers: {in_one_line(error, 300)}"
            ) from error


def _check_names(model: PreTrainedModel, source: Source) -> None:
    """The class has just the tensors of the path: none outside of layers that follow the number of layers."""
    live = model.state_dict(keep_vars=True)
    expected = {source.live_names[name]: source.header[name][0] for name in source.catalogue.names}
    ties = source.architecture.ties if source.architecture else {}
    wrong = sorted(live.keys() - expected.keys() - ties.keys()) + sorted(expected.keys() - live.keys())
    wrong += sorted(name for name in live.keys() & expected.keys() if tuple(live[name].shape) != expected[name])
    if wrong:
        raise InvalidInput(
            f"{type(model).__name__} has other tensors when it has other layers ({some(wrong)}), so that its layers "
            "cannot be taken one by one"
        )
