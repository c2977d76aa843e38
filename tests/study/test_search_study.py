"""The search's study: its tally is what its trials add up to, and a trial is stored whole, in few transactions."""

from dataclasses import replace

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sqlalchemy import event

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost, Outcome, Scored
from evomerge.objective import Assessment, Dropped
from evomerge.recipe import ModelRef, single_source
from evomerge.samplers import build_sampler
from evomerge.spaces.bound import Infeasible
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.study.rows import items_path
from evomerge.study.search_study import SearchStudy
from evomerge.study.tally import Tally
from evomerge.study.trials import FINISHED
from evomerge.testing.sampler_contract import Space

RECIPE = single_source(ModelRef("base", "none"), ModelRef("expert", "none"), ("weight",), "float32")
TASK = TaskScores(metric="acc", higher_is_better=True, items=(0, 1), outcomes=(0.0, 1.0), value=0.5, stderr=0.1)
OUTCOME = Outcome(
    key="key",
    attempt=1,
    result=Scored(Scores({"task": TASK}, {})),
    seconds={"total": 0.5},
    worker="worker-0",
    cost=Cost(items=2, seconds=0.5),
)


class OneNumber:
    """A space with one param, whatever it means."""

    def __init__(self):
        self.distributions = {"x": FloatDistribution(0.0, 1.0)}

    initial = ()

    def is_complete(self, params):
        return set(params) == {"x"}

    def decode(self, params):
        return RECIPE

    def active(self, params):
        return self.distributions

    def infeasible(self, recipe):
        return None


@pytest.fixture(params=["sqlite", "journal"])
def search(request, tmp_path):
    url = f"{request.param}:///{tmp_path}/study.{request.param}"
    storage = open_storage(url, single_writer=True)
    study = optuna.create_study(storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    search = SearchStudy(study, storage, OneNumber(), artifacts=tmp_path / "artifacts")
    search.storage_url = url
    yield search
    release(storage)


def tell_one_of_each(search):
    for assessed in (
        Assessment(value=0.7, stderr=0.1, violations=(0.2,)),
        Assessment(value=0.4, stderr=0.1, violations=(-0.1,)),
        Dropped(estimate=0.9, stderr=0.1),
        Assessment(value=0.4, stderr=None),
    ):
        search.tell(search.ask(), OUTCOME, assessed)
    search.fail(search.ask().number, "collapsed", OUTCOME)


def test_a_tally_that_is_kept_is_the_one_that_is_read_again(search):
    tell_one_of_each(search)
    again = Tally(search.trials(*FINISHED))
    assert vars(search.tally) == vars(again)
    assert (again.spent.items, again.spent.seconds) == (10, 2.5)


def test_the_best_trial_meets_the_constraints_and_is_the_first_of_equals(search):
    search.tell(search.ask(), OUTCOME, Assessment(value=0.7, stderr=None, violations=(0.2,)))
    assert (search.tally.best, search.tally.is_best_feasible) == ((0.7, 0), False)
    tell_one_of_each(search)
    assert (search.tally.best, search.tally.is_best_feasible) == ((0.4, 2), True)
    assert search.tally.since_best == 2


def test_proposals_that_are_refused_use_up_no_patience(search):
    search.tell(search.ask(), OUTCOME, Assessment(value=0.5, stderr=None))
    for _ in range(20):
        search.refuse(search.ask(), Infeasible("too deep", 1.0))
    assert (search.tally.told, search.tally.since_best) == (21, 0)
    search.tell(search.ask(), OUTCOME, Dropped(estimate=0.4, stderr=None))
    search.tell(search.ask(), OUTCOME, Assessment(value=0.5, stderr=None))
    assert search.tally.since_best == 2
    assert vars(Tally(search.trials(*FINISHED))) == vars(search.tally)


def cut_short(search, attempt):
    """A trial that its controller left behind, in that attempt."""
    proposal = replace(search.ask(), attempt=attempt)
    search.begin(proposal)
    return proposal


def test_the_death_of_a_controller_is_no_attempt_of_candidates_that_cannot_cause_it(search):
    cut_short(search, 1)
    cut_short(search, 3)
    for _ in range(5):  # controllers die, one after another
        again = search.recover(isolated=True)
        assert [proposal.attempt for proposal in again] == [1, 3]
        for proposal in again:
            search.begin(proposal)
    assert search.tally.failed == 0


def test_the_death_of_a_controller_that_scored_the_candidate_itself_is_one_of_its_attempts(search):
    cut_short(search, 1)
    cut_short(search, 3)
    assert [proposal.attempt for proposal in search.recover()] == [2]
    assert search.tally.failed == 1


def test_trials_are_counted_by_what_became_of_them(search):
    tell_one_of_each(search)
    assert (search.tally.finished, search.tally.failed, search.tally.dropped, search.tally.told) == (5, 1, 1, 4)


def test_a_trial_whose_ask_was_cut_short_does_not_count(search):
    trial = search.study.ask()
    trial.set_user_attr(attributes.INTERRUPTED, True)
    search.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert Tally(search.trials(*FINISHED)).finished == 0


def test_a_point_that_was_cancelled_while_it_waited_is_not_proposed_again(search):
    search.study.enqueue_trial({"x": 0.25})
    assert search.cancel(0, "cancelled")
    search._space.initial = ({"x": 0.25},)  # as the next run finds it in the space
    search.recover()
    assert [trial.state for trial in search.trials()] == [TrialState.FAIL]


def test_a_point_whose_ask_was_cut_short_is_proposed_again(search):
    search._space.initial = ({"x": 0.25},)
    search.recover()
    search.study.ask()  # as a controller does that dies before the first param
    search.recover()
    assert [trial.state for trial in search.trials()] == [TrialState.FAIL, TrialState.WAITING]
    assert search.ask().params == {"x": 0.25}


def enqueue_elsewhere(search, point):
    """Enqueue a point from another process, and return its number; the controller does not know of it yet."""
    storage = open_storage(search.storage_url)
    study = optuna.load_study(study_name=search.study.study_name, storage=storage)
    study.enqueue_trial(point)
    release(storage)
    return len(study.trials) - 1


@pytest.mark.parametrize("name", ["cma", "qmc"])
@pytest.mark.parametrize("end", ["refused", "cancelled"])
def test_an_enqueued_point_that_fails_late_makes_no_proposal_twice(search, name, end):
    space = Space({"x": FloatDistribution(0.0, 1.0)}, {"x": 0.5})
    search.study.sampler = build_sampler(name, {}, seed=1, space=space, workers=1)
    asked = [search.ask().params["x"]]
    number = enqueue_elsewhere(search, {"x": 99.0 if end == "refused" else 0.25})
    asked.append(search.ask().params["x"])  # in a database before the point is seen
    search.find_added()
    if end == "cancelled":
        search.cancel(number, "cancelled")
    asked += [search.ask().params["x"] for _ in range(4)]
    assert [trial.number for trial in search.trials(TrialState.FAIL)] == [number]
    assert len(set(asked)) == len(asked) == 6


def test_a_point_that_is_refused_in_its_turn_changes_no_proposal(search):
    space = Space({"x": FloatDistribution(0.0, 1.0)}, {"x": 0.5})
    search.study.sampler = build_sampler("cma", {}, seed=1, space=space, workers=1)
    whole = optuna.create_study(sampler=build_sampler("cma", {}, seed=1, space=space, workers=1))
    expected = [whole.ask(space.distributions).params for _ in range(4)]
    asked = [search.ask().params]
    search.study.enqueue_trial({"x": 99.0})
    asked += [search.ask().params for _ in range(3)]
    assert asked == expected
    assert attributes.OVERTAKEN not in search.trials(TrialState.FAIL)[0].user_attrs


def test_a_told_trial_has_its_artifact_and_its_attributes(search):
    tell_one_of_each(search)
    first, _, dropped, *_ = search.trials()
    assert first.user_attrs[attributes.VIOLATIONS] == [0.2]
    assert first.user_attrs[attributes.RECIPE] == RECIPE.digest
    assert first.user_attrs[attributes.SCORES]["objective_stderr"] == 0.1
    assert dropped.value == 0.9
    for trial in (first, dropped):
        (meta,) = optuna.artifacts.get_all_artifact_meta(trial, storage=search.study._storage)
        assert meta.filename == "items.parquet"


def test_a_trial_that_is_cut_short_after_its_items_were_written_names_those_of_its_next_attempt(search, tmp_path):
    proposal = search.ask()
    search.begin(proposal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "tell", lambda *arguments, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search.tell(proposal, OUTCOME, Assessment(value=0.5, stderr=0.1))
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
    (again,) = search.recover()
    assert again.attempt == 2
    search.tell(again, OUTCOME, Assessment(value=0.5, stderr=0.1))
    (meta,) = optuna.artifacts.get_all_artifact_meta(search.trials()[0], storage=search.study._storage)
    assert items_path(tmp_path / "artifacts", search.study._storage, search.trials()[0]).name == meta.artifact_id


def test_a_proposal_that_is_out_of_bounds_kills_no_controller_however_often_one_has_died(search, monkeypatch):
    cut_short(search, 3)
    monkeypatch.setattr(OneNumber, "infeasible", lambda self, recipe: Infeasible(reason="too far", excess=1.0))
    (again,) = search.recover()
    assert again.infeasible is not None
    assert search.tally.failed == 0


def test_a_trial_is_two_transactions(tmp_path):
    """Ask and result: each waits for the disk."""
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True)
    study = optuna.create_study(storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    search = SearchStudy(study, storage, OneNumber(), artifacts=tmp_path / "artifacts")
    tell_one_of_each(search)  # the first ones read what is not in memory yet
    commits = []
    event.listen(storage._backend.engine, "commit", commits.append)
    proposal = search.ask()
    search.begin(proposal)
    search.tell(proposal, OUTCOME, Assessment(value=0.5, stderr=0.1, violations=(0.1,), companion=-1.0))
    assert len(commits) == 2
    release(storage)


def test_a_result_whose_writing_fails_leaves_nothing_of_itself(tmp_path, monkeypatch):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True)
    study = optuna.create_study(storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    search = SearchStudy(study, storage, OneNumber(), artifacts=tmp_path / "artifacts")
    proposal = search.ask()
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", lambda *arguments, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search.tell(proposal, OUTCOME, Assessment(value=0.5, stderr=0.1))
    (trial,) = search.trials()
    assert trial.state is optuna.trial.TrialState.RUNNING
    assert trial.user_attrs == {attributes.ATTEMPT: 1}
    assert not trial.system_attrs
    assert search.tally.finished == 0
    release(storage)
