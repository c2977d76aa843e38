"""Memory in which the sources are held during a search: chosen from sizes before anything is loaded.

On a CPU they stay in the mapped files: all workers of a machine read the same pages, and the system may drop them. So
do they with what is made of them for all candidates, in files that the workers of a run share. On a
device they are copied there where they fit beside the live model; else every worker holds them in pinned host memory,
or where even that is too much in the mapped files, and streams each tensor through the device while it is merged.

A bank that is no worker's, such as that of an export, takes what others have left of the machine; nothing is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch

from evomerge.adapters import AdaptedTensors
from evomerge.bank.memory import MemoryNeed, available_memory, total_memory
from evomerge.checkpoints import Source
from evomerge.errors import InvalidInput
from evomerge.messages import in_bytes

# The rest of a device is for activations and what its allocator wastes, the rest of a host for everything else on it.
DEVICE_SHARE = 0.75
HOST_SHARE = 0.75


class Place(StrEnum):
    MAPPED = "mapped files"
    DEVICE = "device memory"
    PINNED = "pinned host memory"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The chosen memory placement and its size in bytes.

    Attributes:
        place: the memory of the sources.
        device: "cpu" or "cuda".
        sources: bytes of base and experts: per machine in mapped files, with those of statistics, per worker elsewhere.
        worker: bytes that each worker holds on the device beside the sources: live model, tables, temporaries,
            statistics.
        pageable: whether the sources are memory that the system may drop and read again.
        host: bytes of main memory that each worker holds for merges that are sources, where these are streamed from
            mapped files; elsewhere they are counted among what the worker holds, or among the pinned sources.
        shared: bytes per machine of merges and layers that its workers have once, in files of its temporary folder;
            then they are counted nowhere else.
    """

    place: Place
    device: str
    sources: int
    worker: int
    pageable: bool
    host: int = 0
    shared: int = 0

    def to_data(self) -> dict[str, Any]:
        """Plain data for `evomerge check`."""
        return {**asdict(self), "place": str(self.place), "says": self.sentence}

    @property
    def sentence(self) -> str:
        """One line for a person."""
        shared = "shared by the workers of a machine" if self.place is Place.MAPPED else "for each worker"
        streamed = ", streamed to the device tensor by tensor" if self.streams else ""
        return (
            f"sources in {self.place} ({in_bytes(self.sources)}, {shared}){streamed}; "
            f"each worker holds {in_bytes(self.worker)} more on the {self.device}"
            + (f" and {in_bytes(self.host)} of merges in main memory" if self.host else "")
            + (f"; they share {in_bytes(self.shared)} of merges and layers in temporary files" if self.shared else "")
        )

    @property
    def streams(self) -> bool:
        return self.device != "cpu" and self.place is not Place.DEVICE


@dataclass(frozen=True)
class Machine:
    """Memory of the machine that workers run on, in bytes.

    Attributes:
        device: of the accelerator of each worker, or of its share of one; None without one.
        neighbours: workers that may be on it at the same time.
        engine: what an engine beside the live model takes of the device; not in `device`.
    """

    host: int
    device: int | None
    neighbours: int = 1
    engine: int = 0

    @property
    def device_name(self) -> str:
        """The device in an error."""
        return f"the GPU beside the {in_bytes(self.engine)} of its engine" if self.engine else "the GPU"


def this_machine(gpus: float, neighbours: int = 1, *, engine: float = 0.0) -> Machine:
    """This one, for workers with so many GPUs each, or so large a share of one.

    Args:
        engine: share of all memory of a GPU that the engine of each worker takes for itself.
    """
    if not gpus or not torch.cuda.is_available():
        return Machine(total_memory(), None, neighbours)
    device = torch.cuda.get_device_properties(0).total_memory
    left = max(0.0, min(1.0, gpus) - engine)
    return Machine(total_memory(), int(device * left), neighbours, int(device * engine))


def place_sources(need: MemoryNeed, machine: Machine, *, workers: int = 1, shared: bool = False) -> Placement:
    """Choose the memory of the sources.

    Args:
        need: from `memory_need`.
        machine: what the workers of one machine share, and the accelerator of each.
        workers: that have to find room there.
        shared: whether they share merges and layers that are kept in main memory.

    Raises:
        InvalidInput: the search cannot fit; the message has the need, the memory of the machine and the remedy.
    """
    made = need.copied_layers + need.ingredients
    beside = need.worker + made
    if machine.device is None:
        held, common = (need.worker, made) if shared else (beside, 0)
        _refuse_excess(held * workers + common, machine.host, "this machine")
        mapped = need.sources + need.statistics
        return Placement(place=Place.MAPPED, device="cpu", sources=mapped, worker=held, pageable=True, shared=common)
    beside += need.statistics
    if beside + need.sources <= DEVICE_SHARE * machine.device:
        return Placement(place=Place.DEVICE, device="cuda", sources=need.sources, worker=beside, pageable=False)
    streamed = need.worker + need.statistics + need.layers
    _refuse_excess(streamed, machine.device, machine.device_name)
    pinned = need.sources + need.ingredients + need.padding
    if pinned * max(workers, machine.neighbours) <= HOST_SHARE * machine.host:
        return Placement(place=Place.PINNED, device="cuda", sources=pinned, worker=streamed, pageable=False)
    each, common = (0, need.ingredients) if shared else (need.ingredients, 0)
    _refuse_excess(each * workers + common, machine.host, "this machine")
    return Placement(
        place=Place.MAPPED,
        device="cuda",
        sources=need.sources,
        worker=streamed,
        pageable=True,
        host=each,
        shared=common,
    )


def place_beside_others(need: MemoryNeed, device: torch.device) -> Placement:
    """Choose the memory of the sources for a bank that is no worker's, in what is free now: a search may hold the rest.

    Nothing is refused: such a bank merges tensor by tensor, and need not have a live model.
    """
    if device.type == "cpu":
        return Placement(place=Place.MAPPED, device="cpu", sources=need.sources, worker=0, pageable=True)
    if need.sources + need.worker <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        place = Place.DEVICE
    elif need.sources + need.padding <= HOST_SHARE * available_memory():
        place = Place.PINNED
    else:
        place = Place.MAPPED
    return Placement(place=place, device="cuda", sources=need.sources, worker=0, pageable=place is Place.MAPPED)


def placed(tensors: Mapping[str, torch.Tensor], place: Place, device: torch.device) -> Mapping[str, torch.Tensor]:
    """The tensors of one source in their place: the mapped memory itself, or a copy."""
    return {name: put(tensor, place, device) for name, tensor in tensors.items()}


def placed_experts(
    experts: Sequence[Source], base: Mapping[str, torch.Tensor], place: Place, device: torch.device
) -> dict[str, Mapping[str, torch.Tensor]]:
    """Expert -> its tensors in their place; of an adapter only its changes, over the tensors of the base."""
    return {
        expert.ref.name: expert.tensors.over(base, lambda tensor: put(tensor, place, device))
        if isinstance(expert.tensors, AdaptedTensors)
        else placed({name: expert.tensors[name] for name in expert.catalogue.names}, place, device)
        for expert in experts
    }


def put(tensor: torch.Tensor, place: Place, device: torch.device) -> torch.Tensor:
    """A tensor in its place; itself where it is there. What is not in a file of its own stays in memory of the host."""
    match place:
        case Place.DEVICE:
            return tensor.to(device)
        case Place.PINNED:
            return tensor.cpu().pin_memory()
        case _:
            return tensor.cpu()


def _refuse_excess(wanted: int, there: int, where: str) -> None:
    if wanted > there:
        raise InvalidInput(
            f"the search needs {in_bytes(wanted)} and {where} has {in_bytes(there)}; "
            "use fewer workers, a smaller dtype, or smaller models"
        )
