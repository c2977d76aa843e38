"""One merge without a search: its models opened, merged tensor by tensor, and written as each tensor is made.

Peak anonymous memory is that of the largest merged tensor, the pieces of the arithmetic and the libraries, whatever the
size of the models: sources are mapped, the result is not held, and merges that are sources of others are written to a
folder first. Not so on a GPU, where sources are resident as in a search, and for methods whose statistics are as large
as a tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from evomerge.adapters import adapter_names, open_expert
from evomerge.artefacts import CardFacts, Parent, model_card, parents_of, write_model
from evomerge.artefacts.parents import judgement_of
from evomerge.bank import WeightBank
from evomerge.bank.device_kind import chosen_device
from evomerge.checkpoints import Source, check_compatible, open_source
from evomerge.documents import MAX_BYTES
from evomerge.errors import InvalidInput, MergeError
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.passes.kernels import DTYPES, Kernel, KernelKind, Kernels
from evomerge.recipe import Recipe
from evomerge.static_merges.given_merge import GivenMerge, as_yaml_content, read_merge
from evomerge.whole_files import write_whole

SCHEMA = 1

OnWritten = Callable[[int, int, str], None]
"""Takes the bytes that are written, those of the whole result, and the name of the tensor that was written last."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A merge with its models opened and its recipe known."""

    recipe: Recipe
    base: Source
    others: tuple[Source, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


class _ReadyKernels(Kernels):
    """The kernels that earlier searches have compiled: one merge is made before another one would be."""

    def find(self, kind: KernelKind, *, compile_missing: bool) -> Kernel | None:
        return super().find(kind, compile_missing=False)


def merge_file(
    path: Path,
    out: Path,
    *,
    places: Mapping[str, str],
    seed: int | None = None,
    fingerprints: bool | None = None,
    allow: Collection[str] = (),
    device: str | None = None,
    reproduce: str = "",
    tell: Callable[[str], None] = lambda _: None,
    progress: OnWritten = lambda *_: None,
) -> dict[str, Any]:
    """Write the merge that a file describes as a Hugging Face model directory, whole or not at all.

    Args:
        path, places, seed: see `read_merge`.
        fingerprints: whether all weights of the models are read to compare or to compute their fingerprints; None:
            where the recipe has them. False: the models are taken as they are.
        allow: permissions, as in a search.yaml.
        device: "cpu" or "cuda"; None: the accelerator where there is one.
        reproduce: the command that makes this model again, for the model card.
        tell: takes each sentence on the file and the models, before anything is merged.

    Returns:
        A document with `out`, `recipe`, `tensors`, `bytes`, `notes`, `warnings`, `mergekit` and `licenses`.

    Raises:
        InvalidInput: the file, a model, `out` or the device cannot be used.
    """
    chosen = chosen_device(device)
    opened = _open(read_merge(path, places, seed=seed), fingerprints=fingerprints, allow=allow)
    for sentence in (*opened.notes, *opened.warnings):
        tell(sentence)
    yaml_text, reason = to_mergekit(opened.recipe, opened.base.catalogue, adapter_names(opened.others))
    parents = parents_of((opened.base, *opened.others))
    texts = {"README.md": _card(opened, parents, out.resolve().name, reproduce, mergekit=yaml_text is not None)}
    if yaml_text is not None:
        texts["mergekit.yaml"] = yaml_text
    written = _Written(opened, progress)
    try:
        _write(opened, out, written, chosen, texts)
    except MergeError as error:
        raise InvalidInput(f"{path} cannot be merged: {error}") from error
    return {
        "schema": SCHEMA,
        "out": str(out.resolve()),
        "recipe": opened.recipe.digest,
        "tensors": written.tensors,
        "bytes": written.bytes,
        "notes": list(opened.notes),
        "warnings": list(opened.warnings),
        "mergekit": None if yaml_text is not None else reason,
        "licenses": judgement_of(parents).to_data(),
    }


def import_mergekit(
    path: Path, out: Path, *, places: Mapping[str, str], seed: int | None = None, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Write the recipe of a file of mergekit's, as YAML or, by the name of `out`, as JSON.

    Returns:
        A document with `out`, `recipe`, `notes` and `warnings`.

    Raises:
        InvalidInput: it is no such file, or no recipe expresses it.
    """
    given = read_merge(path, places, seed=seed)
    if not given.of_mergekit:
        raise InvalidInput(f"{path} is a recipe already; `evomerge merge` reads it as it is")
    opened = _open(given, fingerprints=True, allow=allow)
    if out.suffix == ".json":
        text = opened.recipe.to_json() + "\n"
    else:
        text = yaml.safe_dump(as_yaml_content(opened.recipe), sort_keys=False, allow_unicode=True)
        if len(text.encode()) > MAX_BYTES:
            raise InvalidInput(f"as YAML the recipe would be larger than {MAX_BYTES} bytes; give --out {out.stem}.json")
    write_whole(out, text.encode())
    return {
        "schema": SCHEMA,
        "out": str(out.resolve()),
        "recipe": opened.recipe.digest,
        "notes": list(opened.notes),
        "warnings": list(opened.warnings),
    }


def _write(opened: _Opened, out: Path, written: _Written, device: torch.device, texts: Mapping[str, str]) -> None:
    recipe, base = opened.recipe, opened.base
    dtype, kernels = DTYPES[recipe.dtype], _ReadyKernels(device)
    beside = out.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{out.name}.ingredients-") as folder:
        bank = WeightBank(base, opened.others, dtype=dtype, device=device, kernels=kernels, one_merge=Path(folder))
        tensors = written.counted(bank.merged(recipe))
        write_model(out, base=base, tensors=tensors, dtype=dtype, recipe=recipe, files=texts)


class _Written:
    """Counts what has been written, and says so."""

    def __init__(self, opened: _Opened, progress: OnWritten) -> None:
        size = DTYPES[opened.recipe.dtype].itemsize
        depth = opened.base.catalogue.depth
        scale = len(opened.recipe.layers) / depth if opened.recipe.layers and depth else 1.0
        self._total = round(size * scale * opened.base.catalogue.parameters)
        self._progress = progress
        self.tensors = 0
        self.bytes = 0

    def counted(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            nbytes = tensor.nbytes
            yield name, tensor
            del tensor  # written: gone before the next is made
            self.tensors += 1
            self.bytes += nbytes
            self._progress(self.bytes, self._total, name)


def _open(given: GivenMerge, *, fingerprints: bool | None, allow: Collection[str]) -> _Opened:
    trusted = fingerprints is False
    fingerprinted = fingerprints is True
    first, *rest = given.models
    base = open_source(first, allow=allow, trust_fingerprint=trusted, fingerprinted=fingerprinted)
    others = tuple(
        open_expert(ref, base=base, allow=allow, trust_fingerprint=trusted, fingerprinted=fingerprinted) for ref in rest
    )
    warnings = check_compatible(base, others)
    recipe, notes = given.finish([source.ref for source in (base, *others)], base)
    return _Opened(recipe=recipe, base=base, others=others, notes=notes, warnings=tuple(warnings))


def _card(opened: _Opened, parents: list[Parent], title: str, reproduce: str, *, mergekit: bool) -> str:
    facts = CardFacts(mergekit=mergekit)
    return model_card(opened.recipe, parents, (), (), title=title, reproduce=reproduce, facts=facts)
