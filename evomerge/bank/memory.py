"""Memory that a search takes, from the catalogue alone: reported before a run, refused where the machine lacks it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evomerge.adapters.adapter_bytes import AdapterBytes, adapter_bytes
from evomerge.catalogue import TensorCatalogue, TensorEntry
from evomerge.checkpoints import Source
from evomerge.merging.della import KEPT_BYTES as RANK_BYTES
from evomerge.merging.della import rank_bytes
from evomerge.merging.opcm import KEPT_BYTES, is_linear
from evomerge.passes.magnitude_tables import sorted_together

BYTES_PER_SORTED = 8  # the fp32 magnitudes, and as much while those with the same upper bits are sorted
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a search holds.

    Attributes:
        worker: of each worker alone: the live model in the scoring dtype, threshold tables, decompositions, and the
            temporaries of the largest merge.
        sources: base and experts; `placement` chooses their memory.
        statistics: files of statistics: mapped like the sources, or on the device of each worker.
        layers: of each worker on a device: the layers of all sources in the scoring dtype, of which paths are made,
            where the sources are not there.
        copied_layers: the part of that which the sources do not hold in the scoring dtype anyway, so that it is needed
            in any case: by each worker, or on a CPU once by those of a machine that share it.
        ingredients: merges that are sources of other merges: of each worker alone, in the memory of the sources where
            that is no file; else they may be shared, too.
        padding: what sources and ingredients take beside their own bytes in pinned memory, see `_padding`.
    """

    worker: int
    sources: int
    statistics: int = 0
    layers: int = 0
    copied_layers: int = 0
    ingredients: int = 0
    padding: int = 0


@dataclass(frozen=True, kw_only=True)
class ProjectionSizes:
    """Bytes of merges that decompose linear weights.

    Attributes:
        kept: of what a worker keeps for all its candidates: decompositions, or merged task vectors.
        merging: what a merge holds beside, such as the largest matrix while it is decomposed.
    """

    kept: int
    merging: int


def projection_sizes(catalogue: TensorCatalogue, *, first_models: int, heads: bool = False) -> ProjectionSizes:
    """Bytes that projections take where models arrive one after the other, as OPCM does it: three models in float32
    while a merge is made.

    Args:
        first_models: number of models that may arrive first, each with decompositions that are kept.
        heads: whether heads are projected, too.
    """
    matrices = [entry.shape for entry in catalogue.mergeable if _is_projected(entry, heads=heads)]
    elements = sum(entry.numel * (8 if entry.dtype == "float64" else 4) for entry in catalogue.mergeable)
    decomposing = [8 * (2 * m * n + 4 * min(m, n) ** 2) + _decomposition(m, n) for m, n in matrices]
    return ProjectionSizes(
        kept=min(KEPT_BYTES, first_models * sum(_decomposition(m, n) for m, n in matrices)),
        merging=3 * elements + max(decomposing, default=0),
    )


def vector_sizes(catalogue: TensorCatalogue, experts: int) -> ProjectionSizes:
    """Bytes that a merged task vector takes, and the decompositions of all experts' largest linear weight."""
    matrices = [entry.shape for entry in catalogue.mergeable if _is_projected(entry, heads=False)]
    decomposing = [(experts + 2) * (8 * m * n + _decomposition(m, n)) + 8 * 4 * max(m, n) ** 2 for m, n in matrices]
    kept = sum(entry.numel * (8 if entry.dtype == "float64" else 4) for entry in catalogue.mergeable)
    return ProjectionSizes(kept=kept, merging=max(decomposing, default=0))


def kept_rank_bytes(catalogue: TensorCatalogue, experts: int) -> int:
    """Bytes of the ranks of all experts' magnitudes in their rows, as far as DELLA keeps them."""
    return min(RANK_BYTES, experts * sum(rank_bytes(entry.shape) for entry in catalogue.mergeable))


def alignment_bytes(catalogue: TensorCatalogue, *, mixed: bool) -> int:
    """Bytes of the aligned first source that OT fusion keeps: what can move in the source's dtype, mixed in float64."""
    moving = [entry for entry in catalogue.mergeable if entry.part in ("attention", "mlp", "rest")]
    return sum(entry.numel * (8 if mixed else BYTES.get(entry.dtype, 8)) for entry in moving)


def _is_projected(entry: TensorEntry, *, heads: bool) -> bool:
    names = (entry.name, *entry.aliases)
    return len(entry.shape) == 2 and all(is_linear(name, heads=heads) for name in names)


def _decomposition(rows: int, columns: int) -> int:
    """Bytes of U, s and V in float64."""
    return 8 * min(rows, columns) * (rows + columns + 1)


def memory_need(
    catalogue: TensorCatalogue,
    models: int,
    dtype: str,
    *,
    largest_scope: int = 0,
    statistics: int = 0,
    measuring: int = 0,
    solving: int = 0,
    kept: int = 0,
    longest_path: int = 0,
    ingredients: int = 0,
    adapters: Sequence[AdapterBytes] = (),
) -> MemoryNeed:
    """Bytes that a search over this many models (base included) holds. Activations are extra: they depend on the items.

    Args:
        largest_scope: elements of the largest scope whose magnitudes are sorted, once per worker, for threshold tables.
        statistics: bytes of the files of statistics.
        measuring: bytes that a worker takes to measure statistics of one source.
        solving: bytes that it takes to solve for the largest layer.
        kept: bytes that it keeps between candidates, to merge the next one faster.
        longest_path: layers of the deepest candidate of a search for layer paths; 0 for other searches. Each of its
            layers may hold a scaled output projection of its MLP, beside those of the candidate before.
        ingredients: number of merges that are kept as sources of other merges, in this dtype.
        adapters: those of the models that are adapters.
    """
    stored = sum(entry.numel * BYTES.get(entry.dtype, 8) for entry in catalogue.entries)
    live = sum(entry.numel * BYTES[dtype] for entry in catalogue.entries)
    largest = max((entry.numel for entry in catalogue.entries), default=0)
    # Merged eagerly, as long as there is no kernel: one tensor in fp32, and in the output's type.
    merging = max(largest * (4 + BYTES[dtype]), sorted_together(largest_scope) * BYTES_PER_SORTED, solving)
    tables = stored * models // 100 if largest_scope else 0
    made = ingredients * [entry.numel * BYTES[dtype] for entry in catalogue.mergeable]
    held = [size for each in adapters for size in each.held]
    copied = (models - len(adapters)) * [entry.numel * BYTES.get(entry.dtype, 8) for entry in catalogue.entries]
    need = MemoryNeed(
        worker=live + kept + max(merging + tables + sum(each.made for each in adapters), measuring),
        sources=sum(copied) + sum(held),
        statistics=statistics,
        ingredients=sum(made),
        padding=sum(map(_padding, (*copied, *held, *made))),
    )
    if not longest_path:
        return need
    inside = [entry for entry in catalogue.entries if entry.layer is not None]
    scaled = 2 * longest_path * max((entry.numel for entry in inside if entry.part == "mlp"), default=0) * BYTES[dtype]
    return replace(
        need,
        worker=need.worker + scaled,
        layers=models * sum(entry.numel for entry in inside) * BYTES[dtype],
        copied_layers=models * sum(entry.numel for entry in inside if entry.dtype != dtype) * BYTES[dtype],
    )


def _padding(size: int) -> int:
    """Bytes that a tensor of this size takes beside its own in pinned memory: torch gives it a power of two."""
    return (1 << (size - 1).bit_length()) - size if size else 0


def need_of_sources(base: Source, experts: Sequence[Source], dtype: torch.dtype, *, ingredients: int = 0) -> MemoryNeed:
    """Bytes that merges of sources hold where no search is known that makes them: `memory_need` without what a search
    measures, solves for and keeps."""
    name, adapters = str(dtype).removeprefix("torch."), adapter_bytes(experts)
    return memory_need(base.catalogue, 1 + len(experts), name, ingredients=ingredients, adapters=adapters)


def available_memory() -> int:
    """Bytes of main memory that a new process could have, the system's file cache included; all of it where the system
    does not report them."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return total_memory()


def total_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
