"""Studies that their only writer keeps in memory: samplers look at what is new only, and propose what they would."""

import optuna
import pytest
from optuna.trial import TrialState

from evomerge.samplers import base, build_sampler
from evomerge.storage.attributes import TELL
from evomerge.storage.opening import in_transaction, open_storage, release
from evomerge.testing.sampler_contract import box

SPACE = box(2)


def cma():
    return build_sampler("cma", {"popsize": 5}, seed=1, space=SPACE, workers=1)


@pytest.fixture
def storage(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True)
    yield storage
    release(storage)


def create(storage, sampler):
    return optuna.create_study(storage=storage, study_name="s", sampler=sampler, load_if_exists=True)


def ask(storage, study):
    return in_transaction(storage, lambda: study.ask(dict(SPACE.distributions)))


def tell(study, trial, position):
    trial.set_user_attr(TELL, position)
    study.tell(trial, sum(trial.params.values()))


def test_proposals_are_those_of_a_sampler_that_reads_the_study_again(storage, tmp_path):
    study = create(storage, cma())
    for position in range(8):
        first, second = ask(storage, study), ask(storage, study)
        study.tell(study.ask(), state=TrialState.FAIL)  # was never a proposal
        tell(study, second, 2 * position)  # told in another order than asked for
        tell(study, first, 2 * position + 1)
        again = open_storage(f"sqlite:///{tmp_path}/study.db")
        reader = create(again, cma())
        mean, told = reader.sampler.mean(reader), reader.sampler.told
        release(again)
        assert (study.sampler.mean(study), study.sampler.told) == (mean, told)
        assert told[-2:] == (second.number, first.number)


def test_a_trial_that_was_told_before_others_is_learned_from_before_them(storage):
    study = create(storage, cma())
    trials = [ask(storage, study) for _ in range(3)]
    tell(study, trials[0], 5)
    tell(study, trials[1], 6)
    study.sampler.mean(study)
    tell(study, trials[2], 1)
    study.sampler.mean(study)
    assert study.sampler.told == (2, 0, 1)


def test_only_new_trials_are_looked_at(storage, monkeypatch):
    study = create(storage, cma())
    for position in range(30):
        tell(study, ask(storage, study), position)
    looked_at = []

    def note(trials):
        looked_at.append(len(trials))
        return in_tell_order(trials)

    in_tell_order = base.in_tell_order
    monkeypatch.setattr(base, "in_tell_order", note)
    for position in range(30, 34):
        tell(study, ask(storage, study), position)
    assert looked_at == [1, 1, 1, 1]
