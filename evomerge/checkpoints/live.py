"""A live model whose tensors can be replaced in place, candidate after candidate."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evomerge.checkpoints.source import Source
from evomerge.checkpoints.wording import some
from evomerge.errors import InvalidInput


def load_skeleton(
    source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The source as a live model for scoring, and its tensors by the names of the source's catalogue.

    The model is in eval mode, needs no gradients, and holds the source's own weights until they are replaced:
    `parameters[name].copy_(merged)`. A tied tensor has one entry. Buffers that are computed, not stored (rotary
    frequencies), stay what the model class made them.

    Raises InvalidInput where transformers has no causal language model for the source, or keeps some of its tensors in
    another form than they are stored in.
    """
    _check_replaceable(source)
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
    live = model.state_dict(keep_vars=True)
    return model, {name: live[source.live_names[name]] for name in source.catalogue.names}


def _check_replaceable(source: Source) -> None:
    if source.architecture is None:
        raise InvalidInput(
            f"source {source.name!r}: transformers has no causal language model for the model type "
            f"{source.config.get('model_type')!r}, so its merges cannot be scored"
        )
    if source.architecture.converted:
        raise InvalidInput(
            f"source {source.name!r}: {source.architecture.name} keeps {len(source.architecture.converted)} tensors in "
            f"another form than they are stored in ({some(source.architecture.converted)}), and such tensors cannot be "
            "replaced in place yet"
        )
