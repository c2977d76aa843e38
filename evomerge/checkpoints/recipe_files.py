"""Files that a recipe needs beside the sources, such as trained coefficients: safetensors, named by their content.

The name is a digest of the content: a file is never changed, equal files are one, and a damaged one is noticed. Nothing
here reads or writes a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from evomerge.errors import InvalidInput
from evomerge.whole_files import write_whole

_METADATA = "evomerge"  # one entry that holds all: the library writes several in an order that differs from run to run


def store_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Write `<digest>.safetensors` into the folder, which is made where it is missing.

    Args:
        tensors: by name, of any shape, dtype and device.
        metadata: further text by key.

    Returns:
        The SHA-256 of the content: the same for the same tensors and metadata.
    """
    content = to_bytes(tensors, metadata)
    digest = hashlib.sha256(content).hexdigest()
    path = _path(folder, digest)
    if not path.exists():
        write_whole(path, content)
    return digest


def load_tensors(folder: Path, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (on the CPU) and metadata of a stored file.

    Raises:
        InvalidInput: the file is missing, or its content does not match its name.
    """
    path = _path(folder, digest)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"the recipe needs {path}, which cannot be read ({error.strerror or error}); the folder has to be there "
            "for all workers: copy it, or name one on a shared file system"
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise InvalidInput(f"{path} is damaged: its content has the digest {found}; restore it or train again")
    return from_bytes(content)


def to_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: the same bytes for the same content."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"))
    return bytes(save(plain, {_METADATA: text}))


def from_bytes(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `to_bytes` made.

    Raises:
        InvalidInput: this is no such file.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, json.loads(header["__metadata__"][_METADATA])
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidInput(f"this is no safetensors file that evomerge wrote: {error!r}") from error


def _path(folder: Path, digest: str) -> Path:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise InvalidInput(f"{digest!r} is no digest of a file: 64 hexadecimal digits")
    return folder / f"{digest}.safetensors"
