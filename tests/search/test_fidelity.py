"""Racing and brackets in a whole search: what is dropped, what the study keeps of it, and going on after a kill."""

import math

import optuna
import pytest
from optuna.trial import TrialState

from evomerge.errors import InvalidInput, OtherSpec
from evomerge.evaluation.combination import combine_scores
from evomerge.evaluation.evaluator import Candidate
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.packs.items import ItemBlock
from evomerge.search.run import run_search
from evomerge.spec import load_spec, override
from evomerge.storage import attributes
from evomerge.study.ended_scores import ended_scores
from evomerge.study.incumbent import read_incumbent
from evomerge.study.race_defaults import RaceDefaults
from evomerge.study.search_study import SearchStudy
from evomerge.study.stored_search import artifacts_folder, read_search
from evomerge.study.trials import best_trials, read_cost

EVALUATOR = {"name": "synthetic", "items": 1000, "steepness": 20.0}


def search(path, **changes):
    return run_search(override(load_spec(path), **changes), ray="none")


PAIRED = {"name": "race", "estimator": "paired"}


@pytest.fixture
def race(write_spec):
    return write_spec(evaluator=EVALUATOR, fidelity="race", budget={"trials": 20})


@pytest.fixture
def paired_race(write_spec):
    return write_spec("paired.yaml", evaluator=EVALUATOR, fidelity=PAIRED, budget={"trials": 20})


@pytest.mark.parametrize("estimator", ["race", "paired_race"])
def test_a_race_drops_bad_candidates_early_and_never_the_best(request, estimator):
    study = search(request.getfixturevalue(estimator))
    trials = study.get_trials()
    dropped = [trial for trial in trials if trial.state is TrialState.PRUNED]
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert len(trials) == 20
    assert len(dropped) >= 5
    assert complete[0].number == 0  # nothing to race against yet
    everything = read_cost(trials[0]).items
    assert everything > 700
    assert max(read_cost(trial).items for trial in dropped) < everything
    assert min(read_cost(trial).items for trial in dropped) >= (64 if estimator == "paired_race" else 32)
    assert all(read_cost(trial).items == everything for trial in complete)
    assert sum(read_cost(trial).items for trial in trials) < 0.6 * everything * len(trials)


def test_what_a_dropped_trial_tells_is_its_paired_estimate(paired_race):
    study = search(paired_race)
    stored = read_search(load_spec(paired_race))
    blocks = round(read_cost(study.trials[0]).items / 64)
    for trial in study.get_trials(states=(TrialState.PRUNED,)):
        earlier = [
            other
            for other in study.get_trials(states=(TrialState.COMPLETE,))
            if other.user_attrs[attributes.TELL] < trial.user_attrs[attributes.TELL]
        ]
        incumbent = max(earlier, key=lambda other: (other.value, -other.number))
        scores = SyntheticEvaluator(
            {key: value for key, value in EVALUATOR.items() if key != "name"}, bounds=_bounds(stored), seed=1
        )
        part = ItemBlock("search", 0, len(trial.intermediate_values), of=blocks)
        difference = sum(
            _mean(scores, trial, part, task) - _mean(scores, incumbent, part, task) for task in scores.weights
        ) / len(scores.weights)
        assert trial.value == pytest.approx(incumbent.value + difference)
        assert trial.value < incumbent.value


def _bounds(stored):
    trial = stored.study.trials[0]
    return {name: (distribution.low, distribution.high) for name, distribution in trial.distributions.items()}


def _mean(evaluator, trial, block, task):
    return (
        evaluator.score(Candidate(key="x", params=trial.params, recipe=None, model=lambda: None), block)
        .tasks[task]
        .value
    )


def test_blocks_together_are_the_whole_part():
    evaluator = SyntheticEvaluator({"items": 130, "tasks": 3}, bounds={"x": (0, 1)})
    whole = ItemBlock("search")
    for count in (1, 2, 7):
        blocks = [ItemBlock("search", number, number + 1, of=count) for number in range(count)]
        for task, items in evaluator.split.items(whole).items():
            assert sum((evaluator.split.items(block)[task] for block in blocks), ()) == items
    candidate = Candidate(key="x", params={"x": 0.3}, recipe=None, model=lambda: None)
    parts = combine_scores([evaluator.score(candidate, block) for block in blocks])
    together = evaluator.score(candidate, whole)
    assert {task: score.value for task, score in parts.tasks.items()} == {
        task: pytest.approx(score.value) for task, score in together.tasks.items()
    }
    assert all(parts.tasks[task].stderr == pytest.approx(score.stderr) for task, score in together.tasks.items())


def test_the_incumbent_is_kept_in_the_study_and_found_again(race):
    study = search(race)
    spec = load_spec(race)
    stored = read_search(spec)
    best = best_trials(study, 1)[0]
    kept = read_incumbent(stored.study, stored.storage, artifacts_folder(spec))
    for file in artifacts_folder(spec).iterdir():
        if file.is_file():
            file.unlink()
    again = read_incumbent(stored.study, stored.storage, artifacts_folder(spec))
    assert kept == again
    assert sum(len(task.items) for task in again.tasks.values()) == read_cost(best).items
    mean = sum(task.value for task in again.tasks.values()) / len(again.tasks)
    assert mean == pytest.approx(best.value)


def test_what_a_trial_on_drawn_items_tells_is_near_what_it_is_worth(race):
    study = search(race)
    stored = read_search(load_spec(race))
    evaluator = SyntheticEvaluator(
        {key: value for key, value in EVALUATOR.items() if key != "name"}, bounds=_bounds(stored), seed=1
    )
    dropped = study.get_trials(states=(TrialState.PRUNED,))
    worth = [
        sum(_mean(evaluator, trial, ItemBlock("search"), task) for task in evaluator.weights) / len(evaluator.weights)
        for trial in dropped
    ]
    errors = [trial.value - value for trial, value in zip(dropped, worth, strict=True)]
    assert abs(sum(errors) / len(errors)) < 0.03
    assert max(map(abs, errors)) < 0.25
    incumbents = [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    assert all(trial.value < max(incumbents) for trial in dropped)


def test_every_trial_of_a_race_on_drawn_items_has_a_draw_of_its_own(race):
    study = search(race, trials=8)
    stored = read_search(load_spec(race))
    seen = [
        tuple(sorted((task, item) for task, score in scores.tasks.items() for item in score.items))
        for scores in ended_scores(stored.study, stored.storage, stored.artifacts)
    ]
    partial = [items for items in seen if len(items) < len(seen[0])]
    assert len(seen) == len(study.trials)
    assert len(set(partial)) == len(partial) > 2


def test_a_race_on_drawn_items_repeats_what_a_killed_one_did(write_spec, monkeypatch):
    changes = {"evaluator": EVALUATOR, "fidelity": "race", "budget": {"trials": 12}}
    whole = search(write_spec("whole.yaml", name="whole", **changes))
    path = write_spec("killed.yaml", name="killed", **changes)
    tell = SearchStudy.tell

    def dies_at_every_fourth(self, proposal, *rest, **named):
        if proposal.number % 4 == 3 and proposal.attempt == 1:
            raise KeyboardInterrupt
        tell(self, proposal, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStudy, "tell", dies_at_every_fourth)
        patch.setattr(SearchStudy, "undo_attempt", lambda self, proposal: None)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                search(path)
        killed = search(path)
    assert [(trial.state, trial.params, trial.value) for trial in killed.trials] == [
        (trial.state, trial.params, trial.value) for trial in whole.trials
    ]
    assert [read_cost(trial).items for trial in killed.trials] == [read_cost(trial).items for trial in whole.trials]


def test_a_study_keeps_the_estimator_that_was_the_default_when_it_was_made(write_spec):
    path = write_spec(evaluator=EVALUATOR, fidelity="race", budget={"trials": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.opening.open_study.CURRENT", RaceDefaults())
        search(path, trials=3)
    study = search(path)
    paired = write_spec("paired.yaml", name="paired", evaluator=EVALUATOR, fidelity=PAIRED, budget={"trials": 6})
    assert [trial.value for trial in study.trials] == [trial.value for trial in search(paired).trials]
    assert study.user_attrs[attributes.RACE] == {"estimator": "paired", "futility": 0.0}


@pytest.mark.parametrize("fidelity", ["race", PAIRED, {"name": "race", "futility": 0.0}], ids=str)
def test_a_race_goes_on_as_if_it_had_not_been_stopped(write_spec, fidelity):
    changes = {"evaluator": EVALUATOR, "fidelity": fidelity}
    whole = search(write_spec("whole.yaml", name="whole", **changes), trials=20)
    path = write_spec("pieces.yaml", name="pieces", **changes)
    for trials in (3, 9, 20):
        pieces = search(path, trials=trials)
    assert [trial.params for trial in pieces.trials] == [trial.params for trial in whole.trials]
    assert [trial.value for trial in pieces.trials] == [trial.value for trial in whole.trials]
    assert [trial.state for trial in pieces.trials] == [trial.state for trial in whole.trials]


@pytest.mark.parametrize("rule", ["successive_halving", "hyperband"])
def test_brackets_spend_less_and_keep_the_good_ones(write_spec, rule):
    study = search(write_spec(evaluator=EVALUATOR, fidelity=rule, sampler="random"), trials=27)
    trials = study.get_trials()
    dropped = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert len(dropped) >= 9
    steps = {step for trial in dropped for step in trial.intermediate_values}
    assert all(any(math.isclose(step, items, abs_tol=2) for items in (64, 192, 576)) for step in steps)
    best = max(trial.value for trial in trials if trial.state is TrialState.COMPLETE)
    assert all(trial.value <= best for trial in dropped)
    assert sum(read_cost(trial).items for trial in trials) < 0.8 * max(
        read_cost(trial).items for trial in trials
    ) * len(trials)


def test_a_forest_on_hyperbands_rungs_goes_on_as_if_it_had_not_been_stopped(write_spec):
    changes = {
        "evaluator": EVALUATOR,
        "fidelity": "hyperband",
        "sampler": {"name": "forest", "n_startup_trials": 4},
    }
    whole = search(write_spec("whole.yaml", name="whole", **changes), trials=20)
    path = write_spec("pieces.yaml", name="pieces", **changes)
    for trials in (3, 9, 20):
        pieces = search(path, trials=trials)
    assert [trial.params for trial in pieces.trials] == [trial.params for trial in whole.trials]
    assert {trial.state for trial in whole.trials} == {TrialState.PRUNED, TrialState.COMPLETE}


def test_the_fidelity_is_part_of_the_study(write_spec):
    search(write_spec(evaluator=EVALUATOR, fidelity="race"), trials=1)
    with pytest.raises(OtherSpec, match=r"fidelity\.alpha"):
        search(write_spec(evaluator=EVALUATOR, fidelity={"name": "race", "alpha": 0.1}), trials=1)


@pytest.mark.parametrize(
    ("fidelity", "message"),
    [
        ({"name": "race", "eta": 4}, "fidelity race has no setting 'eta'"),
        ({"name": "hyperband", "estimator": "difference"}, "fidelity hyperband has no setting 'estimator'"),
        ({"name": "race", "estimator": "paired", "futility": 0.1}, "futility needs the estimator difference"),
        ({"name": "race", "estimator": "best"}, "difference"),
        ({"name": "hyperband", "alpha": 0.1}, "fidelity hyperband has no setting 'alpha'"),
        ({"name": "full", "block": 10}, "fidelity full has no setting 'block'"),
        ("fast", "full"),
    ],
)
def test_bad_fidelities_are_refused(write_spec, fidelity, message):
    with pytest.raises(InvalidInput, match=message):
        load_spec(write_spec(fidelity=fidelity))


@pytest.mark.parametrize(
    ("budget", "trials"),
    [({"items": 1200}, 4), ({"patience": 4}, None), ({"target": 0.01}, 1)],
)
def test_every_part_of_the_budget_ends_the_search(write_spec, budget, trials):
    evaluator = {"name": "synthetic", "items": 400}  # two tasks, of which two fifths are searched on
    study = search(write_spec(evaluator=evaluator, budget={"trials": 60, **budget}))
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if trials is not None:
        assert len(finished) == trials
    else:
        values = [trial.value for trial in finished]
        assert len(values) < 60
        assert values.index(max(values)) == len(values) - 1 - 4
    status = study.user_attrs[attributes.STATUS]
    assert (status["state"], status["seconds_left"]) == ("finished", 0.0)
    assert any(word in status["ended"] for word in ("items", "no better", "target"))


def test_a_larger_budget_goes_on(write_spec):
    evaluator = {"name": "synthetic", "items": 400}
    search(write_spec(evaluator=evaluator, budget={"trials": 60, "items": 600}))
    study = search(write_spec(evaluator=evaluator, budget={"trials": 60, "items": 1200}))
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 4


def test_optuna_shows_the_blocks_as_intermediate_values(race):
    study = search(race, trials=8)
    for trial in optuna.load_study(study_name="sim", storage=study._storage).trials:
        if trial.state is TrialState.PRUNED:
            assert list(trial.intermediate_values) == sorted(trial.intermediate_values)
            assert trial.value == trial.intermediate_values[trial.last_step]


def test_every_block_has_an_item_of_every_task_where_there_are_many_small_ones(write_spec):
    evaluator = {"name": "synthetic", "tasks": 40, "items": 25}
    study = search(write_spec(evaluator=evaluator, fidelity={"name": "race", "block": 16}), trials=4)
    assert all(trial.state is not TrialState.FAIL for trial in study.trials)
    block = SyntheticEvaluator({"tasks": 40, "items": 25}, bounds={"x": (0, 1)})
    items = block.split.items(ItemBlock("search", 0, 1, of=1000))
    assert all(len(ids) == 1 for ids in items.values())


def test_samplers_that_learn_from_complete_trials_only_are_refused(write_spec):
    with pytest.raises(InvalidInput, match="learns from complete ones only"):
        load_spec(write_spec(fidelity="race", sampler="gp"))


def test_trials_in_flight_are_ended_after_a_kill_though_the_patience_is_over(write_spec, monkeypatch):
    path = write_spec(evaluator={"name": "synthetic", "items": 400}, budget={"trials": 30})
    tell = SearchStudy.tell

    def dies_at_the_third(self, proposal, *rest, **named):
        if proposal.number == 2:
            raise KeyboardInterrupt
        tell(self, proposal, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStudy, "tell", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            search(path)
    study = search(write_spec(evaluator={"name": "synthetic", "items": 400}, budget={"trials": 30, "items": 1}))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
