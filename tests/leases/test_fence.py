"""What a former holder writes is not stored, whenever it arrives: the storage itself looks at the lease."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import event

from evomerge import whole_files
from evomerge.clock import ManualClock
from evomerge.errors import Interrupted, StudyHeld
from evomerge.leases import journal_leases
from evomerge.leases.holding_process import Process
from evomerge.leases.journal_leases import FileLease
from evomerge.leases.lease import Lease, LeaseStore
from evomerge.leases.relational_lease import RelationalLease
from evomerge.storage.journals import FileJournal
from evomerge.storage.opening import in_transaction, open_storage, release
from evomerge.storage.optuna_internals import backend_of
from evomerge.storage.patience import StorageAway

MAXIMIZE = [StudyDirection.MAXIMIZE]


class Fenced:
    """A study with a trial, and a holder whose storage is guarded.

    Args:
        url: of a SQLite file, which is held like a database on a server, or of a journal file.
    """

    def __init__(self, url: str, file: Path) -> None:
        self.storage, self.others = open_storage(url, single_writer=True), open_storage(url)
        self.study = self.storage.create_new_study(MAXIMIZE, "s")
        self.trial = self.storage.create_new_trial(self.study)
        self._file = file
        self._clock = ManualClock()
        self.holder = self.take(self.storage, "here")
        self.holder.guard(self.storage)

    def take_over(self) -> None:
        """Take the study over from another machine after silence, ready to write."""
        self.take(self.others, "elsewhere").guard(self.others)

    def take(self, storage: BaseStorage, host: str) -> Lease:
        lease = Lease(
            self._store(storage),
            what="the study 's'",
            process=Process(host=host, boot="b", pid=7, start="1"),
            clock=self._clock,
        )
        while (wait := lease.attempt()) is not None:
            self._clock.sleep(wait)
        return lease

    def _store(self, storage: BaseStorage) -> LeaseStore:
        backend = backend_of(storage)
        return RelationalLease(backend, self.study) if isinstance(backend, RDBStorage) else FileLease(self._file)

    def contents(self) -> Any:
        """The studies and trials as another process reads them."""
        return self.contents_of(self.others)

    def contents_of(self, storage: BaseStorage) -> Any:
        studies = [
            (study.study_name, {key: value for key, value in study.user_attrs.items() if key != "evomerge:writer"})
            for study in storage.get_all_studies()
        ]
        return studies, storage.get_all_trials(self.study)

    def close(self) -> None:
        release(self.storage)
        release(self.others)


@pytest.fixture(params=["sqlite:///{}", "journal:///{}"])
def fenced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fenced]:
    file = tmp_path / "study.any"
    made = Fenced(request.param.format(file), file)
    yield made
    made.close()


WRITES: dict[str, Callable[[BaseStorage, int, int], object]] = {
    "create_new_study": lambda storage, study, trial: storage.create_new_study(MAXIMIZE, "another"),
    "delete_study": lambda storage, study, trial: storage.delete_study(study),
    "set_study_user_attr": lambda storage, study, trial: storage.set_study_user_attr(study, "a", 1),
    "set_study_system_attr": lambda storage, study, trial: storage.set_study_system_attr(study, "a", 1),
    "create_new_trial": lambda storage, study, trial: storage.create_new_trial(study),
    "set_trial_param": lambda storage, study, trial: storage.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1)),
    "set_trial_state_values": lambda storage, study, trial: storage.set_trial_state_values(
        trial, TrialState.COMPLETE, [1.0]
    ),
    "set_trial_intermediate_value": lambda storage, study, trial: storage.set_trial_intermediate_value(trial, 1, 0.5),
    "set_trial_user_attr": lambda storage, study, trial: storage.set_trial_user_attr(trial, "a", 1),
    "set_trial_system_attr": lambda storage, study, trial: storage.set_trial_system_attr(trial, "a", 1),
}


def test_every_write_of_a_storage_is_tried_here() -> None:
    assert {name for name in vars(BaseStorage) if name.startswith(("set_", "create_", "delete_"))} == set(WRITES)


@pytest.mark.parametrize("write", WRITES)
def test_a_single_write_of_one_that_was_taken_over_is_refused_and_not_stored(fenced: Fenced, write: str) -> None:
    before = fenced.contents()
    fenced.take_over()
    # Who deletes the study deletes its lease in a database, and finds none.
    with pytest.raises((StudyHeld, Interrupted), match="nothing of this controller is stored"):
        WRITES[write](fenced.storage, fenced.study, fenced.trial)
    assert fenced.contents() == before


def test_the_holder_writes_as_ever(fenced: Fenced) -> None:
    for name, write in WRITES.items():
        if name not in ("delete_study", "set_trial_state_values"):
            write(fenced.storage, fenced.study, fenced.trial)
            fenced.holder.refresh()
    WRITES["set_trial_state_values"](fenced.storage, fenced.study, fenced.trial)
    studies, trials = fenced.contents()
    assert studies == [("s", {"a": 1}), ("another", {})]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert (trials[0].params, trials[0].user_attrs, trials[0].system_attrs) == ({"x": 0.5}, {"a": 1}, {"a": 1})


@pytest.mark.parametrize("when", ["before its writes", "after its writes"])
def test_of_a_transaction_of_one_that_was_taken_over_nothing_is_stored(when: str, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    fenced = Fenced(f"sqlite:///{file}", file)
    before = fenced.contents()
    study = optuna.load_study(study_name="s", storage=fenced.storage)

    def write() -> None:
        if when == "before its writes":
            fenced.take_over()
        study.ask({"x": FloatDistribution(0.0, 1.0)})
        study.set_user_attr("a", 1)
        if when == "after its writes":  # SQLite would have the other one wait: as if its server had ended our locks
            taken_over_at_the_commit(fenced)

    with pytest.raises(StudyHeld, match="on elsewhere"):
        in_transaction(fenced.storage, write)
    assert fenced.contents() == before
    fenced.close()


def taken_over_at_the_commit(fenced: Fenced) -> None:
    backend = backend_of(fenced.storage)
    assert isinstance(backend, RDBStorage)
    other = '{"id": "other", "pid": 7, "host": "elsewhere"}'

    def take(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
        if statement.startswith("SELECT study_user_attributes.value_json \nFROM"):
            return f"SELECT '{other}'", ()
        return statement, parameters

    event.listen(backend.engine, "before_cursor_execute", take, retval=True)


def test_the_lease_is_looked_at_once_a_transaction_and_never_for_reading(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    fenced = Fenced(f"sqlite:///{file}", file)
    study = optuna.load_study(study_name="s", storage=fenced.storage)
    backend = backend_of(fenced.storage)
    assert isinstance(backend, RDBStorage)
    statements: list[str] = []
    event.listen(backend.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    def looks() -> int:
        found = [each for each in statements if each.startswith("SELECT study_user_attributes.value_json \nFROM")]
        statements.clear()
        return len(found)

    fenced.storage.get_all_studies()
    assert statements
    assert looks() == 0
    in_transaction(fenced.storage, lambda: study.ask({"x": FloatDistribution(0.0, 1.0)}).set_user_attr("a", 1))
    assert looks() == 1
    fenced.close()


def test_an_entry_that_was_allowed_before_a_takeover_and_is_written_after_it_is_in_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "study.journal"
    fenced = Fenced(f"journal:///{file}", file)
    journal = fenced.storage._backend
    allow, before = journal.fence, fenced.contents()

    def stopped_after_it_was_allowed() -> None:
        allow()
        journal.fence = allow
        with monkeypatch.context() as patch:  # whoever waits for half a minute breaks the lock of a stopped process
            break_locks(patch)
            fenced.take_over()

    journal.fence = stopped_after_it_was_allowed
    with pytest.raises(StudyHeld, match="on elsewhere"):
        fenced.storage.set_study_user_attr(fenced.study, "a", 1)
    assert fenced.contents() == before
    assert "user_attr" not in file.read_text()


def break_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal_leases, "_locked", lambda path: nullcontext())
    patch.setattr(FileJournal, "_locked", lambda journal: nullcontext())


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (whole_files, "flush", 1),
        (Path, "replace", 1),
        (whole_files, "flush_folder", 1),
        (whole_files, "flush", 3),
        (Path, "replace", 2),
        (whole_files, "flush_folder", 2),
    ],
    ids=[
        "lease written",
        "lease looked at",
        "lease taken",
        "journal copied",
        "lease looked at again",
        "journal in place",
    ],
)
def test_one_that_was_stopped_in_its_takeover_replaces_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    file = tmp_path / "study.journal"
    fenced = Fenced(f"journal:///{file}", file)
    slow = open_storage(f"journal:///{file}", single_writer=True)
    original, calls = getattr(owner, name), itertools.count(1)

    def stopped(*arguments: Any) -> Any:
        if next(calls) == call:
            monkeypatch.setattr(owner, name, original)
            fenced.take_over()
            fenced.others.set_study_user_attr(fenced.study, "written", "by another one")
        return original(*arguments)

    def take_and_write() -> None:
        fenced.take(slow, "slow").guard(slow)
        slow.set_study_user_attr(fenced.study, "written", "by one that is not the holder")

    break_locks(monkeypatch)
    monkeypatch.setattr(owner, name, stopped)
    with pytest.raises(StudyHeld, match="on elsewhere"):
        take_and_write()
    assert fenced.others.get_study_user_attrs(fenced.study)["written"] == "by another one"
    assert fenced.contents() == fenced.contents_of(open_storage(f"journal:///{file}"))
    assert list(tmp_path.glob(".*replacing*")) == []


def test_a_crash_while_the_first_lease_is_taken_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "study.journal"
    acquire = JournalFileSymlinkLock.acquire

    def acquired_and_killed(lock: JournalFileSymlinkLock) -> None:
        acquire(lock)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileSymlinkLock, "acquire", acquired_and_killed)
        with pytest.raises(KeyboardInterrupt):
            FileLease(file).swap(None, '{"id": "a", "number": 1}')
    left = file.with_name(f"{file.name}.lock")
    assert left.is_symlink()
    assert left.exists()  # Optuna breaks the lock of a crash after 30 s, but never a link to nothing


def test_a_refresh_that_was_begun_before_a_takeover_and_ends_after_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "study.journal"
    fenced = Fenced(f"journal:///{file}", file)
    pwrite = os.pwrite

    def stopped(descriptor: int, content: bytes, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with monkeypatch.context() as patch:
            break_locks(patch)
            fenced.take_over()
        return pwrite(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", stopped)
    fenced.holder.refresh()  # it believes so, until it looks again
    record = FileLease(file).read()
    assert record is not None
    assert "elsewhere" in record
    with pytest.raises(StudyHeld, match="on elsewhere"):
        fenced.storage.set_study_user_attr(fenced.study, "a", 1)
    with pytest.raises(StudyHeld, match="on elsewhere"):
        fenced.holder.refresh()


def test_an_entry_that_finds_the_disk_full_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "study.journal"
    fenced = Fenced(f"journal:///{file}", file)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        assert file.read_bytes() != before
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("evomerge.storage.journals.os.fsync", full)
        with pytest.raises(StorageAway, match="is full"):
            fenced.storage.set_study_user_attr(fenced.study, "a", 1)
    assert file.read_bytes() == before
    fenced.storage.set_study_user_attr(fenced.study, "a", 2)
    assert fenced.contents()[0] == [("s", {"a": 2})]
