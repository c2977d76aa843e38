"""The weights of the live model, sent to vLLM by its public weight transfer: init once, then start, update and finish.

The tensors stay where they are: vLLM's worker process, which is on the same GPU, reads them through handles of CUDA IPC
(backend `ipc`), in chunks of one buffer, and puts them into its own form by the loader that it has for checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from evomerge.artefacts.export_form import ExportForm
from evomerge.errors import InvalidInput

BUFFER = 2**28  # bytes of a chunk; more where one tensor is larger


class LocalLlmClient:
    """The four calls of a weight transfer, passed on to an `LLM` of this process: vLLM's `VLLMWeightSyncClient`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._llm.finish_weight_update(weight_version)


class LiveWeights(WeightSource):  # type: ignore[misc]
    """The tensors of a live model under the names of the base's files, all of them every time.

    Args:
        form: names of an export of the base, and the tensors that the live model lacks.
        live: the live tensors as they are stored.
        device: where the live model is.
    """

    def __init__(self, form: ExportForm, live: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.live = live
        self.changed: Mapping[str, torch.Tensor] = {}
        self._form = form
        self._device = device

    @cached_property
    def metadata(self) -> list[Any]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors()]

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max((tensor.nbytes for _, tensor in self._tensors()), default=0)

    def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors():
            yield name, tensor.detach().to(self._device)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        merged = ((name, self.changed.get(name, tensor)) for name, tensor in self.live.items())
        return self._form.files_of(merged)


class WeightSender:
    """Sends a live model's weights to an `LLM`, whose answers then follow from them alone."""

    def __init__(self, llm: Any, weights: LiveWeights) -> None:
        self.weights = weights
        self._llm = llm
        self._transfer = WeightTransferTrainerFactory.trainer_init(
            init_info=IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(BUFFER, weights.largest)),
            client=LocalLlmClient(llm),
            source=weights,
        )

    def send(self, changed: Mapping[str, torch.Tensor] | None = None) -> None:
        """Send all weights, and forget the keys and values that vLLM has kept of texts read before.

        Args:
            changed: stored name -> tensor that is sent instead of the live one.

        Raises:
            InvalidInput: the prefix cache was not reset.
        """
        self.weights.changed = changed or {}
        try:
            self._transfer.send_weights()
        finally:
            self.weights.changed = {}
        if not self._llm.reset_prefix_cache():
            raise InvalidInput(
                "vLLM did not reset its prefix cache after new weights, so that texts would be scored with keys and "
                "values of earlier ones; give engine_args: {enable_prefix_caching: false}, or engine: transformers"
            )
