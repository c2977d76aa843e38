"""Writing tensors as safetensors files: one, or shards with an index, and the texts beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.artefacts.tensor_file import write_tensors
from evomerge.checkpoints.safetensors_files import INDEX, ONE_FILE

MAX_SHARD_BYTES = 5 * 10**9


def write_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write tensors as one file, or as shards with an index, of which one is in memory.

    Shards are numbered as they fill; their number, which is part of each name, is known only at the end.
    """
    shards = []
    for number, shard in enumerate(_shards(tensors, MAX_SHARD_BYTES), start=1):
        write_tensors(folder / f"{number}.safetensors", shard)
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
    if len(shards) == 1:
        (folder / "1.safetensors").rename(folder / ONE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard_sizes in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(shard_sizes, file)
    total = sum(size for shard_sizes in shards for size in shard_sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX, as_json(index))


def _shards(tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        # A copy of its own: the caller may give views of one buffer, or the same buffer again and again.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    yield shard


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 with line feeds."""
    path.write_text(text, encoding="utf-8", newline="\n")


def copy_files(names: Iterable[str], source: Path, out: Path) -> None:
    """Copy files by their names, which may begin with a folder; the content, where a hub snapshot has a link."""
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, out / name)


def as_json(content: Mapping[str, Any]) -> str:
    """Indented JSON, as in a config.json."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
