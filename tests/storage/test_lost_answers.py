"""Answers that are lost: what was stored is found again, and nothing is stored twice or left behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from evomerge.clock import ManualClock
from evomerge.storage.opening import open_storage, release
from evomerge.storage.optuna_internals import backend_of, journal_of
from evomerge.storage.patience import StorageAway, StoragePatience
from evomerge.storage.patient_storage import IDLE_SECONDS
from evomerge.study.trial_writer import TrialWriter

SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
LOST = OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))


class Losses:
    """Lets the storage store what it is told, and lose the answer."""

    def __init__(self, storage: BaseStorage, patch: pytest.MonkeyPatch) -> None:
        self.next = 0  # number of commits or appends whose answers are lost
        if isinstance(storage, JournalStorage):
            self._lose_after(patch, os, "fsync", OSError(errno.EIO, "Input/output error"))
        else:
            engine: Any = backend_of(storage)
            self._lose_after(patch, engine.engine.dialect, "do_commit", LOST)

    def _lose_after(self, patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
        act = getattr(owner, name)

        def acting(*arguments: Any) -> Any:
            result = act(*arguments)
            if self.next:
                self.next -= 1
                raise error
            return result

        patch.setattr(owner, name, acting)


@pytest.fixture(params=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStorage]:
    patience = StoragePatience(seconds=60.0, clock=ManualClock())
    opened = open_storage(f"{request.param}:///{tmp_path}/study.{request.param}", single_writer=True, patience=patience)
    yield opened
    release(opened)


@pytest.fixture
def study(storage: BaseStorage) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(storage=storage, study_name="s", sampler=sampler)


@pytest.fixture
def losses(storage: BaseStorage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> Losses:
    return Losses(storage, monkeypatch)


@pytest.fixture
def writer(study: optuna.Study, storage: BaseStorage, tmp_path: Path) -> TrialWriter:
    return TrialWriter(study, storage, artifacts=tmp_path / "artifacts")


def suggest(trial: optuna.Trial) -> None:
    for name, space in SPACE.items():
        trial.suggest_float(name, space.low, space.high)


def test_a_trial_that_was_stored_without_an_answer_is_taken(
    writer: TrialWriter, study: optuna.Study, losses: Losses
) -> None:
    first = writer.add(suggest)
    for lost in (1, 2):
        losses.next = lost
        trial = writer.add(suggest)
        assert trial.number == first.number + lost
        assert set(trial.params) == {"x", "y"}
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 3
    assert study.trials[2].params == trial.params


def test_an_enqueued_trial_that_was_taken_without_an_answer_stays_the_one_that_is_asked_for(
    writer: TrialWriter, study: optuna.Study, losses: Losses
) -> None:
    study.enqueue_trial({"x": 0.25, "y": 0.5})
    study.enqueue_trial({"x": 0.75, "y": 0.5})
    losses.next = 1
    assert writer.add(suggest).params == {"x": 0.25, "y": 0.5}
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.WAITING]


def test_a_result_that_was_stored_without_an_answer_is_stored_once(
    writer: TrialWriter, study: optuna.Study, losses: Losses
) -> None:
    number = writer.add(suggest).number
    losses.next = 1
    writer.finish(number, TrialState.COMPLETE, lambda: writer.set(number, "told", 1), 0.5)
    (trial,) = study.trials
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.5, {"told": 1})


def test_a_point_that_was_enqueued_without_an_answer_is_enqueued_once(study: optuna.Study, losses: Losses) -> None:
    study.enqueue_trial({"x": 0.1})
    losses.next = 1
    study.enqueue_trial({"x": 0.2})
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [{"x": 0.1}, {"x": 0.2}]


def test_a_study_that_was_made_without_an_answer_is_opened(storage: BaseStorage, losses: Losses) -> None:
    losses.next = 1
    study = optuna.create_study(storage=storage, study_name="other", load_if_exists=True)
    assert study.study_name == "other"
    assert len(storage.get_all_studies()) == 2


def test_the_calls_that_no_transaction_holds_are_repeated_too(
    study: optuna.Study, writer: TrialWriter, losses: Losses
) -> None:
    number = writer.add(suggest).number
    losses.next = 1
    study.set_user_attr("key", "value")
    losses.next = 1
    writer.set(number, "key", "value")
    losses.next = 1
    writer.report(number, 3, 0.5)
    assert study.user_attrs == {"key": "value"}
    assert (study.trials[0].user_attrs, study.trials[0].intermediate_values) == ({"key": "value"}, {3: 0.5})


def test_reads_wait_too(tmp_path: Path) -> None:
    patience = StoragePatience(seconds=60.0, clock=ManualClock())
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True, patience=patience)
    study = optuna.create_study(storage=storage)
    failures = [LOST] * 3

    def fail(*_: object) -> None:
        if failures:
            raise failures.pop()

    backend: Any = backend_of(storage)
    event.listen(backend.engine, "before_cursor_execute", fail)
    assert study.user_attrs == {}
    failures += [LOST] * 2
    assert study.trials == []
    assert failures == []
    release(storage)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_entry_that_did_not_fit_on_the_disk_is_written_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes seven bytes of the entry, is full three times, and then is not."""
    file, lines = tmp_path / "study.journal", []
    patience = StoragePatience(clock=ManualClock(), say=lines.append)
    storage = open_storage(f"journal:///{file}", patience=patience)
    study = optuna.create_study(storage=storage, study_name="s")
    write, left = os.write, [7, 0, 0]

    def full(descriptor: int, content: Any) -> int:
        if not left:
            return write(descriptor, content)
        taken = left.pop(0)
        if taken:
            left.insert(0, 0)
            return write(descriptor, content[:taken])
        raise FULL

    monkeypatch.setattr(os, "write", full)
    study.set_user_attr("key", "value")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry.get("user_attr") for entry in entries] == [None, {"key": "value"}]
    assert lines[0].startswith(f"waiting: the disk of {tmp_path} is full")


def test_a_disk_that_stays_full_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.journal"
    storage = open_storage(f"journal:///{file}", patience=StoragePatience(clock=ManualClock()))
    study = optuna.create_study(storage=storage, study_name="s")
    before = file.read_bytes()

    def full(descriptor: int, content: Any) -> int:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageAway, match=rf"the disk of {tmp_path} is full.*make room, and run the same command"):
            study.set_user_attr("key", "value")
    assert file.read_bytes() == before
    again = optuna.load_study(storage=open_storage(f"journal:///{file}"), study_name="s")
    again.set_user_attr("key", "other")
    assert again.user_attrs == {"key": "other"}


def test_reading_a_journal_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_storage(f"journal:///{file}"), study_name="s")
    for number in range(5):
        study.set_user_attr("key", number)
    reader: Any = journal_of(open_storage(f"journal:///{file}", patience=StoragePatience(clock=ManualClock())))
    read, failures = json.loads, [2, 1]

    def failing(text: Any) -> Any:
        entry = read(text)
        if failures and entry.get("user_attr") == {"key": failures[-1]}:
            failures.pop()
            raise OSError(errno.ESTALE, "Stale file handle")
        return entry

    monkeypatch.setattr("optuna.storages.journal._file.json.loads", failing)
    found = list(reader.read_logs(0))
    assert failures == []
    assert [entry["user_attr"]["key"] for entry in found[1:]] == list(range(5))


def test_item_outcomes_are_uploaded_once_whatever_the_disk_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_scores: Callable[[], Any]
) -> None:
    patience = StoragePatience(clock=ManualClock())
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True, patience=patience)
    study = optuna.create_study(storage=storage)
    writer = TrialWriter(study, storage, artifacts=tmp_path / "artifacts", patience=patience)
    number = writer.add(suggest).number
    write, failures = optuna.artifacts.FileSystemArtifactStore.write, [FULL] * 3

    def failing(self: Any, artifact_id: str, content: Any) -> None:
        if failures:
            Path(self._base_path, artifact_id).write_bytes(content.read(20))
            raise failures.pop()
        write(self, artifact_id, content)

    monkeypatch.setattr(optuna.artifacts.FileSystemArtifactStore, "write", failing)
    artifact = writer.upload(make_scores())
    writer.finish(number, TrialState.COMPLETE, lambda: writer.attach(number, artifact), 0.5)
    (meta,) = optuna.artifacts.get_all_artifact_meta(study.trials[0], storage=storage)
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [meta.artifact_id]
    assert (tmp_path / "artifacts" / meta.artifact_id).read_bytes()[:4] == b"PAR1"
    assert failures == []
    release(storage)


@pytest.fixture
def make_scores() -> Callable[[], Any]:
    from evomerge.evaluation.scores import Scores, TaskScores

    task = TaskScores(metric="acc", higher_is_better=True, items=(0, 1), outcomes=(0.0, 1.0), value=0.5, stderr=0.1)
    return lambda: Scores({"task": task}, {})


class ImpatientServer:
    """Ends a transaction in which nothing was sent for too long, as PostgreSQL and MariaDB do."""

    def __init__(self, engine: Any, clock: ManualClock) -> None:
        self._clock = clock
        self._latest = clock.monotonic()
        event.listen(engine, "begin", lambda connection: self._note())
        event.listen(engine, "before_cursor_execute", lambda *arguments: self._look())

    def _note(self) -> None:
        self._latest = self._clock.monotonic()

    def _look(self) -> None:
        if self._clock.monotonic() - self._latest >= IDLE_SECONDS:
            raise OperationalError("INSERT", {}, Exception("terminating connection due to idle-in-transaction timeout"))
        self._note()


def test_a_proposal_that_takes_longer_than_a_transaction_may_is_stored_once_and_step_by_step(tmp_path: Path) -> None:
    clock, lines = ManualClock(), []
    patience = StoragePatience(clock=clock, say=lines.append)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True, patience=patience)
    study = optuna.create_study(storage=storage, study_name="s")
    backend: Any = backend_of(storage)
    ImpatientServer(backend.engine, clock)
    writer = TrialWriter(study, storage, artifacts=tmp_path / "artifacts")
    computed = []

    def propose(trial: optuna.Trial) -> None:
        computed.append(trial.number)
        clock.advance(IDLE_SECONDS + 30.0)
        suggest(trial)

    for number in range(2):
        trial = writer.add(propose)
        assert (trial.number, set(trial.params)) == (number, set(SPACE))
    assert computed == [0, 0, 1, 1]
    assert "ended a transaction that took longer than 120 s" in lines[0]
    release(storage)
    read = optuna.load_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db"), study_name="s").get_trials()
    assert [each.params for each in read] == [each.params for each in study.get_trials()]
    assert [each.state for each in read] == [TrialState.RUNNING] * 2
