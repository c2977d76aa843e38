"""What transformers makes of a checkpoint: which stored tensor becomes which live one, and which are tied.

The answer comes from the model class itself, built on the meta device, so no architecture is named here. This is the
only file that touches transformers' conversion machinery (`conversion_mapping`, `core_model_loading`), which is not
part of its documented surface; tests/checkpoints/test_architecture.py holds what is relied on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from evomerge.checkpoints.wording import some
from evomerge.errors import InvalidInput

Header = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Architecture:
    """A checkpoint seen through its model class.

    Attributes:
        name: the model class.
        live_names: stored name -> name in the live model, for tensors that are kept as they are stored. Of tied names
            the live name is the first one, so that two stored names of one tensor have the same live name.
        converted: stored names that the live model keeps in another form (fused or stacked).
        unused: stored names that the model class does not load.
        ties: live name -> the first live name of the same tensor, for the further names of tied tensors.
        integers: live names of tensors that hold no floating-point numbers.
        encoder_decoder: whether the model, or others of its type, read with an encoder.
        settings: the config with its defaults written out, so that two configs can be compared.
    """

    name: str
    live_names: Mapping[str, str]
    converted: tuple[str, ...]
    unused: tuple[str, ...]
    ties: Mapping[str, str]
    integers: frozenset[str]
    encoder_decoder: bool
    settings: Mapping[str, Any]


def describe(directory: Path, config: Mapping[str, Any], header: Header, *, remote_code: bool) -> Architecture | None:
    """The architecture of a checkpoint; None where transformers has no causal language model for its config.

    Raises InvalidInput where config and tensors contradict each other: other shapes, or parameters that the model needs
    and the checkpoint lacks (they would be filled with random numbers).
    """
    if config.get("model_type") not in CONFIG_MAPPING and not remote_code:
        return None
    settings = _settings(directory, remote_code)
    if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote_code:
        return None
    model = _meta_model(directory, settings, remote_code)
    live = model.state_dict(keep_vars=True)
    ties = _ties(live)
    places, converted = _places(model, live, header)
    _check_shapes(directory, header, live, places)
    _check_complete(directory, model, live, ties, places, converted)
    return Architecture(
        name=type(model).__name__,
        live_names={name: ties.get(place, place) for name, place in places.items()},
        converted=tuple(sorted(converted)),
        unused=tuple(sorted(header.keys() - places.keys() - converted.keys())),
        ties=ties,
        integers=frozenset(name for name, tensor in live.items() if not tensor.is_floating_point()),
        encoder_decoder=_is_encoder_decoder(settings),
        settings=settings.to_dict(),
    )


def _settings(directory: Path, remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=remote_code, local_files_only=True)
    except Exception as error:  # each config class validates with exceptions of its own
        raise InvalidInput(f"transformers cannot read {directory / 'config.json'}: {error}") from error


def _is_encoder_decoder(settings: Any) -> bool:
    """By the config, or as lm-eval judges: by the type, also of a class that keeps the decoder alone."""
    return bool(getattr(settings, "is_encoder_decoder", False)) or (
        type(settings) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    )


def _meta_model(directory: Path, settings: Any, remote_code: bool) -> Any:
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=remote_code)
    except Exception as error:  # whatever a model class raises on sizes that do not fit each other
        raise InvalidInput(
            f"transformers cannot build the model that {directory / 'config.json'} describes: {error}"
        ) from error
    model.tie_weights()
    return model


def _ties(live: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Further name -> first name, for names that stand for the same tensor."""
    first: dict[int, str] = {}
    ties = {}
    for name, tensor in live.items():
        leader = first.setdefault(id(tensor), name)
        if leader != name:
            ties[name] = leader
    return ties


def _places(model: Any, live: Mapping[str, torch.Tensor], header: Header) -> tuple[dict[str, str], dict[str, str]]:
    """Stored name -> live name of the tensors kept as they are, and of those kept in another form."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    known = dict(live)
    places: dict[str, str] = {}
    converted: dict[str, str] = {}
    for name in sorted(header):
        place, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if place in live:
            (places if converter is None else converted)[name] = place
    return places, converted


def _check_shapes(directory: Path, header: Header, live: Mapping[str, torch.Tensor], places: Mapping[str, str]) -> None:
    wrong = [
        f"{name} {list(header[name][0])}, config says {list(live[place].shape)}"
        for name, place in places.items()
        if header[name][0] != tuple(live[place].shape)
    ]
    if wrong:
        raise InvalidInput(f"{directory}: the weights do not fit config.json: {some(wrong)}")


def _check_complete(
    directory: Path,
    model: Any,
    live: Mapping[str, torch.Tensor],
    ties: Mapping[str, str],
    places: Mapping[str, str],
    converted: Mapping[str, str],
) -> None:
    filled = {ties.get(place, place) for place in (*places.values(), *_siblings(live, converted.values()))}
    lacking = sorted(
        name
        for name, tensor in live.items()
        if isinstance(tensor, torch.nn.Parameter) and ties.get(name, name) not in filled
    )
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    lacking = [name for name in lacking if not any(re.search(pattern, name) for pattern in ignored)]
    if lacking:
        raise InvalidInput(
            f"{directory}: {type(model).__name__} needs {len(lacking)} tensors that the checkpoint lacks: "
            f"{some(lacking)}"
        )


def _siblings(live: Mapping[str, torch.Tensor], places: Iterable[str]) -> set[str]:
    """All live names in the modules of `places`: one converter may fill several tensors of a module and name one."""
    modules = {place.rpartition(".")[0] for place in places}
    return {name for name in live if name.rpartition(".")[0] in modules}
