"""Journals: Optuna finds in them what it would have written, and a transaction is in them whole or not at all."""

import json
import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from evomerge.storage.journals import FileJournal
from evomerge.storage.opening import in_transaction, open_storage

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "y": FloatDistribution(1e-3, 1.0, log=True),
    "n": IntDistribution(1, 9),
    "method": CategoricalDistribution(("ties", "linear")),
}


class JournalFile:
    def __init__(self, file):
        self.url = f"journal:///{file}"
        self._file = file

    def entries(self):
        return self._file.read_text().splitlines()

    def optunas(self):
        """The storage of Optuna itself."""
        return JournalStorage(JournalFileBackend(str(self._file)))


class JournalInRedis:
    def __init__(self, server):
        from redis import Redis

        self.url = server.url
        self._client = Redis.from_url(server.url)
        self._client.flushall()

    def entries(self):
        return [
            self._client.get(f":log:{number}").decode() for number in range(int(self._client.get(":log_number")) + 1)
        ]

    def optunas(self):
        with pytest.warns(ExperimentalWarning):
            return JournalStorage(JournalRedisBackend(self.url))


@pytest.fixture(params=["file", "redis"])
def journal(request, tmp_path):
    if request.param == "file":
        return JournalFile(tmp_path / "study.journal")
    return JournalInRedis(request.getfixturevalue("redis"))


@pytest.fixture
def storage(journal):
    return open_storage(journal.url, single_writer=True)


def create(storage):
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, sampler=sampler)


def live(storage, together):
    """A study with trials of all states, and with all that a trial can have."""
    study = create(storage)
    study.set_user_attr("of the study", {"a": [1, None]})
    study.enqueue_trial({"x": 0.5, "n": 3})
    study.enqueue_trial({"x": 0.25})
    for number in range(5):
        trial = together(storage, lambda: study.ask(SPACE))

        def fill(trial=trial, number=number):
            trial.set_user_attr("tuple", (1, {"a": [math.pi]}))
            trial.set_user_attr("twice", 1)
            trial.set_user_attr("twice", 2)
            storage.set_trial_system_attr(trial._trial_id, "system", "é")
            trial.report(0.25, 7)
            trial.report(math.inf, number)
            if number < 3:
                study.tell(trial, (1.5, None, -math.inf)[number], state=TrialState.PRUNED if number == 1 else None)
            elif number == 3:
                study.tell(trial, state=TrialState.FAIL)

        together(storage, fill)
    study.add_trial(create_trial(value=2.0, params={"x": 0.5}, distributions={"x": SPACE["x"]}, user_attrs={"u": 1}))


def contents(study):
    return [
        {name: value for name, value in vars(trial).items() if not name.strip("_").startswith("datetime")}
        for trial in study.get_trials()
    ]


@pytest.mark.parametrize("together", [lambda storage, write: write(), in_transaction], ids=["each write", "together"])
def test_optuna_reads_what_it_would_have_written(storage, journal, tmp_path, together):
    live(storage, together)
    other = JournalFile(tmp_path / "optuna.journal").optunas()
    live(other, lambda storage, write: write())
    remembered, read = create(storage), create(journal.optunas())
    assert contents(read) == contents(create(other))
    assert remembered.get_trials() == read.get_trials()  # the times, too
    assert remembered.user_attrs == read.user_attrs
    again = create(open_storage(journal.url))
    assert again.get_trials() == read.get_trials()


def test_an_ask_is_one_entry_with_all_its_params(storage, journal):
    study = create(storage)
    before = journal.entries()
    in_transaction(storage, lambda: study.ask(SPACE))
    *earlier, entry = journal.entries()
    assert earlier == before
    assert set(json.loads(entry)["params"]) == set(SPACE)


def test_a_block_that_raises_leaves_nothing(storage, journal):
    study = create(storage)
    in_transaction(storage, lambda: study.ask(SPACE))
    before, trials = journal.entries(), study.get_trials()

    def half():
        study.ask(SPACE)
        study.set_user_attr("key", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_transaction(storage, half)
    assert (journal.entries(), study.get_trials(), study.user_attrs) == (before, trials, {})


def test_a_block_is_repeated_where_somebody_else_has_written_meanwhile(storage, journal):
    study, other = create(storage), create(journal.optunas())
    tries = []

    def ask():
        trial = study.ask(SPACE)
        if not tries:
            other.enqueue_trial({"x": 0.125})
        tries.append(trial.number)
        return trial

    trial = in_transaction(storage, ask)
    assert (tries, trial.params["x"]) == ([0, 0], 0.125)  # the second time it is the one that was enqueued
    assert contents(create(journal.optunas())) == contents(study)


@pytest.mark.timeout(60)
def test_a_block_is_not_repeated_for_what_others_write_to_other_studies(storage, journal):
    theirs = open_storage(journal.url, single_writer=True)
    study, other = create(storage), optuna.create_study(storage=theirs, study_name="other")
    tries = []

    def ask():
        trial = study.ask(SPACE)
        tries.append(trial.number)
        other.set_user_attr("status", tries)

    def tell():
        study.tell(0, 1.0)
        tries.append("told")
        in_transaction(theirs, lambda: other.ask(SPACE))

    for write in (ask, ask, tell, ask):
        in_transaction(storage, write)
    assert tries == [0, 1, "told", 2]
    for name in ("s", "other"):
        read, remembered = (optuna.load_study(study_name=name, storage=each) for each in (journal.optunas(), storage))
        assert contents(read) == contents(remembered)
        assert read.user_attrs == remembered.user_attrs


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["s", "other"])
def test_a_proposal_that_is_overtaken_each_time_is_written_entry_by_entry_and_once(storage, journal, name):
    study = create(storage)
    theirs = optuna.create_study(storage=journal.optunas(), study_name=name, load_if_exists=True)
    tries = []

    def ask():
        trial = study.ask(SPACE)
        tries.append(trial.number)
        theirs.set_user_attr("status", tries) if name == "s" else theirs.ask(SPACE)
        return trial

    trial = in_transaction(storage, ask)
    assert tries == [0] * 4
    read = create(journal.optunas())
    assert [each.params for each in read.get_trials()] == [trial.params]
    assert contents(read) == contents(study)
    assert in_transaction(storage, lambda: study.ask(SPACE)).number == 1


def test_what_was_refused_once_is_not_refused_when_the_journal_is_read_again(storage, journal):
    create(journal.optunas())
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study([StudyDirection.MINIMIZE], "s")
    study = create(storage)

    def half():
        study.ask(SPACE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_transaction(storage, half)  # its memory holds now what the journal does not
    assert in_transaction(storage, lambda: study.ask(SPACE)).number == 0
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study([StudyDirection.MINIMIZE], "s")


def test_attributes_that_somebody_else_writes_are_seen(storage, journal):
    study = create(storage)
    create(journal.optunas()).set_user_attr("note", "é")
    assert study.user_attrs == {"note": "é"}


def test_trials_that_were_given_out_do_not_change(storage):
    study = create(storage)
    trial = study.ask(SPACE)
    (before,) = study.get_trials(deepcopy=False)
    trial.set_user_attr("later", 1)
    study.tell(trial, 1.0)
    assert (before.user_attrs, before.state) == ({}, TrialState.RUNNING)
    assert [each.number for each in study.get_trials(states=(TrialState.RUNNING,))] == []


def test_many_entries_are_read_whole_and_in_their_order(storage, journal):
    study = create(storage)
    for number in range(3):
        in_transaction(
            storage, lambda number=number: [study.set_user_attr(f"{number} {each}", each) for each in range(1500)]
        )
    assert len(journal.entries()) == 4501
    assert list(create(open_storage(journal.url)).user_attrs.items()) == list(study.user_attrs.items())
    assert create(journal.optunas()).user_attrs == study.user_attrs


@pytest.mark.timeout(60)
@pytest.mark.parametrize("together", [lambda storage, write: write(), in_transaction], ids=["each write", "together"])
def test_half_a_line_that_another_writer_leaves_is_cut_off_by_the_next_write(tmp_path, together):
    path = tmp_path / "study.journal"
    storage = open_storage(f"journal:///{path}", single_writer=True)
    study = create(storage)
    study.set_user_attr("before", 1)
    whole = path.read_bytes()
    for number, half in enumerate((b'{"op_code":4,', b'{"op_code":4,"worker'), start=1):
        with path.open("ab") as file:
            file.write(half)
        trial = together(storage, lambda: study.ask(SPACE))
        together(storage, lambda trial=trial: trial.set_user_attr("after", 2))
        assert path.with_name(f"study.journal.torn{number}").read_bytes() == half
    assert path.read_bytes().startswith(whole)
    again = create(open_storage(f"journal:///{path}"))
    assert again.user_attrs == {"before": 1}
    assert again.get_trials() == study.get_trials()
    assert [trial.user_attrs for trial in again.get_trials()] == [{"after": 2}] * 2


def test_a_line_whose_end_is_written_while_the_journal_is_loaded_is_read_later(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"a":1}\n{"b"')
    journal = FileJournal(path)
    pieces = journal.load()
    assert next(pieces) == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b":2}\n")
    assert list(pieces) == []
    assert list(journal.read_logs(1)) == [{"b": 2}]
