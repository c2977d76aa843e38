"""Baselines that fail by the machine's fault are tried again by the next run; by their own they are kept out."""

from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest

from evomerge import load_spec, run_search
from evomerge.cluster import InlineExecutor
from evomerge.errors import MergeError, StoppedByFailures
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.jobs import Failed, Outcome
from evomerge.leaderboard import leaderboard, left_out_of
from evomerge.storage import attributes
from evomerge.study.row_failures import read_failures
from evomerge.study.rows import read_records
from evomerge.study.stored_search import read_search
from evomerge.verdict.looks import share
from evomerge.verdict.records import read_verdict
from evomerge.worker import Worker


@pytest.fixture
def machine(monkeypatch):
    """Keys of the jobs whose worker dies whenever it does them, and of all jobs that were done, in order."""

    machine = SimpleNamespace(lost=set(), done=[])

    class Unreliable(InlineExecutor):
        def next_event(self, timeout):
            event = super().next_event(timeout)
            if isinstance(event, Outcome) and event.key.startswith("sim/"):
                machine.done.append(event.key)
                if event.key in machine.lost:
                    return replace(event, result=Failed("the worker died", crashed=True))
            return event

    def open_executor(setup, *rest, **named):
        return Unreliable(Worker(setup, "unreliable"))

    monkeypatch.setattr("evomerge.search.session.open_executor", open_executor)
    return machine


def left_out(spec):
    stored = read_search(spec)
    return left_out_of(stored, leaderboard(stored))


def compared(study):
    return {each.baseline for each in read_verdict(study).comparisons}


@pytest.mark.parametrize(
    ("name", "step"), [("ties", "ties"), ("task-arithmetic", "task-arithmetic/0.5"), ("greedy-soup", None)]
)
def test_a_baseline_whose_machine_failed_is_made_by_the_next_run(write_spec, machine, name, step):
    spec = load_spec(write_spec(baselines=[name]))
    machine.lost = {f"sim/baselines/{step or 'greedy-soup/reverse+sort'}", "sim/baselines/greedy-soup/sort+reverse"}
    study = run_search(spec, ray="none")
    assert name not in compared(study)
    assert left_out(spec)[name] == "the worker died (attempt 3 of 3)"
    machine.lost = set()
    del machine.done[:]
    study = run_search(spec, ray="none")
    assert name in compared(study)
    assert left_out(spec) == {}
    assert len(machine.done) <= 3  # what was scored before is stored


def test_a_failure_that_an_earlier_release_stored_is_told_by_its_attempts(write_spec, machine):
    spec = load_spec(write_spec(baselines=["ties"]))
    machine.lost = {"sim/baselines/ties"}
    run_search(spec, ray="none")
    study = read_search(spec).baselines
    (failed,) = [trial for trial in study.get_trials() if attributes.MACHINE in trial.user_attrs]
    plain = optuna.create_study()
    attrs = {key: value for key, value in failed.user_attrs.items() if key != attributes.MACHINE}
    plain.add_trial(optuna.trial.create_trial(state=failed.state, user_attrs=attrs))
    assert len(read_failures(plain)) == 1
    assert read_failures(plain, by_machine=False) == {}


def test_a_baseline_that_failed_by_its_own_fault_is_kept_out(write_spec, monkeypatch, machine):
    spec, score = load_spec(write_spec(baselines=["ties"])), SyntheticEvaluator.score

    def raising(self, candidate, items):
        if candidate.key == "sim/baselines/ties":
            raise MergeError("nothing to merge")
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", raising)
    run_search(spec, ray="none")
    del machine.done[:]
    run_search(spec, ray="none")
    assert machine.done == []
    assert left_out(spec) == {"ties": "MergeError: nothing to merge"}


def test_a_held_out_row_whose_machine_failed_is_scored_by_the_next_run(write_spec, machine):
    spec = load_spec(write_spec(baselines=["ties"]))
    machine.lost = {"sim/held-out/ties", "sim/held-out/mean of cma"}
    run_search(spec, ray="none")
    reason = "on the held-out items, the worker died (attempt 3 of 3)"
    assert left_out(spec) == {"ties": reason, "mean of cma": reason}
    machine.lost = set()
    del machine.done[:]
    assert "ties" in compared(run_search(spec, ray="none"))
    assert set(machine.done) == {"sim/held-out/ties", "sim/held-out/mean of cma"}
    assert {row.label for row in read_records(read_search(spec).held_out)} >= {"ties", "mean of cma"}
    assert left_out(spec) == {}


def test_a_row_that_is_scored_after_the_others_were_compared_takes_a_look_of_its_own(write_spec, machine):
    spec = load_spec(write_spec(baselines=["ties", "uniform-soup"]))
    machine.lost = {"sim/held-out/ties"}
    first = read_verdict(run_search(spec, ray="none"))
    machine.lost = set()
    for _ in range(2):  # once more changes nothing
        found = read_verdict(run_search(spec, ray="none"))
        assert {each.baseline: each.look for each in found.comparisons} == {
            **{each.baseline: 1 for each in first.comparisons},
            "ties": 2,
        }
        assert found.looks == 2
        (ties,) = [each for each in found.comparisons if each.baseline == "ties"]
        assert ties.adjusted_p == pytest.approx(min(1.0, ties.p / share(2)))


def test_a_space_is_not_made_without_a_merge_that_only_the_machine_failed(write_spec, machine):
    spec = load_spec(write_spec(baselines=["uniform-soup", "ties"], space="baselines-global"))
    machine.lost = {"sim/baselines/ties"}
    with pytest.raises(StoppedByFailures, match="ties, which the space is made of, was not made, since the machine"):
        run_search(spec, ray="none")
    machine.lost = set()
    study = run_search(spec, ray="none")
    assert any("ties" in name for name in study.get_trials()[0].params)
