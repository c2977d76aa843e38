"""Tensors that workers share: made once, mapped by all, private to the user, and gone with the last who uses them."""

from __future__ import annotations

import errno
import threading

import pytest
import torch

from evomerge.bank import shared_tensors
from evomerge.bank.layer_pool import LayerPool
from evomerge.bank.shared_tensors import PREFIX, SharedTensors, remove_left
from evomerge.errors import MergeError

TENSORS = {
    "matrix": torch.arange(15, dtype=torch.bfloat16).reshape(3, 5) / 7,
    "transposed": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "ids": torch.tensor([1, -2]),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "mask": torch.tensor([True, False]),
}


def fail():
    raise AssertionError("made although it was there")


def folders(parent):
    return sorted(path.name for path in parent.iterdir())


def test_what_one_worker_has_made_the_others_map_with_its_bits(tmp_path):
    one, other = SharedTensors("run", tmp_path), SharedTensors("run", tmp_path)
    for found in (one.tensors("key", TENSORS.items), other.tensors("key", fail)):
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
            name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()
        }
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert other.tensors("another key", lambda: [("a", torch.ones(1))])["a"] == 1


def test_a_write_by_mistake_reaches_no_other_worker(tmp_path):
    one, other = SharedTensors("run", tmp_path), SharedTensors("run", tmp_path)
    one.tensors("key", TENSORS.items)["matrix"].zero_()
    assert torch.equal(other.tensors("key", fail)["matrix"], TENSORS["matrix"])


def test_workers_that_ask_at_the_same_time_wait_for_the_one_that_makes_it(tmp_path):
    made, found = [], []
    workers = [SharedTensors("run", tmp_path) for _ in range(4)]

    def make():
        made.append(1)
        return TENSORS.items()

    def ask(shared):
        found.append(shared.tensors("key", make)["scalar"].item())

    threads = [threading.Thread(target=ask, args=[shared]) for shared in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), found) == (1, [3.5] * 4)


def test_the_last_one_that_gives_the_folder_up_removes_it_and_what_is_mapped_stays(tmp_path):
    one, other = SharedTensors("run", tmp_path), SharedTensors("run", tmp_path)
    found = one.tensors("key", TENSORS.items)
    other.tensors("key", fail)
    one.close()
    assert folders(tmp_path) == [f"{PREFIX}run"]
    other.close()
    assert folders(tmp_path) == []
    assert torch.equal(found["matrix"], TENSORS["matrix"])


def test_what_a_killed_run_left_is_removed_by_the_next_one_and_what_is_in_use_is_not(tmp_path):
    (tmp_path / f"{PREFIX}killed").mkdir()
    (tmp_path / f"{PREFIX}killed" / "file").write_bytes(b"left")
    (tmp_path / "of others").mkdir()
    used, mine = SharedTensors("used", tmp_path), SharedTensors("mine", tmp_path)
    used.tensors("key", TENSORS.items)
    mine.tensors("key", TENSORS.items)
    remove_left(tmp_path)
    assert folders(tmp_path) == [f"{PREFIX}mine", f"{PREFIX}used", "of others"]


def test_a_folder_of_a_run_is_for_this_user_alone_and_a_link_in_its_place_is_not_followed(tmp_path):
    shared = SharedTensors("run", tmp_path)
    shared.tensors("key", TENSORS.items)
    assert (tmp_path / f"{PREFIX}run").stat().st_mode & 0o077 == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}linked").symlink_to(tmp_path / "elsewhere")
    found = SharedTensors("linked", tmp_path).tensors("key", TENSORS.items)
    assert torch.equal(found["matrix"], TENSORS["matrix"])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_without_room_on_the_disk_a_worker_has_its_tensors_alone(tmp_path, monkeypatch):
    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_tensors, "_write", full)
    assert SharedTensors("run", tmp_path).tensors("key", TENSORS.items) == TENSORS


def test_what_cannot_be_made_leaves_no_file_and_is_tried_again(tmp_path):
    shared = SharedTensors("run", tmp_path)

    def broken():
        yield "matrix", TENSORS["matrix"]
        raise MergeError("not finite")

    with pytest.raises(MergeError, match="not finite"):
        shared.tensors("key", broken)
    assert {path.suffix for path in (tmp_path / f"{PREFIX}run").iterdir()} == {".lock"}
    assert set(shared.tensors("key", TENSORS.items)) == set(TENSORS)


def test_what_is_forgotten_is_made_again_and_stays_for_those_who_have_it(tmp_path):
    one, other = SharedTensors("run", tmp_path), SharedTensors("run", tmp_path)
    found = one.tensors("key", TENSORS.items)
    other.tensors("key", fail)
    other.forget("key")
    assert other.tensors("key", lambda: [("scalar", torch.tensor(1.0))])["scalar"] == 1
    assert found["scalar"] == 3.5


@pytest.mark.parametrize(("stored", "copies"), [(torch.float32, True), (torch.bfloat16, False)])
def test_layers_of_another_dtype_are_copied_once_for_all_workers_of_a_machine(tmp_path, monkeypatch, stored, copies):
    weights = {"base": {"w": torch.linspace(-1, 1, 1 << 16).to(stored), "bias": torch.ones(4, dtype=stored)}}

    def pool():
        shared = SharedTensors("run", tmp_path)
        return LayerPool(weights, dtype=torch.bfloat16, device=torch.device("cpu"), shared=shared)

    one, other = pool(), pool()
    first = one.tensor("base", "w", torch.bfloat16)
    assert torch.equal(first, weights["base"]["w"].to(torch.bfloat16))
    if copies:
        monkeypatch.setattr(other, "rounded", fail)
    second = other.tensor("base", "w", torch.bfloat16)
    assert torch.equal(first, second)
    assert (second.data_ptr() == weights["base"]["w"].data_ptr()) is not copies
    one.tensor("base", "bias", torch.bfloat16)  # too small for a file
    assert len(list(tmp_path.rglob("*.lock"))) == copies
