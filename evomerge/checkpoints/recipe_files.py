"""Files that a recipe needs beside the sources, such as trained coefficients: safetensors, named by their content.

The name is a digest of the content: a file is never changed, equal files are one, and a damaged one is noticed. Files
are written tensor by tensor and mapped into memory, as statistics may be larger than a model. Nothing here reads or
writes a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from evomerge.errors import InvalidInput
from evomerge.whole_files import write_whole

# The dtypes whose files are written tensor by tensor, in the order in which safetensors puts their tensors.
_NAMES: Final = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ORDER: Final = tuple(_NAMES)
_METADATA = "evomerge"  # one entry that holds all: the library writes several in an order that differs from run to run


def store_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Write `<digest>.safetensors` into the folder, which is made where it is missing.

    Args:
        tensors: by name, of any shape, dtype and device.
        metadata: further text by key.

    Returns:
        The SHA-256 of the content: the same for the same tensors and metadata.
    """
    found = hashlib.sha256()
    for piece in _pieces(tensors, metadata):
        found.update(piece)
    path = _path(folder, found.hexdigest())
    if not path.exists():
        write_tensors(path, tensors, metadata)
    return found.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with the content of `to_bytes`, of which no more than one tensor is ever copied."""
    write_whole(path, _pieces(tensors, metadata))


def load_tensors(folder: Path, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (on the CPU, mapped: processes of a machine share them) and metadata of a stored file.

    Raises:
        InvalidInput: the file is missing, or its content does not match its name.
    """
    path = _path(folder, digest)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(
            f"the recipe needs {path}, which cannot be read ({error.strerror or error}); the folder has to be there "
            "for all workers: copy it, or name one on a shared file system"
        ) from error
    if found != digest:
        raise InvalidInput(f"{path} is damaged: its content has the digest {found}; restore it or make it again")
    return read_tensors(path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, mapped, and the metadata of a file that `write_tensors` wrote.

    Raises:
        OSError: there is no file that can be read.
        InvalidInput: this is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _described(file.metadata())  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _not_ours(error) from error


def to_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: the same bytes for the same content."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(save(plain, {_METADATA: _text(metadata)}))


def from_bytes(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `to_bytes` made.

    Raises:
        InvalidInput: this is no such file.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, _described(header["__metadata__"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _not_ours(error) from error


def _pieces(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, as the library would write them: its header, and one tensor after another."""
    if any(tensor.dtype not in _NAMES for tensor in tensors.values()):
        yield to_bytes(tensors, metadata)
        return
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    header: dict[str, object] = {"__metadata__": {_METADATA: _text(metadata)}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for _, tensor in ordered:
        if tensor.numel():
            yield _bytes_of(tensor)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return memoryview(plain.numpy().data)


def _described(header: Mapping[str, str]) -> dict[str, str]:
    described: dict[str, str] = json.loads(header[_METADATA])
    return described


def _not_ours(error: Exception) -> InvalidInput:
    return InvalidInput(f"this is no safetensors file that evomerge wrote: {error!r}")


def _text(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"))


def _path(folder: Path, digest: str) -> Path:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise InvalidInput(f"{digest!r} is no digest of a file: 64 hexadecimal digits")
    return folder / f"{digest}.safetensors"
