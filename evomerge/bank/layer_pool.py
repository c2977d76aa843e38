"""Layers of the sources, each held once in the dtype of the live model, for models that are stacked from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from evomerge.bank.shared_tensors import SharedTensors
from evomerge.errors import MergeError

WORTH_SHARING: Final = 1 << 16  # bytes; a file takes whole pages


class LayerPool:
    """Tensors of the sources as live models hold them.

    A tensor that a source holds in the same dtype on the same device is that tensor itself and takes no memory; another
    one is copied when it is first asked for: on a CPU once for all workers that have `shared`. Nobody writes to them.
    """

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, torch.Tensor]],
        *,
        dtype: torch.dtype,
        device: torch.device,
        shared: SharedTensors | None = None,
    ) -> None:
        self._weights = weights
        self._shared = shared if device.type == "cpu" else None
        self._dtype = dtype
        self._device = device
        self._held: dict[tuple[str, str, torch.dtype], torch.Tensor] = {}

    def tensor(self, source: str, name: str, live: torch.dtype) -> torch.Tensor:
        """A tensor of a source, rounded to the scoring dtype, in the dtype `live` that the model class keeps it in.

        Raises:
            MergeError: it is not finite in the scoring dtype.
        """
        key = (source, name, live)
        if key not in self._held:
            self._held[key] = self._copied(*key)
        return self._held[key]

    def _copied(self, source: str, name: str, live: torch.dtype) -> torch.Tensor:
        stored = self._weights[source][name]
        is_itself = not stored.is_floating_point() or stored.dtype == self._dtype == live
        if self._shared is None or is_itself or stored.nbytes < WORTH_SHARING:
            return self.rounded(source, name).to(self._device, live)
        key = f"{name} of {source} in {self._dtype} as {live}"
        return self._shared.tensors(key, lambda: [(name, self.rounded(source, name).to(live))])[name]

    def rounded(self, source: str, name: str) -> torch.Tensor:
        """A tensor of a source where the source is, rounded to the scoring dtype.

        Raises:
            MergeError: it is not finite in that dtype.
        """
        stored = self._weights[source][name]
        if not stored.is_floating_point():
            return stored
        return _finite(stored.to(self._dtype), f"tensor {name!r} of {source!r}")

    def scaled(self, source: str, name: str, scale: float) -> torch.Tensor:
        """A tensor of a source times a factor: multiplied in fp32 and rounded once, to the scoring dtype.

        Raises:
            MergeError: the product is not finite.
        """
        product = (self._weights[source][name].to(self._device).float() * scale).to(self._dtype)
        return _finite(product, f"tensor {name!r} of {source!r}, times {scale},")


def _finite(tensor: torch.Tensor, described: str) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise MergeError(f"{described} is not finite in {str(tensor.dtype).removeprefix('torch.')}")
    return tensor
