"""Digests of tensors: stored for the winner by a worker, verified at an export (law 3).

The fingerprint of a model depends on the content it computes with, not on location and number of its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from evomerge.errors import InvalidInput
from evomerge.messages import some

BOOKKEEPING = ("_name_or_path", "transformers_version")  # say where a model came from, not what it is


class WeightsDiffer(InvalidInput):
    """Weights that should be bit-identical are not. `names` are the tensors that differ."""

    def __init__(self, names: list[str], total: int) -> None:
        self.names = tuple(names)
        super().__init__(
            f"{len(names)} of {total} tensors are not the ones that were scored: {some(names)}. Another kind of device "
            "or another version of torch gives other bits; rebuild where the candidate was scored"
        )


def tensor_digests(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Name -> digest. Takes pairs, so that tensors can be made, digested and dropped one at a time."""
    return {name: tensor_digest(tensor) for name, tensor in tensors}


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and the raw bytes in row-major order, on any device."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return bytes_digest(dtype_name(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


def weights_digest(tensors: Mapping[str, str]) -> str:
    """One digest for the digests of all tensors of a model, in whatever files they are."""
    return hashlib.sha256(json.dumps(dict(sorted(tensors.items()))).encode()).hexdigest()


def bytes_digest(dtype: str, shape: tuple[int, ...], content: memoryview) -> str:
    """The digest of a tensor from its raw bytes: the same in a file and in memory."""
    digest = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    digest.update(content)
    return digest.hexdigest()


def verify_digests(expected: Mapping[str, str], actual: Mapping[str, str]) -> None:
    """Raises WeightsDiffer naming every tensor whose digest differs or that is on one side only."""
    different = differing(expected, actual)
    if different:
        raise WeightsDiffer(different, len(expected.keys() | actual.keys()))


def differing(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """The tensors whose digest differs or that are on one side only."""
    return sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))


def dtype_name(dtype: torch.dtype) -> str:
    """The name without the module: "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def fingerprint(config: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """SHA-256 over the canonical config and the tensors' digests, sorted by name."""
    kept = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    content = json.dumps([kept, dict(digests)], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
