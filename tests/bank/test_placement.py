"""Where sources live: chosen and said before a run, refused where nothing fits."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.bank.device_kind import device_kind
from evomerge.bank.file_guard import FileGuard
from evomerge.bank.memory import MemoryNeed, memory_need, need_of_sources
from evomerge.bank.placement import Machine, Place, place_beside_others, place_sources, placed, this_machine
from evomerge.catalogue import build_catalogue
from evomerge.checkpoints import open_source
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef

GB = 10**9


@pytest.mark.parametrize(
    ("device", "host", "place"),
    [
        (None, 16, Place.MAPPED),
        (80, 128, Place.DEVICE),
        (24, 128, Place.PINNED),
        (24, 32, Place.MAPPED),
    ],
)
def test_the_fastest_memory_that_is_large_enough_is_chosen(device, host, place):
    need = MemoryNeed(worker=15 * GB, sources=40 * GB)
    chosen = place_sources(need, Machine(host * GB, None if device is None else device * GB))
    assert chosen.place is place
    assert chosen.to_data()["sources"] == 40 * GB
    assert str(place) in chosen.sentence
    assert chosen.streams == (device is not None and place is not Place.DEVICE)


@pytest.mark.parametrize(
    ("machine", "place", "worker"),
    [
        (Machine(64 * GB, None), Place.MAPPED, 20),  # the layers that are held in another dtype
        (Machine(128 * GB, 80 * GB), Place.DEVICE, 20),
        (Machine(128 * GB, 50 * GB), Place.PINNED, 45),  # sources elsewhere: all layers have to be on the device
    ],
)
def test_layers_of_paths_are_counted_where_they_are_copied(machine, place, worker):
    chosen = place_sources(MemoryNeed(worker=15 * GB, sources=30 * GB, layers=30 * GB, copied_layers=5 * GB), machine)
    assert (chosen.place, chosen.worker) == (place, worker * GB)


def test_layers_of_paths_that_a_device_cannot_hold_are_refused():
    need = MemoryNeed(worker=15 * GB, sources=30 * GB, layers=30 * GB)
    with pytest.raises(InvalidInput, match="needs 45"):
        place_sources(need, Machine(128 * GB, 40 * GB))


@pytest.mark.parametrize(
    ("machine", "place", "sources", "worker", "host"),
    [
        (Machine(64 * GB, None), Place.MAPPED, 30, 25, 0),
        (Machine(128 * GB, 80 * GB), Place.DEVICE, 30, 25, 0),
        (Machine(128 * GB, 64 * GB), Place.PINNED, 40, 15, 0),
        (Machine(50 * GB, 64 * GB), Place.MAPPED, 30, 15, 10),
    ],
)
def test_merges_that_are_sources_are_counted_where_the_sources_are_and_never_in_files(
    machine, place, sources, worker, host
):
    chosen = place_sources(MemoryNeed(worker=15 * GB, sources=30 * GB, ingredients=10 * GB), machine)
    found = (chosen.place, chosen.sources, chosen.worker, chosen.host)
    assert found == (place, sources * GB, worker * GB, host * GB)
    assert ("of merges in main memory" in chosen.sentence) == bool(host)


@pytest.mark.parametrize(
    ("machine", "worker", "shared"), [(Machine(64 * GB, None), 15, 15), (Machine(50 * GB, 64 * GB), 45, 10)]
)
def test_what_the_workers_of_a_machine_share_is_counted_once(machine, worker, shared):
    need = MemoryNeed(worker=15 * GB, sources=30 * GB, layers=30 * GB, copied_layers=5 * GB, ingredients=10 * GB)
    chosen = place_sources(need, machine, workers=3, shared=True)
    assert (chosen.worker, chosen.shared, chosen.host) == (worker * GB, shared * GB, 0)
    assert f"they share {shared}.0 GB of merges and layers in temporary files" in chosen.sentence
    small = Machine(machine.host - 20 * GB if machine.device is None else 9 * GB, machine.device)
    with pytest.raises(InvalidInput, match="this machine has"):
        place_sources(need, small, workers=3, shared=True)


def test_workers_that_share_a_gpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GB))
    assert [this_machine(gpus).device for gpus in (0.0, 0.25, 1.0, 2.0)] == [None, 20 * GB, 80 * GB, 80 * GB]


@pytest.mark.parametrize(("host", "place"), [(182, Place.MAPPED), (400, Place.PINNED)])
def test_a_pinned_tensor_is_counted_with_the_power_of_two_that_it_takes(host, place):
    catalogue = build_catalogue({"w": ((34_000_000,), "float32")})  # 136 MB, which are 268 where they are pinned
    chosen = place_sources(memory_need(catalogue, 1, "float32"), Machine(host * 10**6, 500 * 10**6))
    assert (chosen.place, chosen.sources) == (place, 2**28 if place is Place.PINNED else 136 * 10**6)


def test_what_an_engine_takes_of_a_gpu_is_not_for_sources(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GB))
    alone, beside = this_machine(1.0), this_machine(1.0, engine=0.5)
    assert beside.device == 40 * GB
    need = MemoryNeed(worker=15 * GB, sources=40 * GB)
    assert place_sources(need, alone).place is Place.DEVICE
    assert place_sources(need, beside).place is not Place.DEVICE
    with pytest.raises(
        InvalidInput, match=r"needs 15\.0 GB and the GPU beside the 68\.0 GB of its engine has 12\.0 GB"
    ):
        place_sources(need, this_machine(1.0, engine=0.85))
    assert this_machine(0.25, engine=0.5).device == 0


@pytest.mark.parametrize(("neighbours", "place"), [(2, Place.PINNED), (4, Place.MAPPED)])
def test_memory_is_pinned_where_there_is_enough_for_all_workers_of_a_machine(neighbours, place):
    need = MemoryNeed(worker=15 * GB, sources=40 * GB)
    assert place_sources(need, Machine(128 * GB, 24 * GB, neighbours)).place is place


@pytest.mark.parametrize("machine", [Machine(24 * GB, None), Machine(9 * GB, 64 * GB)])
def test_merges_that_the_machine_cannot_hold_are_refused(machine):
    with pytest.raises(InvalidInput, match="this machine has"):
        place_sources(MemoryNeed(worker=15 * GB, sources=30 * GB, ingredients=10 * GB), machine)


@pytest.mark.parametrize("machine", [Machine(32 * GB, None), Machine(128 * GB, 8 * GB)])
def test_what_cannot_fit_is_refused_before_anything_is_loaded(machine):
    with pytest.raises(InvalidInput, match="use fewer workers"):
        place_sources(MemoryNeed(worker=15 * GB, sources=40 * GB), machine, workers=4)


def test_a_gpu_that_sources_are_streamed_to_is_another_kind_of_device_by_the_processor_beside_it(
    toy_model, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    base = open_source(ModelRef("base", str(toy_model)))
    need, processor = need_of_sources(base, [], torch.float32), torch.device("cpu")
    for share, kind in ((1.0, "cuda NVIDIA H200"), (0.99, f"cuda NVIDIA H200, streamed from {device_kind(processor)}")):
        machine = Machine(1, int(share * (need.worker + need.sources) / 0.75) + 1)
        bank = WeightBank(base, [], dtype=torch.float32, device=processor, machine=machine)
        assert bank.device_kind == device_kind(processor)
        bank.device = torch.device("cuda")
        assert bank.device_kind == kind


@pytest.mark.parametrize(
    ("free", "host", "place"),
    [(80, 8, Place.DEVICE), (40, 128, Place.PINNED), (1, 128, Place.PINNED), (1, 8, Place.MAPPED)],
)
def test_a_bank_of_no_worker_takes_what_others_have_left_of_a_gpu_and_is_never_refused(monkeypatch, free, host, place):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GB, 80 * GB))
    monkeypatch.setattr("evomerge.bank.placement.available_memory", lambda: host * GB)
    need = MemoryNeed(worker=15 * GB, sources=40 * GB)
    assert place_beside_others(need, torch.device("cuda")).place is place
    assert place_beside_others(need, torch.device("cpu")).place is Place.MAPPED


def test_mapped_sources_are_the_mapped_memory_itself():
    tensors = {"w": torch.ones(3)}
    assert placed(tensors, Place.MAPPED, torch.device("cpu"))["w"].data_ptr() == tensors["w"].data_ptr()


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "modeling_own.py"])
def test_a_file_that_a_later_worker_would_read_otherwise_is_noticed(tmp_path, toy_model, name):
    directory = tmp_path / "model"
    shutil.copytree(toy_model, directory)
    (directory / name).write_text("{ }")
    source = open_source(ModelRef("base", str(directory)), allow=["remote_code"], fingerprinted=False)
    files = FileGuard([source])
    files.check()
    (directory / name).write_text("{}")
    with pytest.raises(InvalidInput, match=f"{name} has changed since this worker opened it"):
        files.check()


@pytest.mark.parametrize("change", ["touch", "replace", "remove", "grow"])
def test_a_source_file_that_changes_under_a_search_is_noticed(tmp_path, toy_model, change):
    directory = tmp_path / "model"
    shutil.copytree(toy_model, directory)
    files = FileGuard([open_source(ModelRef("base", str(directory)))])
    files.check()
    weights = directory / "model.safetensors"
    match change:
        case "touch":
            weights.touch()
        case "replace":
            shutil.copy2(weights, tmp_path / "other")
            (tmp_path / "other").replace(weights)
        case "remove":
            weights.unlink()
        case _:
            with weights.open("ab") as file:
                file.write(b"x")
    with pytest.raises(InvalidInput, match="has changed since this worker opened it"):
        files.check()
