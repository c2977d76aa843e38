"""The engine of a pack in a spec: its name and its arguments, which stand beside the evaluator's name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import field_validator, model_validator

from evomerge.documents import Frozen, validate
from evomerge.errors import InvalidInput, unknown_name

TRANSFORMERS = "transformers"
VLLM = "vllm"
ENGINES = (TRANSFORMERS, VLLM)

_SEARCH = "it follows from sources, dtype and allow of the search"
_SCORED = "what is scored would not be what is exported"
_ONE_GPU = "weights are handed over on one GPU, and each worker has its own; give more workers instead"
REFUSED = {
    **dict.fromkeys(("model", "tokenizer", "dtype", "trust_remote_code", "revision", "hf_overrides"), _SEARCH),
    **dict.fromkeys(("load_format", "weight_transfer_config", "generation_config", "seed"), "evomerge sets it"),
    **dict.fromkeys(("skip_tokenizer_init", "runner", "worker_cls", "worker_extension_cls"), "evomerge sets it"),
    **dict.fromkeys(("quantization", "quantization_config", "kv_cache_dtype", "logprobs_mode"), _SCORED),
    **dict.fromkeys(("speculative_config", "spec_method", "spec_model", "spec_tokens", "enable_lora"), _SCORED),
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"), _ONE_GPU),
}
_UTILIZATION = "gpu_memory_utilization"
_ITS_SHARE = 0.92  # vLLM's own default of it
_MEMORY = (_UTILIZATION, "kv_cache_memory_bytes", "cpu_offload_gb")  # no score depends on them


class EngineSettings(Frozen):
    """An engine and its arguments.

    Attributes:
        engine: transformers or vllm.
        engine_args: for vllm, arguments of `vllm.LLM`; transformers takes none.
    """

    engine: str = TRANSFORMERS
    engine_args: Mapping[str, Any] = {}

    @field_validator("engine_args")
    @classmethod
    def _left_to_the_user(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in arguments:
            if name in REFUSED:
                raise ValueError(f"{name} cannot be given: {REFUSED[name]}")
        return arguments

    @model_validator(mode="after")
    def _arguments_have_an_engine(self) -> EngineSettings:
        if self.engine == TRANSFORMERS and self.engine_args:
            raise ValueError(f"engine {TRANSFORMERS} takes no arguments; write engine: {VLLM}, or leave them out")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Everything of the settings that scores depend on; nothing for transformers."""
        if self.engine == TRANSFORMERS:
            return {}
        arguments = {name: value for name, value in self.engine_args.items() if name not in _MEMORY}
        return {"engine": self.engine, "engine_args": arguments}


def engine_settings(pack: str, settings: Mapping[str, Any]) -> EngineSettings:
    """The engine that a spec names beside a pack.

    Args:
        pack: its name.
        settings: the keys beside the name.

    Raises:
        InvalidInput: there is no such engine, it takes no such argument or is not installed, or a key is another's.
    """
    known = EngineSettings.model_fields
    other = sorted(set(settings) - set(known))
    if other:
        raise InvalidInput(
            f"evaluator {pack!r} is a pack and takes no settings but {' and '.join(known)}, but the spec gives "
            f"{', '.join(other)}; change its evaluator.yaml"
        )
    chosen = validate(EngineSettings, dict(settings), f"evaluator {pack!r}")
    if chosen.engine not in ENGINES:
        raise unknown_name("engine", chosen.engine, ENGINES)
    if chosen.engine == VLLM and find_spec("vllm") is None:
        raise InvalidInput(
            "engine vllm needs vLLM, which is not installed here; run `pip install 'evomerge[vllm]'` in the "
            f"environment of the command and of all workers, or write engine: {TRANSFORMERS}"
        )
    return chosen


def gpu_share(settings: Mapping[str, Any]) -> float:
    """The share of a GPU's whole memory that the engine takes for itself; 0 for transformers.

    Args:
        settings: the keys beside the evaluator's name.
    """
    if settings.get("engine") != VLLM:
        return 0.0
    return float(settings.get("engine_args", {}).get(_UTILIZATION, _ITS_SHARE))
