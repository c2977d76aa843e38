"""A checkpoint as transformers loads it: live names of the stored tensors, and ties between them.

The answer comes from the model class itself, built on the meta device, so no architecture is named here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from evomerge.conversion import LivePlace, StoredPlaces, find_places
from evomerge.errors import InvalidInput
from evomerge.messages import counted, some

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What torch and peft put into the names of a model that they wrap.
_WRAPPERS = re.compile(
    r"^base_model\.model\.|(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

Header = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A checkpoint seen through its model class.

    Attributes:
        name: the model class.
        live_names: stored name -> name in the live model, for tensors that are kept as they are stored. Of tied names
            the live name is the first one, so that two stored names of one tensor have the same live name.
        places: stored name -> place in the live model, for tensors that it keeps in another form (fused or stacked).
        unplaced: stored name -> the reason why the live model has no place for it that can be written to.
        unused: stored names that the model class does not load.
        ties: live name -> the first live name of the same tensor, for the further names of tied tensors.
        language: live names of the language model's tensors: those of the decoder, where the class tells it apart.
        integers: live names of tensors that hold no floating-point numbers.
        transposed: live names of weights that their modules keep as [inputs, outputs].
        encoder_decoder: whether the model, or others of its type, read with an encoder.
        settings: the config with its defaults written out, so that two configs can be compared.
    """

    name: str
    live_names: Mapping[str, str]
    places: Mapping[str, LivePlace]
    unplaced: Mapping[str, str]
    unused: tuple[str, ...]
    ties: Mapping[str, str]
    language: frozenset[str]
    integers: frozenset[str]
    transposed: frozenset[str]
    encoder_decoder: bool
    settings: Mapping[str, Any]


def describe(directory: Path, config: Mapping[str, Any], header: Header, *, remote_code: bool) -> Architecture | None:
    """The architecture of a checkpoint; None where transformers has no causal language model for its config.

    Raises InvalidInput where config and tensors contradict each other: other shapes, or parameters that the model needs
    and the checkpoint lacks (they would be filled with random numbers).
    """
    if config.get("model_type") not in CONFIG_MAPPING and not remote_code:
        return None
    settings = read_settings(directory, remote_code)
    if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote_code:
        return None
    model = build_on_meta(directory, settings, remote_code)
    live = model.state_dict(keep_vars=True)
    ties = _ties(live)
    stored = find_places(model, live, header)
    _check_shapes(directory, header, live, stored)
    encoder_decoder = _is_encoder_decoder(settings)
    lacking = [] if encoder_decoder else _lacking(model, live, ties, stored.filled)
    unused = header.keys() - stored.loaded
    if lacking:
        raise InvalidInput(
            f"{directory}: {type(model).__name__} needs {counted(len(lacking), 'tensor')} that the checkpoint lacks: "
            f"{some(lacking)}{_wrapping(live, unused)}"
        )
    return Architecture(
        name=type(model).__name__,
        live_names={name: ties.get(place, place) for name, place in sorted(stored.whole.items())},
        places=stored.places,
        unplaced=stored.unplaced,
        unused=tuple(sorted(unused)),
        ties=ties,
        language=_language(model, live),
        integers=frozenset(name for name, tensor in live.items() if not tensor.is_floating_point()),
        transposed=_transposed(model, ties),
        encoder_decoder=encoder_decoder,
        settings=settings.to_dict(),
    )


def lacking_in(
    class_name: str, directory: Path, header: Header, stored: Collection[str], *, remote_code: bool
) -> list[str] | None:
    """The parameters that a class of transformers has by the directory's config and the tensors `stored` do not fill.

    None where transformers has no such class, or cannot build it here.
    """
    named = getattr(transformers, class_name, None)
    if not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)):
        return None
    try:
        with torch.device("meta"):
            model = named(read_settings(directory, remote_code))
    except Exception:  # whatever a model class raises, such as the ImportError of a tower's library
        return None
    model.tie_weights()
    live = model.state_dict(keep_vars=True)
    filled = find_places(model, live, {name: header[name] for name in stored}).filled
    return _lacking(model, live, _ties(live), filled)


def read_settings(directory: Path, remote_code: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=remote_code, local_files_only=True)
    except Exception as error:  # each config class validates with exceptions of its own
        raise InvalidInput(f"transformers cannot read {directory / 'config.json'}: {error}") from error


def _language(model: PreTrainedModel, live: Mapping[str, torch.Tensor]) -> frozenset[str]:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(tensor) for tensor in (decoder or model).state_dict(keep_vars=True).values()}
    return frozenset(name for name, tensor in live.items() if id(tensor) in inside)


def _transposed(model: PreTrainedModel, ties: Mapping[str, str]) -> frozenset[str]:
    names = (f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D))
    return frozenset(ties.get(name, name) for name in names)


def _is_encoder_decoder(settings: PreTrainedConfig) -> bool:
    """By the config, or as lm-eval judges: by the type, also of a class that keeps the decoder alone."""
    return bool(getattr(settings, "is_encoder_decoder", False)) or (
        type(settings) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    )


def build_on_meta(directory: Path, settings: PreTrainedConfig, remote_code: bool) -> PreTrainedModel:
    """The model of a configuration on the meta device: all of it but the numbers.

    Raises InvalidInput where the model class cannot be built from the configuration.
    """
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
    """Further name -> first name, for names of the same tensor."""
    first: dict[int, str] = {}
    ties = {}
    for name, tensor in live.items():
        leader = first.setdefault(id(tensor), name)
        if leader != name:
            ties[name] = leader
    return ties


def _check_shapes(directory: Path, header: Header, live: Mapping[str, torch.Tensor], stored: StoredPlaces) -> None:
    wrong = [
        f"{name} {list(header[name][0])}, config says {list(live[place].shape)}"
        for name, place in stored.whole.items()
        if header[name][0] != tuple(live[place].shape)
    ]
    if wrong or stored.unfit:
        raise InvalidInput(f"{directory}: the weights do not fit config.json: {some([*wrong, *stored.unfit])}")


def _lacking(
    model: PreTrainedModel, live: Mapping[str, torch.Tensor], ties: Mapping[str, str], places: Collection[str]
) -> list[str]:
    """The parameters that the checkpoint does not fill, apart from those that the class itself does without."""
    filled = {ties.get(place, place) for place in places}
    lacking = sorted(
        name
        for name, tensor in live.items()
        if isinstance(tensor, torch.nn.Parameter) and ties.get(name, name) not in filled
    )
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return [name for name in lacking if not any(re.search(pattern, name) for pattern in ignored)]


def _wrapping(live: Mapping[str, torch.Tensor], unmatched: Iterable[str]) -> str:
    """Explanation for names that do not match because the model was saved inside of another module."""
    found: set[str] = set()
    for name in unmatched:
        if ".lora_" in name or ".base_layer." in name:
            return (
                "; it holds an adapter beside the weights: merge it into them (`merge_and_unload`) and save that model"
            )
        bare = _WRAPPERS.sub("", name)
        if bare != name and bare in live:
            found.update(match.group(0) for match in _WRAPPERS.finditer(name))
        elif rest := next((end for end in _ends(name) if end in live), None):
            found.add(name.removesuffix(rest))
    if not found:
        return ""
    prefixes = some(sorted(map(repr, found)))
    return (
        f"; it has tensors of these names with {prefixes} added, as a model has that is saved inside of a wrapper, and "
        "transformers would not load them: save the model without the wrapper, or rename the tensors"
    )


def _ends(name: str) -> Iterator[str]:
    """The name without its first part, without its first two, and so on."""
    while "." in name:
        name = name.partition(".")[2]
        yield name
