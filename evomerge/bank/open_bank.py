"""A bank over sources that are opened for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from evomerge.adapters import open_expert
from evomerge.bank.device_kind import default_device
from evomerge.bank.memory import MemoryNeed
from evomerge.bank.placement import this_machine
from evomerge.bank.shared_tensors import SharedTensors
from evomerge.bank.weight_bank import WeightBank
from evomerge.checkpoints import open_source
from evomerge.passes.kernels import DTYPES
from evomerge.recipe import ModelRef


def open_bank(
    base: ModelRef,
    experts: Sequence[ModelRef],
    *,
    dtype: str,
    device: str | None = None,
    allow: Collection[str] = (),
    files: Path | None = None,
    ingredients: int = 0,
    need: MemoryNeed | None = None,
    gpus: float = 1.0,
    neighbours: int = 1,
    engine: float = 0.0,
    shared: SharedTensors | None = None,
) -> WeightBank:
    """Open the sources (mmap; nothing is copied on a CPU) and put a bank over them.

    The fingerprints are taken as they are: the controller has compared them with the files, once for all workers.

    Args:
        files: the folder with the files of recipes, such as trained coefficients.
        ingredients: number of merges that are kept as sources of other merges.
        need: memory that the search was planned with; None: what the sources alone need.
        gpus: how many GPUs, or what share of one, are this process's.
        neighbours: workers that may be on this machine, this one included.
        engine: share of a GPU's memory that an engine takes beside the live model.
        shared: tensors that they have in common.
    """
    opened = open_source(base, allow=allow, trust_fingerprint=True)
    others = [open_expert(expert, base=opened, allow=allow, trust_fingerprint=True) for expert in experts]
    chosen = torch.device(device or default_device())
    return WeightBank(
        opened,
        others,
        dtype=DTYPES[dtype],
        device=chosen,
        files=files,
        ingredients=ingredients,
        need=need,
        machine=this_machine(gpus if chosen.type == "cuda" else 0.0, neighbours, engine=engine),
        shared=shared,
    )
