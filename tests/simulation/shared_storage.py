"""The storage that the controllers of a schedule share, with the semantics of one kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from simulation import doubles, redis_server, relational
from simulation.patched_modules import real_modules
from simulation.world import Process, World

from evomerge.errors import StudyHeld
from evomerge.leases import lock
from evomerge.leases.journal_leases import FileLease, RedisLease
from evomerge.leases.lease import LeaseStore
from evomerge.storage.journal_storage import TransactionalJournalStorage
from evomerge.storage.opening import open_storage, with_retries
from evomerge.storage.patience import StoragePatience
from evomerge.storage.patient_storage import PatientWriter

NAME = "s"


class SharedStorage:
    """SQLite, a database server, a journal file or a journal in Redis.

    Attributes:
        guests: who has enqueued a trial in a journal.
    """

    def __init__(self, world: World, semantics: str, folder: Path) -> None:
        self.world = world
        self.semantics = semantics
        self.folder = folder
        self.guests: set[str] = set()
        self.database = relational.Database("sqlite" if semantics == "sqlite" else "postgresql")
        self.redis = redis_server.RedisServer()
        self.holder_of_file: Process | None = None

    @property
    def away(self) -> Callable[[], Exception]:
        """The error of a storage of this kind that cannot be reached."""
        if self.semantics == "journal":
            return doubles.disk_error
        return redis_server.away if self.semantics == "redis" else _away

    def lock_file(self, process: Process) -> None:
        """Take the lock of the file, which the kernel drops when its process is over."""
        if self.holder_of_file is not None and not self.holder_of_file.is_over:
            raise StudyHeld("the file is locked")
        self.holder_of_file = process

    def lease_store(self, process: Process) -> LeaseStore:
        """The place of the lease, as a process opens it."""
        if self.semantics == "journal":
            return FileLease(self.journal)
        if self.semantics == "redis":
            return RedisLease(redis_server.RedisClient(self.redis), NAME)
        storage = PatientWriter(relational.Backend(self.database), StoragePatience(seconds=0.0), "it", None)
        study_id = with_retries(lambda: lock._study_id(storage, NAME, ["maximize"]), clock=process.clock)
        return relational.ModelLease(self.database, study_id)

    @property
    def journal(self) -> Path:
        """The file of a journal."""
        return self.folder / "study.journal"

    def open(self, process: Process, patience: StoragePatience) -> BaseStorage:
        """The storage of the study's writer."""
        if self.semantics == "journal":
            return open_storage(f"journal:///{self.journal}", single_writer=True, patience=patience)
        if self.semantics == "redis":
            journal = redis_server.SimulatedRedisJournal(self.redis, str(process.pid))
            journal.patience = patience
            return TransactionalJournalStorage(journal)
        return PatientWriter(relational.Backend(self.database), patience, "the storage", None)

    def enqueue(self) -> None:
        """Somebody asks for a point, from another machine."""
        fixed = {"x": self.world.draw.random()}
        template = optuna.trial.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": fixed})
        if self.semantics in ("sqlite", "server"):
            if self.database.tables.studies:
                self.database.enqueue(1, fixed)
                self.world.counts["enqueued"] += 1
            return
        if not self._can_be_opened():
            return
        with real_modules():
            storage = self._open_by_others()
            if studies := storage.get_all_studies():
                storage.create_new_trial(studies[0]._study_id, template)
                self.guests.add(storage._replay_result.worker_id)
                self.world.counts["enqueued"] += 1

    def _can_be_opened(self) -> bool:
        if self.semantics == "redis":
            return bool(self.redis.keys)
        is_locked = self.journal.with_name(f"{self.journal.name}.lock").is_symlink()
        return self.journal.exists() and not is_locked

    def _open_by_others(self) -> JournalStorage:
        if self.semantics == "journal":
            storage = open_storage(f"journal:///{self.journal}")
            assert isinstance(storage, JournalStorage)
            return storage
        return JournalStorage(_Entries(self._redis_entries(), self._append))

    def _append(self, logs: list[dict[str, Any]]) -> None:
        for entry in logs:
            last = int(self.redis.keys.get(":log_number", -1)) + 1
            self.redis.keys |= {":log_number": str(last), f":log:{last}": json.dumps(entry)}

    def read_trials(self) -> list[FrozenTrial]:
        """All trials, as somebody else reads them."""
        if self.semantics in ("sqlite", "server"):
            connection = relational.Connection(self.database)
            return relational.read_trials(connection, 1)
        with real_modules():
            storage = self._open_by_others()
            return storage.get_all_trials(storage.get_study_id_from_name(NAME), deepcopy=False)

    def _redis_entries(self) -> list[dict[str, Any]]:
        last = int(self.redis.keys.get(":log_number", -1))
        return [json.loads(self.redis.keys[f":log:{number}"]) for number in range(last + 1)]

    def writers(self) -> list[Any]:
        """Who has written, write by write."""
        if self.semantics in ("sqlite", "server"):
            return self.database.writers
        if self.semantics == "redis":
            return [entry["worker_id"] for entry in self._redis_entries()]
        return [json.loads(line)["worker_id"] for line in self.journal.read_text().splitlines()]


class _Entries:
    """Entries of a journal as a backend of Optuna."""

    def __init__(self, entries: list[dict[str, Any]], append: Callable[[list[dict[str, Any]]], None]) -> None:
        self._entries = entries
        self._append = append

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._append(logs)
        self._entries += logs


def _away() -> Exception:
    return StorageInternalError("away")
