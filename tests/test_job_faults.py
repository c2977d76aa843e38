"""The fault behind an error that ends a job: the candidate's, the user's, or that of the machine's files."""

import errno
import os
from pathlib import Path

import pytest
import torch

from evomerge.bank.file_guard import FileGuard
from evomerge.checkpoints import open_source
from evomerge.checkpoints.recipe_files import load_tensors, store_tensors
from evomerge.checkpoints.safetensors_files import SafetensorsTensors, read_header
from evomerge.cluster import InlineExecutor
from evomerge.errors import Interrupted, InvalidInput
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.job_faults import failure_of
from evomerge.recipe import ModelRef
from evomerge.testing.executor_contract import job, setup
from evomerge.worker import Worker

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models" / "base"
TENSORS = {"w": torch.ones(2)}
OUT_OF_ORDER = ["EIO", "ENOSPC", "EDQUOT", "ESTALE", "EROFS", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT", "EHOSTDOWN"]


def error_of(number):
    return OSError(number, os.strerror(number), "/share/file")


def unreadable(number):
    """The user's error of a reader, with what it met."""
    error = InvalidInput("cannot read /share/file")
    error.__cause__ = error_of(number)
    return error


@pytest.mark.parametrize("name", [*OUT_OF_ORDER, "EMFILE", "ENFILE"])
@pytest.mark.parametrize("met", [error_of, unreadable])
def test_files_that_are_out_of_order_are_no_fault_of_the_job_nor_of_the_user(met, name):
    failed = failure_of(met(getattr(errno, name)))
    assert failed.away
    assert failed.by_machine
    assert not failed.invalid


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOTDIR])
def test_a_file_that_is_missing_or_closed_to_us_is_for_the_user_to_mend(number):
    failed = failure_of(unreadable(number))
    assert failed.invalid
    assert not failed.by_machine
    assert not failure_of(error_of(number)).by_machine


def test_a_full_disk_under_a_job_is_said_as_such(tmp_path):
    path = tmp_path / "training" / "state.safetensors"
    failed = failure_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)))
    assert failed.reason.startswith(f"the disk of {path.parent} is full, or its quota is used up (")


def test_a_full_disk_under_a_candidate_interrupts_the_run_without_ray(monkeypatch):
    def full(self, candidate, items):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SyntheticEvaluator, "score", full)
    executor = InlineExecutor(Worker(setup(), "inline"))
    executor.submit(job("a"))
    with pytest.raises(Interrupted, match=r"disk is full.*; run the same command again to go on"):
        executor.next_event(0.0)


@pytest.fixture
def readers(tmp_path):
    """Whatever of a worker reads files of sources and recipes, by name."""
    digest = store_tensors(tmp_path, TENSORS, {})
    path = tmp_path / f"{digest}.safetensors"
    stored = read_header(path)
    return {
        "guard": FileGuard([open_source(ModelRef("base", str(TOY)), fingerprinted=False)]).check,
        "header": lambda: read_header(path),
        "tensor": lambda: SafetensorsTensors(stored)["w"],
        "recipe": lambda: load_tensors(tmp_path, digest),
    }


@pytest.mark.parametrize("name", ["guard", "header", "tensor", "recipe"])
def test_a_network_file_system_that_is_gone_is_not_taken_for_a_change_of_the_files(monkeypatch, readers, name):
    def gone(self, *arguments, **named):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))

    readers[name]()
    monkeypatch.setattr(Path, "stat", gone)
    monkeypatch.setattr(Path, "open", gone)
    with pytest.raises((InvalidInput, OSError)) as caught:
        readers[name]()
    failed = failure_of(caught.value)
    assert failed.away
    assert not failed.invalid
    assert "has changed" not in failed.reason
