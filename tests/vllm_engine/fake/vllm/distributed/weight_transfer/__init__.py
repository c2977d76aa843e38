"""The sender's side of the weight transfer. See `vllm`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.__dict__.get("metadata", cached_property(lambda self: [])), cached_property):
            raise TypeError("metadata must be a functools.cached_property")

    def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
        raise NotImplementedError


class WeightTransferTrainerFactory:
    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: WeightSource | None = None) -> _Sender:
        assert source is not None
        assert init_info.rank == 0
        client.init_weight_transfer_engine({"packed": init_info.packed})
        return _Sender(client, source, init_info.packed_buffer_size_bytes)


class _Sender:
    """Chunks of one buffer, as with `packed`. The handles of the fake are the tensors themselves."""

    def __init__(self, client: Any, source: WeightSource, buffer: int) -> None:
        self._client = client
        self._source = source
        self._buffer = buffer

    def send_weights(self) -> None:
        self._client.start_weight_update()
        chunk: list[tuple[str, torch.Tensor]] = []
        declared = [(meta.name, meta.dtype, meta.shape) for meta in self._source.metadata]
        sent = []
        for name, tensor in self._source.iter_full():
            if tensor.nbytes > self._buffer:
                raise ValueError(f"tensor {name!r} exceeds the buffer")
            if sum(each.nbytes for _, each in chunk) + tensor.nbytes > self._buffer:
                self._ship(chunk)
                chunk = []
            chunk.append((name, tensor))
            sent.append((name, tensor.dtype, tuple(tensor.shape)))
        self._ship(chunk)
        assert sent == declared, "a source yields what its metadata declares"
        self._client.finish_weight_update()

    def _ship(self, chunk: list[tuple[str, torch.Tensor]]) -> None:
        self._client.update_weights(
            {
                "names": [name for name, _ in chunk],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in chunk],
                "shapes": [list(tensor.shape) for _, tensor in chunk],
                "tensor_sizes": [tensor.nbytes for _, tensor in chunk],
                "ipc_handles": {"cpu": [tensor for _, tensor in chunk]},
            }
        )
