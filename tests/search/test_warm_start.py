"""Warm starts in a whole search: which points are scored after the centre, and that it happens once."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from evomerge.cli import run_command
from evomerge.errors import InvalidInput, OtherSpec
from evomerge.leaderboard import leaderboard
from evomerge.opening.inputs import open_inputs
from evomerge.samplers.cma import CmaSampler
from evomerge.search import warm_start
from evomerge.search.run import run_search
from evomerge.spec import load_spec, override
from evomerge.study.stored_search import read_search
from evomerge.study.trials import best_trials
from evomerge.verdict.records import read_verdict

SOURCES = [
    {"name": name, "location": str(Path(__file__).parents[2] / "examples" / "toy" / "models" / name)}
    for name in ("base", "reverse", "sort")
]
BASELINES = ["uniform-soup", "task-arithmetic", "ties"]


def search(path, **changes):
    return run_search(override(load_spec(path), **changes), ray="none")


def test_the_best_baselines_of_the_space_come_right_after_the_centre(write_spec):
    path = write_spec(baselines=BASELINES, warm_start={"baselines": 2})
    study = search(path, trials=6)
    trials = study.get_trials()
    assert set(trials[0].params.values()) == {1.0}  # the centre
    assert set(trials[1].params.values()) == {0.5}  # the soup of two; ties has no place in this space
    assert len(set(trials[2].params.values())) == 1  # one weight for all
    assert len({tuple(trial.params.values()) for trial in trials}) == 6
    assert isinstance(study.sampler, CmaSampler)
    study.sampler.mean(study)
    assert set(study.sampler.told) >= {0, 1, 2}
    again = search(path, trials=8)
    assert [trial.params for trial in again.get_trials()[:6]] == [trial.params for trial in trials]


def test_no_search_starts_from_a_control(write_spec):
    methods = {"permuted_arithmetic": {"parameters": {"weight": {"low": 0.0, "high": 1.0}}}}
    space = {"name": "permuted", "groups": {"depth": "global"}, "methods": methods}
    path = write_spec(baselines=["random-source", "uniform-soup"], space=space, warm_start={"baselines": 2})
    study = search(path, trials=3)
    rows = {line.label: line for line in leaderboard(read_search(load_spec(path)))}
    assert rows["random-source"].control
    assert rows["random-source"].name == "random-source (control)"
    assert not rows["uniform-soup"].control
    first = study.get_trials()[1].params
    assert first not in [dict.fromkeys(first, weight) for weight in (0.1 * step for step in range(1, 11))]
    assert read_verdict(study).comparisons[-1].control


def test_an_exported_recipe_and_another_study_can_be_started_from(write_spec, tmp_path):
    first = write_spec("first.yaml", name="first")
    earlier = search(first, trials=6)
    assert run_command(["export", str(first), "--trial", "3", "--out", str(tmp_path / "third")]) == 0
    other = {"name": "first", "storage": "sqlite:///runs/first/study.db", "trials": 2}
    warm = {"recipes": ["third/recipe.json"], "studies": [other]}
    trials = search(write_spec("second.yaml", name="second", warm_start=warm), trials=4).get_trials()
    assert trials[1].params == pytest.approx(earlier.trials[3].params)
    assert trials[1].value == earlier.trials[3].value
    best = [trial for trial in best_trials(earlier, 2) if trial.number not in (0, 3)]
    for trial, another in zip(trials[2:], best, strict=False):
        assert (trial.params, trial.value) == (another.params, another.value)


def test_a_study_that_is_named_without_a_storage_is_found_beside_this_one(write_spec):
    earlier = search(write_spec("first.yaml", name="first"), trials=3)
    path = write_spec("second.yaml", name="second", warm_start={"studies": [{"name": "first", "trials": 3}]})
    assert run_command(["check", str(path)]) == 0
    trials = search(path, trials=3).get_trials()
    assert {tuple(each.params.values()) for each in trials} == {tuple(each.params.values()) for each in earlier.trials}


@pytest.mark.parametrize("storage", [None, "sqlite:///elsewhere/study.db"])
def test_a_study_that_is_nowhere_is_refused_by_check_and_run_before_anything_is_made(
    write_spec, tmp_path, capsys, storage
):
    path = write_spec(warm_start={"studies": [{"name": "first", "storage": storage}]})
    tried = ["elsewhere"] if storage else ["runs/sim", "runs/first"]
    places = " or ".join(f"sqlite:///{tmp_path}/{folder}/study.db" for folder in tried)
    wanted = f"no study 'first' in {places}; give its storage: {{name: first, storage: URL}}"
    for command in (["check", str(path)], ["run", str(path), "--ray", "none"]):
        assert run_command(command) == 2
        assert wanted in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "runs").exists()


def test_a_study_of_another_space_is_refused_before_anything_is_made(write_spec, tmp_path):
    search(write_spec("first.yaml", name="first", space="ties-per-block"), trials=1)
    path = write_spec("second.yaml", name="second", warm_start={"studies": [{"name": "first"}]})
    assert run_command(["check", str(path)]) == run_command(["run", str(path), "--ray", "none"]) == 2
    assert not (tmp_path / "runs" / "second").exists()


def test_a_study_that_has_begun_goes_on_without_the_study_that_it_started_from(write_spec, tmp_path):
    search(write_spec("first.yaml", name="first"), trials=2)
    second = write_spec("second.yaml", name="second", warm_start={"studies": [{"name": "first"}]})
    search(second, trials=2)
    shutil.rmtree(tmp_path / "runs" / "first")
    assert len(search(second, trials=3).get_trials()) == 3


def test_a_merge_of_merges_starts_a_search_of_models_at_their_sum(write_spec, tmp_path):
    first = {"name": "first", "space": "baselines-global", "budget": {"trials": 4}}
    grid = {"name": "task-arithmetic", "weights": [0.25]}
    made = search(write_spec("first.yaml", **first, baselines=["uniform-soup", grid]))
    assert run_command(["export", str(tmp_path / "first.yaml"), "--trial", "3", "--out", str(tmp_path / "mixed")]) == 0
    second = write_spec("second.yaml", name="second", warm_start={"recipes": ["mixed/recipe.json"]})
    params = made.trials[3].params
    weight = 0.5 * params["uniform-soup.weight"] + 0.25 * params["task-arithmetic.weight"]
    assert set(params.values()) != {0.0, 1.0}
    assert search(second, trials=2).get_trials()[1].params == pytest.approx(
        dict.fromkeys(made_of_two_experts(second), weight)
    )


def made_of_two_experts(path):
    return open_inputs(load_spec(path)).space.distributions


def test_a_merge_of_merges_that_is_no_sum_of_models_has_no_place(write_spec, tmp_path):
    first = {"name": "first", "space": "baselines-global", "budget": {"trials": 3}}
    search(write_spec("first.yaml", **first, baselines=["uniform-soup", "ties"]))
    assert run_command(["export", str(tmp_path / "first.yaml"), "--trial", "2", "--out", str(tmp_path / "mixed")]) == 0
    with pytest.raises(InvalidInput, match="has no place in search space"):
        search(write_spec(warm_start={"recipes": ["mixed/recipe.json"]}))


def test_a_study_that_has_begun_goes_on_without_the_recipe_that_it_started_from(write_spec, tmp_path):
    first = write_spec("first.yaml", name="first")
    search(first, trials=2)
    assert run_command(["export", str(first), "--trial", "1", "--out", str(tmp_path / "one")]) == 0
    second = write_spec("second.yaml", name="second", warm_start={"recipes": ["one/recipe.json"]})
    before = search(second, trials=2).get_trials()
    shutil.rmtree(tmp_path / "one")
    assert [trial.params for trial in search(second, trials=3).get_trials()[:2]] == [each.params for each in before]
    assert run_command(["check", str(second)]) == 0


def test_a_search_starts_at_a_merge_that_a_file_of_mergekits_describes(write_spec, tmp_path):
    models = [
        {"model": source["location"], "parameters": {"weight": weight}}
        for source, weight in zip(SOURCES[1:], (0.7, 0.3), strict=True)
    ]
    file = tmp_path / "merge.yml"
    content = {"merge_method": "task_arithmetic", "base_model": SOURCES[0]["location"], "models": models}
    file.write_text(yaml.safe_dump(content))
    params = search(write_spec(warm_start={"recipes": ["merge.yml"]}), trials=2).get_trials()[1].params
    assert params == pytest.approx({name: 0.7 if "reverse" in name else 0.3 for name in params})
    file.write_text(file.read_text().replace("models/sort", "models/count"))
    with pytest.raises(InvalidInput, match=r"warm_start: .*models/count, which is no source of this search"):
        search(write_spec(name="other", warm_start={"recipes": ["merge.yml"]}))


def test_what_has_no_place_is_refused(write_spec, tmp_path):
    first = write_spec("first.yaml", name="first", space="ties-per-block")
    search(first, trials=2)
    assert run_command(["export", str(first), "--trial", "best", "--out", str(tmp_path / "best")]) == 0
    with pytest.raises(InvalidInput, match="has no place in search space"):
        search(write_spec(warm_start={"recipes": ["best/recipe.json"]}))
    with pytest.raises(InvalidInput, match="searches another space"):
        search(
            write_spec(
                name="other", warm_start={"studies": [{"name": "first", "storage": "sqlite:///runs/first/study.db"}]}
            )
        )
    with pytest.raises(InvalidInput, match="cannot be read"):
        search(write_spec(name="fourth", warm_start={"recipes": ["nothing.json"]}))
    (tmp_path / "nothing.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"no recipe\.json"):
        search(write_spec(name="third", warm_start={"recipes": ["nothing.json"]}))


def test_the_warm_start_is_part_of_the_study(write_spec):
    search(write_spec(), trials=1)
    with pytest.raises(OtherSpec, match="warm start"):
        search(write_spec(warm_start={"baselines": 1}), trials=2)


def test_no_password_of_another_storage_is_stored(write_spec, tmp_path, monkeypatch):
    search(write_spec("first.yaml", name="first"), trials=1)
    monkeypatch.setenv("OTHER", f"sqlite:///{tmp_path}/runs/first/study.db?secret=xyz")
    spec = load_spec(write_spec(warm_start={"studies": [{"name": "first", "storage": "env:OTHER"}]}))
    assert "OTHER" not in spec.to_json()


def test_a_recipe_of_other_models_has_no_place(write_spec, tmp_path):
    first = write_spec("first.yaml", name="first")
    search(first, trials=1)
    assert run_command(["export", str(first), "--trial", "0", "--out", str(tmp_path / "centre")]) == 0
    recipe = tmp_path / "centre" / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"sort"', '"sorting"'))
    with pytest.raises(InvalidInput, match="has no place"):
        search(write_spec(warm_start={"recipes": ["centre/recipe.json"]}))


def test_a_trained_baseline_is_a_goal_without_a_place(monkeypatch):
    rows = [
        SimpleNamespace(label=label, recipe=SimpleNamespace(files={}), trial=None)
        for label in ("adamerging", "uniform-soup")
    ]
    monkeypatch.setattr(warm_start, "_best_first", lambda opened: rows)
    monkeypatch.setattr(warm_start, "read_scores", lambda *_: {})
    monkeypatch.setattr(warm_start, "_place", lambda opened, row: {"weight": 0.3})
    opened = SimpleNamespace(artifacts=None, storage=None, patience=None, space=None)
    trained, soup = warm_start.reference_points(opened, SimpleNamespace(points=lambda scores: [0.5]))
    assert (trained.params, soup.params) == (None, {"weight": 0.3})


def test_genetic_samplers_learn_from_where_they_start(write_spec):
    sampler = {"name": "nsgaii", "population_size": 4}
    path = write_spec(sampler=sampler, baselines=BASELINES, warm_start={"baselines": 2})
    trials = search(path, trials=6).get_trials()
    generations = [
        [value for key, value in trial.system_attrs.items() if key.endswith("generation")] for trial in trials
    ]
    assert generations == [[0], [0], [0], [0], [1], [1]]
