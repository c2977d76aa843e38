"""The actor of a worker: what it takes for its worker, and what it gives up."""

import errno
from dataclasses import replace

import pytest
import torch

from evomerge.bank.shared_tensors import PREFIX, SharedTensors
from evomerge.cluster.ray_executor.actor import WorkerActor
from evomerge.errors import InvalidInput
from evomerge.testing.executor_contract import setup


@pytest.mark.parametrize(("gpus", "limits"), [(0.25, [0.25]), (1.0, []), (0.0, [])])
def test_a_worker_with_a_share_of_a_gpu_has_that_share_of_its_memory(monkeypatch, gpus, limits):
    found = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    actor = WorkerActor(replace(setup(), device="cuda" if gpus else "cpu", gpus=gpus), "worker", threads=1)
    assert actor.build() is None
    assert found == limits


def test_a_worker_that_gives_up_what_it_shares_leaves_it_to_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.bank.shared_tensors.temporary_folder", lambda: tmp_path)
    actors = [WorkerActor(replace(setup(), shared="run"), "worker", threads=1) for _ in range(2)]
    for actor in actors:
        assert actor.build(2) is None
        actor._built._shared = SharedTensors("run")
        actor._built._shared.tensors("key", lambda: [("a", torch.ones(2))])
    actors[0].release()
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}run"]
    actors[1].release()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_read_its_files_at_present_is_started_again(monkeypatch):
    def worker(*arguments):
        raise InvalidInput("cannot read the pack") from OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("evomerge.cluster.ray_executor.actor.Worker", worker)
    actor = WorkerActor(setup(), "worker", threads=1)
    with pytest.raises(InvalidInput, match="cannot read"):
        actor.build()
