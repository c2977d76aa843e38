"""Futility: the chance to pass the best baseline, said while a search runs, and its end where that is asked for."""

import json

import numpy as np
import optuna
import pytest

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.loop import status_reporter
from evomerge.loop.outlook import chance_to_pass, predicted_chance
from evomerge.report.status_line import status_line
from evomerge.search.run import Listener
from evomerge.spec import override
from evomerge.storage import attributes
from evomerge.study.status import status_of
from evomerge.verdict.records import read_verdict

FLAT = [0.5, 0.52, 0.52, 0.5] * 5  # no slope; the scatter is one hundredth up or down


def study_of(folder, name="sim"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/sim/study.db")


def test_a_baseline_that_has_been_passed_is_certain_and_nothing_left_is_hopeless():
    assert chance_to_pass([0.5, 0.7], 0.6, 0) == 1.0
    assert chance_to_pass([0.5, 0.6], 0.6, 0) == 0.0  # as good is not passed
    assert chance_to_pass([0.5] * 21, 0.6, 100) is None
    assert chance_to_pass([0.5] * 22, 0.6, 100) is not None


def test_equal_values_never_pass_and_a_line_passes_where_it_crosses():
    assert predicted_chance([0.5] * 30, 0.51, 1000) == 0.0
    line = [0.01 * number for number in range(30)]  # 0.29 at last
    assert predicted_chance(line, 0.345, 5) == 0.0
    assert predicted_chance(line, 0.345, 6) == 1.0


def test_the_chance_is_the_example_worked_by_hand():
    """Twenty values: residuals of ±0.01, error sqrt(20 · 0.01² / 18), no slope. The largest six are equal, which makes
    the scale of the tail as good as 0, so that a bar above the threshold is out of reach, and one below is not."""
    assert predicted_chance(FLAT, 0.521, 1) == pytest.approx(1.0)  # a prediction is wider than the scatter
    assert predicted_chance(FLAT, 0.56, 50) == pytest.approx(0.0, abs=1e-9)
    one_better = [*FLAT[:9], 0.53, *FLAT[10:]]
    values = np.array(one_better)
    order = np.arange(20) - 9.5
    slope = order @ values / (order @ order)
    scatter = values - values.mean() - slope * order
    error = np.sqrt(scatter @ scatter / 18)
    largest = np.sort(scatter)[::-1][:6] / error
    scale = largest[:5].mean() - largest[5]
    width = error * np.sqrt(1 + 1 / 20 + 10.5**2 / (order @ order))
    beyond = (0.56 - values.mean() - slope * 10.5) / width - largest[5]
    expected = 6 / 21 * (1 + beyond / (5 * scale)) ** -5
    assert 0.0001 < expected < 0.2
    assert predicted_chance(one_better, 0.56, 1) == pytest.approx(expected)


def test_the_largest_of_the_last_three_predictions_counts():
    values = np.random.Generator(np.random.Philox(1)).normal(0.5, 0.02, 40).tolist()
    chances = [predicted_chance(values[: 40 - ago], 0.6, 10 + ago) for ago in range(4)]
    assert len(set(chances)) == 4
    assert chance_to_pass(values, 0.6, 10) == max(chances[:3])


def test_more_candidates_and_lower_baselines_have_better_chances():
    values = np.random.Generator(np.random.Philox(1)).normal(0.5, 0.02, 40).tolist()
    chances = [predicted_chance(values, bar, left) for bar, left in ((0.7, 10), (0.7, 50), (0.65, 50))]
    assert 0 < chances[0] < chances[1] < chances[2] < 1


@pytest.mark.parametrize(("draw", "width"), [("normal", 0.02), ("laplace", 0.02), ("gumbel", 0.02)])
def test_searches_that_would_pass_are_rarely_given_up(draw, width):
    """Asked after every candidate from the 22nd to the sixtieth, of a value that one in forty passes."""
    generator = np.random.Generator(np.random.Philox(2))
    bar = np.quantile(getattr(generator, draw)(0.5, width, 100_000), 1 - 1 / 40)
    passed = given_up = 0
    for _ in range(150):
        values = getattr(generator, draw)(0.5, width, 60)
        if values[:20].max() > bar or values.max() <= bar:
            continue
        first = int(np.argmax(values > bar))
        passed += 1
        given_up += any(chance_to_pass(values[:count], bar, 60 - count) < 0.05 for count in range(22, first + 1))
    assert passed > 30
    assert given_up <= 0.05 * passed


HOPELESS = {
    "sampler": "random",
    "evaluator": {"name": "synthetic", "items": 200, "steepness": 30.0},
    "verdict": {"best": 1},
}


def test_a_futile_search_ends_where_the_budget_asks_for_it_with_the_reason_in_the_study(write_spec, tmp_path, capsys):
    spec = write_spec(**HOPELESS, budget={"trials": 60, "futility": 0.05})
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    study = study_of(tmp_path)
    ended = len(study.trials)
    assert 20 <= ended < 60
    status = status_of(study.user_attrs[attributes.STATUS])
    assert status.state == "finished"
    assert status.ended.startswith("it is futile to go on: the chance to pass")
    assert status.is_futile
    assert read_verdict(study) is not None
    capsys.readouterr()
    assert run_command(["status", str(spec), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["status"]
    assert told["chance"] < 0.05
    assert told["bar"] == list(status.bar)
    run_search(load_spec(spec), ray="none")
    assert len(study_of(tmp_path).trials) == ended  # the same study decides alike


def test_a_search_that_was_interrupted_ends_after_the_same_trial(write_spec, tmp_path):
    whole = run_search(load_spec(write_spec(**HOPELESS, budget={"trials": 60, "futility": 0.05})), ray="none")
    spec = load_spec(write_spec(**HOPELESS, name="parts", budget={"trials": 60, "futility": 0.05}))
    told = []

    def stop(status):
        told.append(status.finished)
        if status.finished in (7, 21) and told.count(status.finished) == 1:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_search(spec, ray="none", listener=Listener(on_status=stop))
    parts = run_search(spec, ray="none")
    assert [trial.value for trial in parts.trials] == [trial.value for trial in whole.trials]


def test_without_that_wish_it_is_only_said_in_progress_and_note(write_spec, monkeypatch):
    notes, lines = [], []
    monkeypatch.setattr(status_reporter, "write_note", lambda study, text: notes.append(text))
    monkeypatch.setattr(status_reporter, "STATUS_SECONDS", 0.0)
    spec = override(load_spec(write_spec(**HOPELESS)), trials=60)
    study = run_search(
        spec, ray="none", listener=Listener(on_status=lambda status: lines.append(status_line(status).plain))
    )
    assert len(study.trials) == 60
    assert any("hardly passes" in line for line in lines)
    assert any("the search can hardly pass" in note and "with the rest of its budget" in note for note in notes)
    assert status_of(study.user_attrs[attributes.STATUS]).ended == "the budget of 60 trials is spent"
