"""The modules of evomerge and Optuna with doubles in the place of clocks, threads, disks and tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import optuna
from optuna.storages.journal import _file as optuna_journal_file
from simulation import doubles, relational

from evomerge import whole_files
from evomerge.leases import journal_leases, lock
from evomerge.leases import lease as lease_module
from evomerge.storage import journals, single_writer
from evomerge.study import trial_writer


def _write_few_items(file: BinaryIO, scores: Any) -> None:
    """The outcomes of items, in a fraction of the time that Parquet takes."""
    file.write(b"items")


_DOUBLES: tuple[tuple[Any, str, Any], ...] = (
    (lock, "threading", doubles.Threading),
    (lease_module, "threading", doubles.Threading),
    (lease_module, "has_ended", lambda record: doubles.world().has_ended(record)),
    (lease_module, "is_running", lambda record: doubles.world().is_running(record)),
    (journal_leases, "os", doubles.Os()),
    (journals, "os", doubles.Os()),
    (whole_files, "os", doubles.Os()),
    (optuna_journal_file, "time", doubles.Time),
    (single_writer, "add_trial", relational.add_trial),
    (single_writer, "read_trials", relational.read_trials),
    (single_writer, "set_number", relational.set_number),
    (single_writer, "PendingRows", relational.PendingRows),
    (trial_writer, "write_items", _write_few_items),
)


@contextmanager
def simulated() -> Iterator[Path]:
    """A block in which evomerge runs in simulated processes. Gives a folder for the files of schedules."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=parent))
        stack.enter_context(mock.patch.object(tempfile, "tempdir", folder))
        for module, name, double in _DOUBLES:
            stack.enter_context(mock.patch.object(module, name, double))
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        stack.callback(optuna.logging.set_verbosity, verbosity)
        yield Path(folder)


@contextmanager
def real_modules() -> Iterator[None]:
    """A block in which somebody else, who meets no trouble, reads and writes journals."""
    with mock.patch.object(journals, "os", os):
        yield
