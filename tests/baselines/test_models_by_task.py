"""EMR-Merging as a baseline: which expert's reconstruction a task is given to, and what is refused."""

import dataclasses

import pytest

from evomerge.baselines.baseline_plans import Ingredients, candidates, plan_of
from evomerge.baselines.freshness import build_key
from evomerge.baselines.models_by_task import experts_of_tasks, joined_scores, named_recipes
from evomerge.catalogue import build_catalogue
from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost
from evomerge.objective import Objective
from evomerge.recipe import ModelRef, Recipe, RecipeSet
from evomerge.spec import BaselineSpec, SearchSpec, load_spec
from evomerge.study.snapshot import SearchSnapshot

NAMES = ("base", "a", "b", "c")
REFS = {name: ModelRef(name, f"models/{name}", fingerprint=name * 8) for name in NAMES}


def scores(**values):
    """One item per task; of the task `loss` less is better."""
    return Scores(
        tasks={
            task: TaskScores(
                metric="m", higher_is_better=task != "loss", items=(0,), outcomes=(value,), value=value, stderr=None
            )
            for task, value in values.items()
        },
        seconds={},
    )


def ingredients(calibrations=None):
    sources = [{"name": name, "location": name} for name in NAMES]
    for source in sources:
        if task := (calibrations or {}).get(source["name"]):
            source["calibration"] = {"task": task, "items": 4}
    spec = {"name": "test", "sources": sources, "space": "task-arithmetic-per-block", "evaluator": "synthetic"}
    return Ingredients(
        spec=SearchSpec.model_validate(spec),
        base=REFS["base"],
        experts=tuple(REFS[name] for name in NAMES[1:]),
        catalogue=build_catalogue({"w": ((2, 2), "float32")}),
        objective=Objective(aggregate="weighted_mean", weights={"hit": 1.0, "loss": 1.0}),
        references={
            "base": scores(hit=0.9, loss=0.1),
            "a": scores(hit=0.5, loss=3.0),
            "b": scores(hit=0.7, loss=2.0),
            "c": scores(hit=0.7, loss=1.0),
        },
        reference_cost=Cost(candidates=3),
    )


def chosen(given, **settings):
    plan = plan_of(BaselineSpec(name="emr", **settings), given)
    assert next(plan) == []
    with pytest.raises(StopIteration) as end:
        plan.send([])
    return end.value.value


def test_a_task_belongs_to_the_expert_that_scores_best_on_its_search_items_and_the_base_is_none():
    tasks, stated = experts_of_tasks(ingredients(), {})
    assert tasks == {"hit": "b", "loss": "c"}  # of equal ones the first; less loss is better
    assert stated == ()


def test_a_calibration_task_and_a_setting_state_the_expert_of_a_task_and_the_setting_wins():
    given = ingredients({"a": "hit", "b": "loss"})
    assert experts_of_tasks(given, {}) == ({"hit": "a", "loss": "b"}, ("hit", "loss"))
    assert experts_of_tasks(given, {"loss": "a"}) == ({"hit": "a", "loss": "a"}, ("hit", "loss"))


def test_of_several_experts_that_name_a_task_the_best_one_has_it_and_it_is_not_stated():
    given = ingredients({"a": "hit", "b": "hit", "c": "loss"})
    assert experts_of_tasks(given, {}) == ({"hit": "b", "loss": "c"}, ("loss",))


def test_each_model_is_the_reconstruction_for_its_expert_and_only_models_with_a_task_are_scored():
    choice = chosen(ingredients(), rescaler="tensor_mean")
    assert list(choice.recipe.recipes) == ["b", "c"]
    rules = {name: recipe.rules[0] for name, recipe in choice.recipe.recipes.items()}
    assert rules["b"].options == {"task": 1, "rescaler": "tensor_mean"}
    assert rules["c"].options == {"task": 2, "rescaler": "tensor_mean"}
    assert all(rule.sources == ("a", "b", "c") for rule in rules.values())
    assert [row.label for row in named_recipes("emr", choice.recipe)] == ["emr/b", "emr/c"]
    assert choice.cost.candidates == 3  # the scores of the experts were needed


def test_where_every_task_is_stated_choosing_costs_nothing():
    assert chosen(ingredients({"a": "hit", "b": "loss"})).cost == Cost()


def test_the_row_has_of_each_task_the_scores_of_its_model():
    choice = chosen(ingredients())
    joined = joined_scores(choice.recipe, {"b": scores(hit=0.6, loss=9.0), "c": scores(hit=0.1, loss=0.5)})
    assert {task: score.value for task, score in joined.tasks.items()} == {"hit": 0.6, "loss": 0.5}


def test_a_set_of_recipes_is_read_back_as_it_was_written_and_its_digest_follows_models_and_tasks():
    found = chosen(ingredients()).recipe
    assert RecipeSet.from_json(found.to_json()) == found
    assert isinstance(found.recipes["b"], Recipe)
    swapped = dataclasses.replace(found, tasks={"hit": "c", "loss": "b"})
    fewer = dataclasses.replace(found, recipes={"b": found.recipes["b"]})
    assert len({found.digest, swapped.digest, fewer.digest}) == 3


def test_at_most_one_merge_per_expert_is_scored():
    assert candidates(BaselineSpec(name="emr"), ingredients().spec) == 3


def test_other_calibration_tasks_make_the_baseline_stale():
    spec, other = (ingredients({"a": task}).spec for task in ("hit", "loss"))
    snapshot = SearchSnapshot(None, 0)
    keys = [build_key(BaselineSpec(name=name), each, snapshot) for name in ("emr", "ties") for each in (spec, other)]
    assert keys[0] != keys[1]
    assert keys[2] == keys[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": {"task_9": "sort"}}, "task_9"),
        ({"tasks": {"task_0": "base"}}, "known: reverse, sort"),
        ({"rescaler": "none"}, "rescaler"),
        ({"task": 1}, "task"),
    ],
)
def test_a_task_or_expert_that_there_is_not_is_refused_before_anything_is_run(
    write_spec, tmp_path, capsys, settings, message
):
    path = write_spec(baselines=[{"name": "emr", **settings}])
    for command in ("check", "run"):
        assert run_command([command, str(path), *(["--ray", "none"] if command == "run" else [])]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs" / "sim" / "study.db").exists()


def test_several_models_are_no_reference_point_of_a_search_with_several_objectives(write_spec):
    with pytest.raises(InvalidInput, match="searches for what is better than the baselines"):
        load_spec(write_spec(objective={"aggregate": "pareto"}, baselines=["emr"]))
    assert load_spec(write_spec(objective={"aggregate": "pareto"}, baselines=["emr", "ties"]))
