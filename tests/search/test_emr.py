"""EMR-Merging beside a search: a row of several models, marked wherever it is shown, in the verdict too."""

import json

import pytest

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.leaderboard import leaderboard
from evomerge.study.rows import Records, read_records
from evomerge.study.stored_search import read_search
from evomerge.verdict.records import read_verdict

EMR = {"name": "emr", "tasks": {"toy_sort": "sort"}}


@pytest.fixture
def spec(write_spec, pack):
    """Two experts of the toy models, lm-eval on few items, two trials."""

    def write(**changes):
        content = {"evaluator": str(pack), "dtype": "float32", "budget": {"trials": 2}, "baselines": [EMR], **changes}
        return load_spec(write_spec(**content))

    return write


def tasks_of(row):
    return {task: score["value"] for task, score in row.tasks.items()}


def test_each_task_has_the_score_of_its_own_reconstruction_on_both_parts_and_the_row_is_marked(spec, capsys):
    chosen = spec(baselines=["uniform-soup", EMR])
    run_search(chosen, ray="none")
    stored = read_search(chosen)
    for study in (stored.baselines, stored.held_out):
        rows = {row.label: row for row in read_records(study)}
        row = rows["emr"]
        assert row.models["tasks"] == {"toy_reverse": "reverse", "toy_sort": "sort"}
        assert row.models["stated"] == ["toy_sort"]
        assert row.models["recipes"] == {name: rows[f"emr/{name}"].digest for name in ("reverse", "sort")}
        for task, name in row.models["tasks"].items():
            assert tasks_of(row)[task] == tasks_of(rows[f"emr/{name}"])[task]
        assert row.value == pytest.approx(sum(tasks_of(row).values()) / 2)
    (line,) = [line for line in leaderboard(stored) if line.label == "emr"]
    assert line.held_out is not None
    assert line.name == "emr (2 models)"
    verdict = read_verdict(stored.study)
    comparison = next(each for each in verdict.comparisons if each.baseline == "emr")
    assert (comparison.models, comparison.name) == (2, "emr (2 models)")
    assert "emr (2 models)" in verdict.sentence
    assert verdict.lead.baseline != "emr"

    assert run_command(["leaderboard", "--storage", chosen.storage_url, "--study", "sim"]) == 0
    text = capsys.readouterr().out
    assert text.count("emr (2 models)") >= 4  # in every table
    assert "toy_sort to sort (as the spec says)" in " ".join(text.split())
    assert "toy_reverse to reverse (best on its search items)" in " ".join(text.split())
    assert run_command(["leaderboard", "--storage", chosen.storage_url, "--study", "sim", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in document["rows"]}
    assert rows["emr"]["models"] == line.models
    assert rows["uniform-soup"]["models"] == {}
    assert "several models" in rows["emr"]["no_command"]
    assert {each["baseline"]: each.get("models") for each in document["verdict"]["comparisons"]} == {
        "emr": 2,
        "uniform-soup": None,
        verdict.comparisons[0].baseline: None,
    }


def test_a_run_killed_between_its_models_scores_only_the_other_one_again_and_then_nothing(spec, monkeypatch):
    chosen, add, added = spec(), Records.add, []

    def killed(self, row, number=None):
        if row.label == "emr/sort":
            raise KeyboardInterrupt
        return add(self, row, number)

    def noted(self, row, number=None):
        added.append(row.label)
        return add(self, row, number)

    monkeypatch.setattr(Records, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run_search(chosen, ray="none")
    monkeypatch.setattr(Records, "add", noted)
    run_search(chosen, ray="none")
    assert added[:2] == ["emr/sort", "emr"]  # emr/reverse was stored before
    assert {"emr", "emr/reverse", "emr/sort"} <= set(added[2:])  # on the held-out items
    del added[:]
    run_search(chosen, ray="none")
    assert added == []


def test_it_is_no_start_of_a_search_since_it_is_no_single_model(spec):
    study = run_search(spec(warm_start={"baselines": 2}), ray="none")
    enqueued = [trial.number for trial in study.trials if "fixed_params" in trial.system_attrs]
    assert enqueued == [0]  # the centre alone
