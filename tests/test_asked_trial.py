"""Trials that a person asks for: checked before anything is stored, taken next, and learned from like others."""

import json

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from evomerge.cli import run_command
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.evolution.cma_evolution import Evaluation, Evolution, EvolutionSettings
from evomerge.leases.lock import hold
from evomerge.loop import steering
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release

URLS = {"sqlite": "sqlite:///study.db", "journal": "journal:///study.journal"}


@pytest.fixture(params=URLS)
def url(request):
    return URLS[request.param]


def run(spec, *options):
    return run_command(["run", str(spec), "--ray", "none", *options])


def study_in(url):
    return optuna.load_study(study_name="sim", storage=open_storage(url))


def tried(capsys, spec, *options):
    capsys.readouterr()
    assert run_command(["try", str(spec), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_trial_that_was_asked_for_is_what_the_next_run_scores_first(write_spec, capsys, url, tmp_path):
    spec = write_spec(storage=url, budget={"trials": 3})
    assert run(spec) == 0
    name = next(iter(study_in(url).trials[0].params))
    asked = tried(capsys, spec, "--params", f"{name}=0.25", "--like", "centre")
    assert (asked["trial"], asked["params"][name]) == (3, 0.25)
    assert "the next run takes it, with a larger budget" in asked["message"]
    assert (
        "has these params already (WAITING)"
        in tried(capsys, spec, "--params", f"{name}=0.25", "--like", "0")["message"]
    )
    (tmp_path / "point.yaml").write_text(yaml.safe_dump(asked["params"] | {name: 0.5}))
    assert tried(capsys, spec, "--params", "point.yaml")["trial"] == 4
    assert run(spec, "--trials", "5") == 0
    trials = study_in(url).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert [trial.params[name] for trial in trials[3:]] == [0.25, 0.5]
    assert trials[3].params == asked["params"]


def test_a_trial_that_is_asked_for_while_the_verdict_is_made_is_left_to_a_run_with_a_larger_budget(
    write_spec, capsys, url
):
    spec = write_spec(storage=url, budget={"trials": 1}, baselines=[])
    assert run(spec) == 0
    name = next(iter(study_in(url).trials[0].params))
    with hold(url, "sim"):  # by the process that has run the search
        message = tried(capsys, spec, "--params", f"{name}=0.25", "--like", "centre")["message"]
    assert "the search is over: the next run takes it, with a larger budget" in message


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("NAME=0.25", "5 of 6 params are missing"),
        ("NAME=99", "but must be from 0"),
        ("NAME=true", "but must be from 0"),
        ("NAMEE=0.25", "did you mean"),
        ("0.25", "NAME=VALUE"),
    ],
)
def test_what_is_no_point_of_the_space_is_refused_and_nothing_is_stored(write_spec, capsys, params, says):
    spec = write_spec(storage=URLS["sqlite"], budget={"trials": 1})
    assert run(spec) == 0
    name = next(iter(study_in(URLS["sqlite"]).trials[0].params))
    capsys.readouterr()
    assert run_command(["try", str(spec), "--params", params.replace("NAME", name, 1)]) == 2
    assert says in capsys.readouterr().err
    assert len(study_in(URLS["sqlite"]).trials) == 1


def test_numbers_are_read_as_in_a_document_and_a_whole_one_may_name_a_choice(write_spec, capsys, tmp_path):
    (tmp_path / "space.yaml").write_text(
        "name: own\ngroups: {depth: global}\nmethods: {ties: {parameters: "
        "{density: {choices: [0.5, 1.0], shared: sources}, lambda: {low: 1e-4, high: 1.0, log: true}}}}\n"
    )
    spec = write_spec(space="space.yaml", sampler={"name": "tpe"}, storage=URLS["sqlite"], budget={"trials": 1})
    run(spec)  # the synthetic evaluator scores no choices, so that its one trial fails
    density, scale = study_in(URLS["sqlite"]).trials[0].params
    asked = tried(capsys, spec, "--params", f"{density}=1,{scale}=1e-3")
    assert asked["params"] == {density: 1.0, scale: 0.001}
    assert isinstance(asked["params"][density], float)


def while_scoring(monkeypatch, trial, act):
    score = SyntheticEvaluator.score

    def scored(self, candidate, items):
        if candidate.key == f"sim/{trial}":
            act()
        return score(self, candidate, items)

    monkeypatch.setattr(steering, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(SyntheticEvaluator, "score", scored)


def enqueue(url, *points):
    """Enqueue points as a dashboard does."""
    storage = open_storage(url)
    study = optuna.load_study(study_name="sim", storage=storage)
    for change in points:
        study.enqueue_trial({**study.trials[0].params, **change(next(iter(study.trials[0].params)))})
    release(storage)


def test_a_running_controller_takes_next_what_others_enqueue(write_spec, monkeypatch, url):
    while_scoring(monkeypatch, 2, lambda: enqueue(url, lambda name: {name: 0.25}))
    assert run(write_spec(storage=url)) == 0
    trials = study_in(url).trials
    number = next(trial.number for trial in trials if trial.system_attrs.get("fixed_params") and trial.number)
    assert number in (3, 4)  # a proposal may have been made before it was seen
    assert trials[number].params[next(iter(trials[0].params))] == 0.25
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6


def test_what_others_enqueue_outside_of_the_space_fails_alone_and_changes_no_proposal(
    write_spec, monkeypatch, url, tmp_path
):
    assert run(write_spec(storage=f"sqlite:///{tmp_path}/whole.db")) == 0
    strange = (lambda name: {name: 99.0}, lambda name: {"typo": 1.0}, lambda name: {name: "text"})
    with monkeypatch.context() as patched:
        while_scoring(patched, 2, lambda: enqueue(url, *strange))
        assert run(write_spec(storage=url)) == 0
    trials = study_in(url).trials
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    assert len(failed) == 3
    assert all(trial.user_attrs[attributes.INTERRUPTED] for trial in failed)
    assert "must be from" in failed[0].user_attrs[attributes.FAILURE]
    assert "'typo' does not exist" in failed[1].user_attrs[attributes.FAILURE]
    complete = [trial.params for trial in trials if trial.state is TrialState.COMPLETE]
    assert complete == [trial.params for trial in study_in(f"sqlite:///{tmp_path}/whole.db").trials]


def test_a_point_that_was_asked_for_is_learned_from_on_the_turn_of_the_mean():
    settings = EvolutionSettings(sigma0=0.2, popsize=4, generation_mode="async", restarts="none", mean_every=5)
    evolution = Evolution((0.5, 0.5), (0, 0), 1, settings)
    evolution.learn(Evaluation(ordinal=9, point=(0.1, 0.2), loss=1.0))
    assert evolution.waiting == 0
    evolution.learn(Evaluation(ordinal=9, point=(0.1, 0.2), loss=1.0, asked=True))
    assert evolution.waiting == 1
