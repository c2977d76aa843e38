"""EMR-Merging beside a search: a row of several models, marked wherever it is shown, in the verdict too."""

import json

import pytest

from evomerge import load_spec, run_search
from evomerge.artefacts.emr_artefact import read_emr
from evomerge.checkpoints import open_source, tensor_digests
from evomerge.cli import run_command
from evomerge.leaderboard import leaderboard
from evomerge.recipe import ModelRef
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


def test_it_is_exported_as_one_artefact_and_the_model_of_a_task_bit_for_bit(spec, tmp_path, capsys, monkeypatch):
    chosen = spec(baselines=["uniform-soup", EMR])
    run_search(chosen, ray="none")
    search = ("--storage", chosen.storage_url, "--study", "sim", "--json")

    def export(which, out, *more):
        code = run_command(["export", *search, "--trial", which, "--out", str(tmp_path / out), *more])
        captured = capsys.readouterr()
        return json.loads(captured.out) if code == 0 else (code, captured.err)

    document = export("emr", "artefact")
    row = next(row for row in read_records(read_search(chosen).baselines) if row.label == "emr")
    assert document["recipe"] == row.digest
    assert document["models"] == row.models
    assert document["verified"]
    artefact = read_emr(tmp_path / "artefact")
    base = open_source(artefact.base)
    assert base.ref.fingerprint == artefact.base.fingerprint
    for task, name in row.models["tasks"].items():
        one = export("emr", f"model-{name}", "--task", task)
        assert (one["model"], one["recipe"]) == (f"emr/{name}", row.models["recipes"][name])
        exported = open_source(ModelRef(name, str(tmp_path / f"model-{name}")))
        rebuilt = tensor_digests(artefact.rebuild(name, base.tensors))
        assert rebuilt == tensor_digests(exported.tensors.items())
    assert not (tmp_path / "artefact" / "config.json").exists()
    card = (tmp_path / "artefact" / "README.md").read_text()
    assert "2 models, not one" in card
    assert "| emr (2 models) |" in card

    for which, task, message in (("emr", "toy_shift", "toy_sort"), ("uniform-soup", "toy_sort", "is one")):
        code, error = export(which, "none", "--task", task)
        assert code == 2
        assert message in error
    assert not (tmp_path / "none").exists()

    (tmp_path / "artefact" / "notes.txt").write_text("mine")
    monkeypatch.setattr("evomerge.export.WeightBank", lambda *given, **named: pytest.fail("opened for nothing"))
    code, error = export("emr", "artefact")
    assert code == 2
    assert "also holds notes.txt" in " ".join(error.split())


def test_it_is_made_beside_a_search_that_has_ended_and_the_verdict_takes_it_in(spec, capsys):
    chosen = spec(baselines=["uniform-soup"])
    run_search(chosen, ray="none")
    search = ("--storage", chosen.storage_url, "--study", "sim")
    assert run_command(["baseline", *search, "--name", "emr", "--ray", "none", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    row = next(row for row in document["rows"] if row["label"] == "emr")
    assert row["models"]["stated"] == []  # each task's expert is the best one on its search items
    assert set(row["models"]["tasks"]) == {"toy_reverse", "toy_sort"}
    compared = [each for each in document["verdict"]["comparisons"] if each["baseline"] == "emr"]
    assert [each.get("models", 1) for each in compared] == [len(row["models"]["recipes"])]


def test_the_front_marks_it_among_what_its_points_better(write_spec, capsys):
    emr = {"name": "emr", "tasks": {"task_0": "reverse", "task_1": "sort"}}
    settings = {
        "objective": {"aggregate": "pareto"},
        "sampler": "nsgaii",
        "evaluator": {"name": "synthetic", "items": 40, "function": "noise"},  # luck alone: some trials are better
        "budget": {"trials": 20},
        "baselines": [emr],
    }
    chosen = load_spec(write_spec(**settings))
    run_search(chosen, ray="none")
    assert any("emr" in line.betters for line in leaderboard(read_search(chosen)))
    assert run_command(["leaderboard", "--storage", chosen.storage_url, "--study", "sim"]) == 0
    front = capsys.readouterr().out.split("Pareto front")[1].split("what it took")[0]
    assert front.count("emr") == front.count("emr (2 models)") > 0
