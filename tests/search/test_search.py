"""A whole search in one process: failures, budgets, identity, the order of search and held-out items."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.errors import InvalidInput, OtherSpec, StoppedByFailures, StudyHeld
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.leases.lock import hold
from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import open_inputs
from evomerge.search.run import Listener
from evomerge.spec import override, spec_from_json
from evomerge.spec.search_spec import BESIDE_WEIGHTS
from evomerge.storage import attributes
from evomerge.storage.attributes import write_text
from evomerge.study.identity import create_or_verify, read_identity
from evomerge.study.search_study import MAX_ATTEMPTS, SearchStudy

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
SOURCES = [{"name": name, "location": str(TOY / name)} for name in ("base", "reverse", "sort")]


def study_of(folder, name="sim"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/sim/study.db")


def search(path, **changes):
    return run_search(override(load_spec(path), **changes), ray="none")


@pytest.fixture
def scored(monkeypatch):
    """The (job, part) of every call of the evaluator, in order."""
    calls = []
    score = SyntheticEvaluator.score

    def noted(self, candidate, items):
        calls.append((candidate.key, items.part))
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", noted)
    return calls


def test_trial_zero_is_the_centre_of_the_box(write_spec):
    first = search(write_spec(), trials=1).trials[0]
    assert set(first.params.values()) == {1.0}


def test_trials_of_the_same_score_are_ranked_by_the_log_probability_of_the_right_answers(write_spec, tmp_path):
    def run(gold, trials, name):
        evaluator = {"name": "synthetic", "items": 20, "tasks": 1, "gold": gold}
        return search(write_spec(name=name, evaluator=evaluator), trials=trials)

    ranked, plain = run(True, 40, "ranked"), run(False, 40, "plain")
    assert all(attributes.COMPANION in trial.user_attrs for trial in ranked.trials)
    assert not any(attributes.COMPANION in trial.user_attrs for trial in plain.trials)
    assert len({trial.value for trial in ranked.trials}) < 10  # eight items: many are equal
    assert [trial.params for trial in ranked.trials] != [trial.params for trial in plain.trials]
    run(True, 20, "resumed")
    assert [trial.params for trial in run(True, 40, "resumed").trials] == [trial.params for trial in ranked.trials]


def test_no_held_out_item_is_scored_before_the_winner_is_named(write_spec, scored, tmp_path):
    spec = write_spec(verdict={"best": 2})
    search(spec, trials=4)
    parts = [part for _, part in scored]
    assert parts == sorted(parts, key=["search", "held_out"].index)
    winner = study_of(tmp_path).user_attrs[attributes.WINNER]["trial"]
    held_out = {key.removeprefix("sim/held-out/") for key, part in scored if part == "held_out"}
    others = {label for label in held_out if label.startswith("trial ")} - {f"trial {winner}"}
    assert len(others) == 1
    assert held_out - others == {f"trial {winner}", "mean of cma", "base", "reverse", "sort", "uniform-soup"}


def test_every_look_at_the_held_out_items_is_recorded(write_spec, scored, tmp_path):
    evaluator = {"name": "synthetic", "items": 40, "noise": 0.5, "steepness": 2.0}
    spec = write_spec(sampler="random", evaluator=evaluator, verdict={"best": 1})
    search(spec, trials=1)
    first = study_of(tmp_path).user_attrs[attributes.WINNER]["trial"]
    trials = 4
    while study_of(tmp_path).user_attrs[attributes.WINNER]["trial"] == first and trials < 40:
        search(spec, trials=trials)
        trials += 4
    last = study_of(tmp_path).user_attrs[attributes.WINNER]["trial"]
    looks = [trial for trial, _ in study_of(tmp_path).user_attrs[attributes.LOOKS]]
    assert looks[0] == first != last == looks[-1]
    assert [part for _, part in scored].count("held_out") == 5 + len(looks) - 1  # references are not scored again


def test_n1_a_candidate_that_raises_or_computes_nan_is_a_failed_trial_with_its_reason(write_spec, tmp_path):
    spec = write_spec(
        evaluator={"name": "synthetic", "items": 40, "raising": 0.15, "not_a_number": 0.15}, sampler="random"
    )
    search(spec, trials=20)
    failed = [trial for trial in study_of(tmp_path).trials if trial.state is TrialState.FAIL]
    reasons = {trial.user_attrs[attributes.FAILURE] for trial in failed}
    assert len(study_of(tmp_path).trials) == 20
    collapsed = "task 'task_0' scores nan, task 'task_1' scores nan"
    assert reasons == {"MergeError: planted failure: this candidate raises", collapsed}


def test_n4_what_breaks_after_a_score_cannot_change_it(write_spec, tmp_path):
    good = search(write_spec(), trials=3).trials
    spec = override(load_spec(write_spec(name="other")), trials=3)
    with pytest.raises(ZeroDivisionError):
        run_search(spec, ray="none", listener=Listener(on_status=lambda status: 1 / 0))
    told = optuna.load_study(study_name="other", storage=f"sqlite:///{tmp_path}/runs/other/study.db").trials[0]
    assert told.state is TrialState.COMPLETE
    assert told.value == good[0].value


def test_a_search_in_which_most_candidates_fail_stops_with_exit_code_five(write_spec, capsys, tmp_path):
    spec = write_spec(evaluator={"name": "synthetic", "items": 40, "raising": 0.9}, sampler="random")
    assert run_command(["run", str(spec), "--ray", "none", "--trials", "60"]) == 5
    assert "candidates failed, the last one: MergeError: planted failure" in capsys.readouterr().err
    assert len(study_of(tmp_path).trials) < 20


def refusing(monkeypatch, *numbers):
    """Let the evaluator find its settings wrong for these trials."""
    score = SyntheticEvaluator.score

    def refused(self, candidate, items):
        if candidate.key in {f"sim/{number}" for number in numbers}:
            raise InvalidInput("the judge refuses, status 401")
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", refused)


def test_settings_that_become_wrong_stop_the_search_and_fail_no_candidate(write_spec, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        refusing(patch, *range(2, 20))
        for _ in range(MAX_ATTEMPTS + 1):
            with pytest.raises(InvalidInput, match=r"status 401 \(so ended sim/2 and sim/3"):
                search(write_spec())
            assert [trial.state.name for trial in study_of(tmp_path).trials] == ["COMPLETE"] * 2 + ["RUNNING"] * 2
    assert [trial.state for trial in search(write_spec()).trials] == [TrialState.COMPLETE] * 6


def test_a_candidate_that_alone_finds_fault_with_the_input_is_a_failed_trial(write_spec, monkeypatch):
    refusing(monkeypatch, 2, 5)
    trials = search(write_spec()).trials
    assert [trial.number for trial in trials if trial.state is TrialState.FAIL] == [2, 5]
    assert trials[5].user_attrs[attributes.FAILURE] == "the judge refuses, status 401"


def test_a_source_that_cannot_be_scored_stops_the_search(write_spec, monkeypatch):
    def broken(self, candidate, items):
        raise ValueError("no such task")

    monkeypatch.setattr(SyntheticEvaluator, "score", broken)
    with pytest.raises(
        StoppedByFailures, match="'base' cannot be scored on the search items: ValueError: no such task"
    ):
        search(write_spec())


def test_n8_a_budget_of_trials_is_met_exactly_and_can_be_raised(write_spec, tmp_path):
    spec = write_spec()
    search(spec, trials=3)
    assert len(study_of(tmp_path).trials) == 3
    search(spec, trials=3)
    assert len(study_of(tmp_path).trials) == 3
    search(spec, trials=5)
    assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.COMPLETE] * 5


def test_n8_a_budget_of_time_ends_within_one_candidate_and_is_summed_over_runs(write_spec, tmp_path):
    spec = write_spec(evaluator={"name": "synthetic", "items": 40, "delay_seconds": 0.3})
    search(spec, trials=500, hours=1.5 / 3600)
    first = len(study_of(tmp_path).trials)
    assert 1 <= first <= 6
    search(spec, trials=500, hours=1.5 / 3600)
    assert len(study_of(tmp_path).trials) == first


@pytest.mark.parametrize("sampler", ["cma", "tpe", "random", "qmc", "gp", "nsgaii"])
def test_n12_the_same_seed_gives_the_same_search(write_spec, tmp_path, sampler):
    params = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        study = search(write_spec(name=name, sampler=sampler, space="linear-global"), trials=4, seed=seed)
        params.append([trial.params for trial in study.trials])
    assert params[0] == params[1] != params[2]


def test_n13_a_search_leaves_the_global_generators_alone(write_spec):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    search(write_spec(), trials=3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 2}, "seed was 1, now 2"),
        ({"space": "ties-per-block"}, "space.methods"),
        ({"sampler": "tpe"}, 'sampler.name was "cma", now "tpe"'),
        ({"evaluator": {"name": "synthetic", "items": 60}}, "evaluator was"),
        ({"objective": {"aggregate": "min"}}, 'objective.aggregate was "weighted_mean", now "min"'),
        ({"dtype": "float32"}, 'dtype was "bfloat16", now "float32"'),
        ({"sources": [SOURCES[0], SOURCES[2], SOURCES[1]]}, "order of sources was"),
    ],
)
def test_n29_another_spec_is_refused_with_the_difference(write_spec, changes, field):
    search(write_spec(), trials=2)
    with pytest.raises(OtherSpec) as caught:
        search(write_spec(**changes), trials=4)
    assert field in str(caught.value)


@pytest.fixture
def own_base(tmp_path):
    """Sources of which the base is a copy, whose files may be changed, and the folder of that."""
    folder = tmp_path / "own"
    shutil.copytree(TOY / "base", folder)
    return [{"name": "base", "location": str(folder)}, *SOURCES[1:]], folder


def test_a_base_with_another_chat_template_is_refused_by_the_name_of_the_file(write_spec, own_base):
    sources, folder = own_base
    search(write_spec(sources=sources), trials=2)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(OtherSpec, match=r"beside the weights\.chat_template\.jinja was null, now"):
        search(write_spec(sources=sources), trials=4)


def test_a_study_that_stored_no_files_beside_the_weights_is_resumed_with_any(write_spec, own_base, tmp_path):
    sources, folder = own_base
    search(write_spec(sources=sources), trials=2)
    study = study_of(tmp_path)
    earlier = {key: value for key, value in read_identity(study).identity.items() if key != BESIDE_WEIGHTS}
    write_text(study, attributes.IDENTITY, json.dumps(earlier))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert len(search(write_spec(sources=sources), trials=3).trials) == 3


@pytest.mark.parametrize("name", ["mixed-methods", "dare-ties-per-block", "ties-smooth", "pcb-per-block"])
def test_the_stored_spec_searches_the_same_space_in_the_same_order(write_spec, name):
    spec = load_spec(write_spec(space=name))
    stored = spec_from_json(spec.to_json())
    assert list(open_inputs(stored).space.distributions.items()) == list(open_inputs(spec).space.distributions.items())


def test_a_spec_that_was_torn_while_it_was_written_again_is_written_once_more(write_spec, tmp_path):
    search(write_spec(), trials=2)
    study = study_of(tmp_path)
    identity = read_identity(study)
    study.set_user_attr(f"{attributes.SPEC}:1", "half of another spec")
    with pytest.raises(InvalidInput, match="torn"):
        read_identity(study)
    search(write_spec(), trials=3)
    assert read_identity(study_of(tmp_path)).identity == identity.identity


def test_every_row_that_was_scored_is_kept_when_the_run_dies_between_rows(write_spec, monkeypatch):
    spec, calls = write_spec(verdict={"best": 1}), []
    score = SyntheticEvaluator.score

    def dies_at_the_fourth_held_out_row(self, candidate, items):
        calls.append(items.part)
        if calls.count("held_out") == 4:
            raise KeyboardInterrupt
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", dies_at_the_fourth_held_out_row)
    with pytest.raises(KeyboardInterrupt):
        search(spec, trials=2)
    search(spec, trials=2)
    assert calls.count("search") == 4 + 2  # three sources, the soup, two trials: none of them twice
    assert calls.count("held_out") == 6 + 1  # winner, mean, references; the one that died is scored again


def test_rows_whose_items_were_lost_are_scored_again_once(write_spec, scored, tmp_path):
    spec = write_spec(verdict={"best": 1})
    search(spec, trials=2)
    first = len(scored)
    for path in (tmp_path / "runs" / "sim" / "artifacts").iterdir():
        if path.is_file():
            path.unlink()
    search(spec, trials=2)
    again = 4 + 6  # the references on the search items; they, the winner and the mean on the held-out ones
    assert len(scored) == first + again
    search(spec, trials=2)
    assert len(scored) == first + again


def test_interrupted_trials_that_a_smaller_budget_has_no_room_for_are_left_alone(write_spec, tmp_path, monkeypatch):
    spec = write_spec()
    tell = SearchStudy.tell

    def dies_at_the_third(self, proposal, *rest, **named):
        if proposal.number == 2:
            raise KeyboardInterrupt
        tell(self, proposal, *rest, **named)

    monkeypatch.setattr(SearchStudy, "tell", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        search(spec, trials=4)
    search(spec, trials=2)
    states = [trial.state for trial in study_of(tmp_path).trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


def test_budget_workers_and_baselines_may_change(write_spec, tmp_path):
    search(write_spec(), trials=2)
    search(write_spec(workers={"count": 3, "cpus": 2}, baselines=[], budget={"trials": 3}))
    assert len(study_of(tmp_path).trials) == 3


def test_other_package_versions_are_a_warning_and_go_on(write_spec, tmp_path):
    spec = write_spec()
    search(spec, trials=2)
    versions = study_of(tmp_path).user_attrs[attributes.VERSIONS]
    study_of(tmp_path).set_user_attr(attributes.VERSIONS, {**versions, "cma": "4.0.0"})
    phases = []
    run_search(override(load_spec(spec), trials=3), ray="none", listener=Listener(on_phase=phases.append))
    assert any("cma was 4.0.0" in phase for phase in phases)
    assert len(study_of(tmp_path).trials) == 3


def test_a_choice_of_methods_is_searched_with_tpe_in_a_journal_and_goes_on_there(write_spec, tmp_path):
    path = write_spec(space="mixed-methods", sampler="tpe", storage=f"journal:///{tmp_path}/runs/mixed.log")
    whole = search(write_spec("whole.yaml", space="mixed-methods", sampler="tpe", name="whole"), trials=14)
    search(path, trials=5)
    pieces = search(path, trials=14)
    assert [trial.params for trial in pieces.trials] == [trial.params for trial in whole.trials]
    chosen = {value for trial in whole.trials for name, value in trial.params.items() if name.endswith(".method")}
    assert chosen == {"task_arithmetic", "linear", "ties"}


def test_a_study_that_evomerge_did_not_make_is_left_alone(write_spec, tmp_path):
    path = tmp_path / "runs" / "sim" / "study.db"
    path.parent.mkdir(parents=True)
    optuna.create_study(study_name="sim", storage=f"sqlite:///{path}").add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InvalidInput, match="evomerge did not make"):
        search(write_spec())


def test_a_second_controller_is_refused_with_exit_code_six(write_spec, capsys, tmp_path):
    spec = write_spec()
    with hold(f"sqlite:///{tmp_path}/runs/sim/study.db", "sim"):
        with pytest.raises(StudyHeld, match=str(os.getpid())):
            search(spec)
        assert run_command(["run", str(spec), "--ray", "none"]) == 6


def test_a_study_whose_creation_was_cut_short_is_created_again(write_spec, tmp_path):
    spec = write_spec()
    whole = search(spec, trials=2)
    identity = read_identity(whole)
    torn = optuna.create_study(study_name="torn")
    torn.set_user_attr(f"{attributes.SPEC}:1", "half")
    assert create_or_verify(torn, identity) == identity
    assert read_identity(torn).identity == identity.identity


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_with_exit_code_three_and_the_same_command_goes_on(write_spec, tmp_path, number):
    spec = write_spec(evaluator={"name": "synthetic", "items": 40, "delay_seconds": 0.4})
    command = [sys.executable, "-m", "evomerge.cli", "run", str(spec), "--ray", "none", "--trials", "200"]
    events = []
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            events.append(line)
            if '"event": "status"' in line and json.loads(line)["finished"] >= 1:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 3, "".join(events) + rest
    assert f"stopped by {number.name}; run the same command again to go on" in rest
    before = study_of(tmp_path).trials
    assert study_of(tmp_path).user_attrs[attributes.STATUS]["state"] == "interrupted"
    waiting = [trial for trial in before if trial.state is TrialState.RUNNING]
    assert all(trial.user_attrs[attributes.ATTEMPT] == 0 for trial in waiting)
    search(spec, trials=len(before) + 1)
    assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.COMPLETE] * (len(before) + 1)


def test_the_objective_of_a_trial_is_in_the_study_with_scores_of_every_task(write_spec, tmp_path):
    search(write_spec(objective={"aggregate": "min"}), trials=2)
    trial = study_of(tmp_path).trials[0]
    tasks = trial.user_attrs[attributes.SCORES]["tasks"]
    assert trial.value == min(task["value"] for task in tasks.values())
    assert set(tasks) == {"task_0", "task_1"}
    assert {"merge", "total", "forward"} <= set(trial.user_attrs[attributes.SECONDS])
    assert all(len(json.dumps(value)) < 2048 for value in trial.user_attrs.values())


def test_the_status_attribute_is_small_and_says_where_the_search_stands(write_spec, tmp_path):
    search(write_spec(), trials=3)
    status = study_of(tmp_path).user_attrs[attributes.STATUS]
    assert len(json.dumps(status)) < 2048
    assert (status["state"], status["finished"], status["budget"]) == ("finished", 3, 3)
    assert status["updated"] <= time.time()


@pytest.mark.parametrize("command", [["run"], ["baseline", "--name", "ties"]])
def test_n33_workers_without_ray_are_refused_not_ignored(write_spec, capsys, command):
    assert run_command([*command, str(write_spec()), "--ray", "none", "--workers", "2"]) == 2
    assert "--ray none has one worker" in capsys.readouterr().err


def test_workers_are_given_the_memory_that_the_search_was_planned_with(write_spec, monkeypatch):
    given = []

    def refuse(setup, *rest, **named):
        given.append(setup.need)
        raise InvalidInput("no workers today")

    monkeypatch.setattr("evomerge.search.session.open_executor", refuse)
    path = write_spec()
    with pytest.raises(InvalidInput, match="no workers today"):
        search(path)
    assert given == [asdict(memory_of(open_inputs(load_spec(path))))]


def test_n32_a_search_that_cannot_fit_is_refused_before_it_starts(write_spec, monkeypatch):
    monkeypatch.setattr("evomerge.bank.placement.total_memory", lambda: 1_000_000)
    with pytest.raises(InvalidInput, match=r"needs \d\.\d MB and this machine has 1\.0 MB"):
        search(write_spec())
