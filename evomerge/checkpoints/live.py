"""A live model whose tensors can be replaced in place, candidate after candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from evomerge.checkpoints.architecture import Architecture, build_on_meta, read_settings
from evomerge.checkpoints.digests import dtype_name
from evomerge.checkpoints.source import Source
from evomerge.conversion import LiveTensors
from evomerge.errors import InvalidInput
from evomerge.messages import counted, some

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_skeleton(
    source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, LiveTensors]:
    """The source as a live model for scoring, and its tensors by the names of the source's catalogue.

    The model is in eval mode, needs no gradients, and holds the source's own weights until they are replaced:
    `parameters[name].copy_(merged)`. A tied tensor has one entry. A tensor that the model class keeps in another form
    than it is stored in, such as a matrix of one expert in the stack of all, is a view of that. Buffers that are
    computed, not stored (rotary frequencies), stay what the model class made them.

    The model class may keep some tensors in a wider dtype than `dtype`, as it does with the norms of some models in 16
    bits. They hold values of `dtype` all the same, from the start: those that an export in `dtype` holds.

    Raises InvalidInput where the source is not scorable (`check_scorable`), the files lack tensors, or the model class
    changes what it loads or keeps a tensor in a dtype that has not all values of `dtype`.
    """
    check_scorable(source)
    model, loading = AutoModelForCausalLM.from_pretrained(
        source.directory,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=not source.pickled,
        trust_remote_code=source.remote_code,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise InvalidInput(f"{source.directory}: no weights for {some(sorted(loading['missing_keys']))}")
    model.requires_grad_(False)
    model.eval()
    model.to(device)
    parameters = tensors_of(source, model)
    _check_wide_enough(source, parameters, dtype)
    _check_loaded_as_stored(source, parameters)
    for name, tensor in parameters.items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.copy_(source.tensors[name].to(dtype))
    return model, parameters


def tensors_of(source: Source, model: PreTrainedModel) -> LiveTensors:
    """The live tensors of a source's model by the names of its catalogue; see `load_skeleton`."""
    return LiveTensors(model, source.live_names, source.places)


def _check_loaded_as_stored(source: Source, parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model class that changes what it loads: an export would be changed once more when it is loaded."""
    changed = [
        name
        for name, tensor in parameters.items()
        if not torch.equal(tensor, source.tensors[name].to(tensor.device, tensor.dtype))
    ]
    if changed:
        raise InvalidInput(
            f"source {source.name!r}: transformers loads {counted(len(changed), 'tensor')} with other values than "
            f"are stored ({some(changed)}), so that an export would not be what was scored; store them as transformers "
            "loads them (from_pretrained, then save_pretrained)"
        )


def meta_model(source: Source) -> PreTrainedModel:
    """The source as a model without weights, on the meta device, in eval mode: `load_skeleton` without its cost.

    Raises InvalidInput where the source is not scorable (`check_scorable`).
    """
    check_scorable(source)
    settings = read_settings(source.directory, source.remote_code)
    model = build_on_meta(source.directory, settings, source.remote_code)
    if source.generation_config is not None:
        model.generation_config = GenerationConfig.from_dict(dict(source.generation_config))
    return model.eval()


def _check_wide_enough(source: Source, parameters: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    narrow = [
        f"{name} in {dtype_name(tensor.dtype)}"
        for name, tensor in parameters.items()
        if tensor.is_floating_point() and torch.promote_types(tensor.dtype, dtype) != tensor.dtype
    ]
    if narrow:
        raise InvalidInput(
            f"source {source.name!r}: the model class keeps {some(narrow)}, which cannot hold the values of "
            f"{dtype_name(dtype)}; search in the dtype that it keeps"
        )


def check_scorable(source: Source) -> None:
    """Raises InvalidInput where merges into this source cannot be scored, as far as the files show it.

    That is so where transformers has no causal language model for the source, or one that reads with an encoder; where
    no view of the live model has the form in which a tensor is stored; and where numbers of one kind, integers or
    floating-point, are stored for the other kind.
    """
    architecture = source.architecture
    if architecture is None:
        raise InvalidInput(
            f"source {source.name!r}: transformers has no causal language model for the model type "
            f"{source.config.get('model_type')!r}, so its merges cannot be scored"
        )
    if architecture.encoder_decoder:
        raise InvalidInput(
            f"source {source.name!r}: {architecture.name} is of a type that is run as an encoder-decoder "
            f"({source.config.get('model_type')!r}); only decoder-only language models can be scored"
        )
    if unplaced := architecture.unplaced:
        reasons = some(sorted(set(unplaced.values())), separator="; ")
        raise InvalidInput(
            f"source {source.name!r}: {architecture.name} keeps {counted(len(unplaced), 'tensor')} in another form "
            f"than stored ({some(sorted(unplaced))}), and no view of the live model has the stored form ({reasons}), "
            "so that they cannot be replaced in place; store them as the model class keeps them, if it loads that"
        )
    if wrong := _of_another_kind(source, architecture):
        raise InvalidInput(
            f"source {source.name!r}: {architecture.name} computes with other kinds of numbers than are stored "
            f"({some(wrong)}); give the model as it was before it was quantised or converted"
        )


def _of_another_kind(source: Source, architecture: Architecture) -> list[str]:
    wrong = []
    for entry in source.catalogue.entries:
        integer = _live_names(source, entry.name)[0] in architecture.integers
        if entry.is_floating == integer:
            wrong.append(
                f"{entry.name} is {entry.dtype}, expected {'integers' if integer else 'floating-point numbers'}"
            )
    return wrong


def _live_names(source: Source, name: str) -> tuple[str, ...]:
    """The names of the live tensors that a tensor is in."""
    return source.places[name].live_names if name in source.places else (source.live_names[name],)
