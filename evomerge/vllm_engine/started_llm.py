"""vLLM's offline engine, started on the base's folder without its weights, which are sent before the first request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vllm import LLM
from vllm.config import WeightTransferConfig

from evomerge.checkpoints.source import Source
from evomerge.errors import InvalidInput
from evomerge.messages import in_one_line

SERIALIZATION = "VLLM_ALLOW_INSECURE_SERIALIZATION"


def start_llm(
    source: Source, *, dtype: str, longest: int, arguments: Mapping[str, Any], config: Mapping[str, Any]
) -> Any:
    """Start a `vllm.LLM`.

    Args:
        source: the base, whose folder has config and tokenizer.
        dtype: of the live model, by name.
        longest: tokens that a sequence has at most, the written ones included.
        arguments: the user's, for `vllm.LLM`.
        config: that of an export of the base, whose class is loaded.

    Raises:
        InvalidInput: the environment does not allow handles of GPU memory, or vLLM does not start.
    """
    if os.environ.get(SERIALIZATION) != "1":
        raise InvalidInput(
            "engine vllm: weights are handed to vLLM's own process as handles of GPU memory, which vLLM passes on "
            f"only where {SERIALIZATION}=1 is set; set it for the command, and on every node that has workers"
        )
    overrides = {} if config is source.config else {"hf_overrides": {"architectures": config["architectures"]}}
    try:
        return LLM(
            model=str(source.directory),
            dtype=dtype,
            load_format="dummy",
            weight_transfer_config=WeightTransferConfig(backend="ipc"),
            trust_remote_code=source.remote_code,
            generation_config="vllm",
            **{"max_model_len": longest, **overrides, **arguments},
        )
    except (
        Exception
    ) as error:  # anything: vLLM checks arguments, model and memory here, with errors of several libraries
        raise InvalidInput(
            f"vLLM cannot be started on {source.directory}: {in_one_line(error)}; change engine_args (the live model "
            "is on the same GPU: leave it room by gpu_memory_utilization), or write engine: transformers"
        ) from error
