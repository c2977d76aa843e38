"""How much memory a search will take, from the catalogue alone: said before a run, refused where it cannot be had."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from evomerge.catalogue import TensorCatalogue
from evomerge.errors import InvalidInput

BYTES_PER_SORTED = 20  # the fp32 magnitudes, their differences, the sorted copy, and 64-bit indices
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a search holds.

    Attributes:
        worker: of each worker alone: the live model in the scoring dtype, and the temporaries of the largest merge.
        sources: base and experts. On a CPU they are mapped files, which all workers of a machine share and the system
            may drop; on a GPU they are a copy per worker.
    """

    worker: int
    sources: int


def memory_need(catalogue: TensorCatalogue, models: int, dtype: str, *, sorted_at_once: int = 0) -> MemoryNeed:
    """What a search over this many models (base included) holds. Activations come on top: they depend on the items.

    Args:
        sorted_at_once: elements whose magnitudes are sorted together, once per worker, for threshold tables.
    """
    stored = sum(entry.numel * BYTES.get(entry.dtype, 8) for entry in catalogue.entries)
    live = sum(entry.numel * BYTES[dtype] for entry in catalogue.entries)
    largest = max((entry.numel for entry in catalogue.entries), default=0)
    merging = max(largest * 4 * (models + 1), sorted_at_once * BYTES_PER_SORTED)
    return MemoryNeed(worker=live + merging, sources=stored * models)


def refuse_impossible(need: MemoryNeed, workers: int, device: str) -> None:
    """Refuse a search that cannot fit on this machine, before anything is loaded.

    Raises:
        InvalidInput: says what is needed, what there is, and what to change.
    """
    if device == "cuda":
        wanted, there, where = need.worker + need.sources, torch.cuda.get_device_properties(0).total_memory, "the GPU"
    else:
        wanted, there, where = need.worker * workers, total_memory(), "this machine"
    if wanted > there:
        raise InvalidInput(
            f"the search needs {wanted / 1e9:.1f} GB and {where} has {there / 1e9:.1f} GB; "
            "use fewer workers, a smaller dtype, or smaller models"
        )


def total_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
