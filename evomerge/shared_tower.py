"""`evomerge merge-experts`: the experts inside one checkpoint become one shared tower, written as a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rich.console import Group
from rich.text import Text
from torch import Tensor

from evomerge.artefacts.output_folder import check_replaceable
from evomerge.artefacts.weight_files import as_json, copy_files, write_text, write_weights
from evomerge.catalogue.expert_names import find_experts, refuse_idle
from evomerge.checkpoints.digests import tensor_digest, weights_digest
from evomerge.checkpoints.json_files import read_object
from evomerge.checkpoints.model_files import CHAT_TEMPLATES, TOKENIZER
from evomerge.checkpoints.safetensors_files import INDEX
from evomerge.checkpoints.state_dict_files import find_state_dict, open_state_dict
from evomerge.checkpoints.tokenizer import tokenizer_files
from evomerge.errors import InvalidInput
from evomerge.licenses import LEGAL
from evomerge.merging.experts import METHODS, ExpertMerge
from evomerge.weight_distances import compare_experts, pairs_table
from evomerge.whole_files import folder_in_place

SCHEMA: Final = 1
RECORD: Final = "experts.json"
COPIED: Final = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", *LEGAL)

# The settings that a method reads; another one is refused, since it would change nothing.
_READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "interpolation": ("a",),
        "arithmetic": ("lambda", "arithmetic", "seed-model"),
        "regmean": ("scaling", "statistics"),
    }
)


@dataclass(frozen=True, kw_only=True)
class TowerRequest:
    """The experts of a checkpoint, and the way in which they are merged.

    Attributes:
        model: folder, safetensors file or hub id of the checkpoint.
        patterns, experts, method: see `merge_experts`.
        parameters, options: those that were given.
        seed_model: for arithmetic, the weights from which all experts were trained, under the shared names.
        statistics: for regmean, a safetensors file of Grams by the full name of an expert's tensor.
    """

    model: str
    patterns: tuple[str, ...]
    experts: tuple[str, ...]
    method: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    seed_model: str | None = None
    statistics: Path | None = None


def merge_checkpoint(request: TowerRequest, out: Path) -> dict[str, Any]:
    """Write the checkpoint with one shared tower instead of experts, and a record of what was merged.

    Tensors are read and written one after the other, so that one shard is in memory. The files beside the weights, such
    as config and tokenizer, are copied as they are.

    Args:
        out: the folder. It may be missing, empty, or an earlier result, which is then replaced.

    Returns:
        The record, with the distances between the experts.

    Raises:
        InvalidInput: the checkpoint, the seed or the statistics cannot be read; a pattern or an expert matches nothing;
            a setting belongs to another method; see also `merge_experts`. Nothing is written then.
    """
    _refuse_settings_of_others(request)
    model = find_state_dict(request.model)
    weights = open_state_dict(model)
    seed = None if request.seed_model is None else find_state_dict(request.seed_model)
    statistics = None if request.statistics is None else open_state_dict(request.statistics).tensors
    merge = ExpertMerge.of(
        request.method,
        request.parameters,
        request.options,
        seed=None if seed is None else open_state_dict(seed).tensors,
        statistics=statistics,
    )
    refuse_idle(weights.header, request.patterns, request.experts)
    shared = find_experts(weights.header, request.patterns, request.experts)
    if statistics is not None and not any(name in statistics for names in shared.values() for name in names):
        example = next(iter(shared.values()))[0]
        raise InvalidInput(f"{request.statistics} has no Gram of an expert's tensor; these are named like {example!r}")
    sources = [path if path.is_dir() else path.parent for path in (model, seed) if path is not None]
    check_replaceable(
        out,
        marker=RECORD,
        is_export=_is_tower,
        patterns=("model*.safetensors", INDEX, *COPIED, *TOKENIZER, CHAT_TEMPLATES),
        sources=[*sources, *([] if request.statistics is None else [request.statistics])],
    )
    distances = compare_experts(request.model, request.patterns, request.experts, base=None, keep=0.5)
    digests: dict[str, str] = {}

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in merge.tensors(weights.tensors, shared):
            digests[name] = tensor_digest(tensor)
            yield name, tensor

    with folder_in_place(out) as folder:
        write_weights(folder, noted())
        copy_files(_files_beside(model), model, folder)
        record = {
            "schema": SCHEMA,
            "model": distances["model"],
            "patterns": list(request.patterns),
            "experts": list(request.experts),
            "method": request.method,
            "parameters": {name: merge.parameters[name] for name in _READS[request.method] if name in merge.parameters},
            "options": {name: merge.options[name] for name in _READS[request.method] if name in merge.options},
            "seed_model": None if seed is None else _identity(str(request.seed_model), seed),
            "statistics": None if request.statistics is None else _file(request.statistics),
            "merged": {name: list(copies) for name, copies in shared.items()},
            "tensors": len(digests),
            "digest": weights_digest(digests),
            "distances": distances["pairs"],
        }
        write_text(folder / RECORD, as_json(record))
    return {**record, "keep": distances["keep"], "base": None, "out": str(out.resolve())}


def tower_text(document: Mapping[str, Any]) -> Group:
    """The same for a person."""
    copies = sum(map(len, document["merged"].values()))
    facts = Text(
        f"merged {copies} tensors of {', '.join(document['experts'])} into {len(document['merged'])} by "
        f"{document['method']}; {document['tensors']} tensors in {document['out']}"
    )
    return Group(pairs_table({**document, "pairs": document["distances"]}), facts)


def _refuse_settings_of_others(request: TowerRequest) -> None:
    if request.method not in METHODS:
        return  # refused with the methods that there are, by `ExpertMerge.of`
    given = [*request.parameters, *request.options]
    given += ["seed-model"] * (request.seed_model is not None) + ["statistics"] * (request.statistics is not None)
    for name in given:
        if name not in _READS[request.method]:
            owners = [method for method, names in _READS.items() if name in names]
            raise InvalidInput(
                f"{name} belongs to {' or '.join(owners) or 'no method'}, and the method is {request.method}; it reads "
                f"{', '.join(_READS[request.method])}"
            )


def _files_beside(model: Path) -> list[str]:
    """Config, tokenizer, README and legal texts of a folder; no index of weights, and no record of an earlier merge."""
    if not model.is_dir():
        return []
    names = [path.name for path in model.iterdir() if path.is_file()]
    copied = {name for name in names if any(fnmatch(name, pattern) for pattern in COPIED)}.union(tokenizer_files(model))
    return sorted(name for name in copied if not name.endswith(".index.json") and name != RECORD)


def _identity(location: str, path: Path) -> dict[str, str]:
    return {"location": location, "fingerprint": weights_digest(open_state_dict(path).digests())}


def _file(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"location": str(path), "digest": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_tower(folder: Path) -> bool:
    try:
        return {"patterns", "experts", "merged"} <= set(read_object(folder / RECORD))
    except InvalidInput:
        return False
