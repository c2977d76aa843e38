"""The plans of the baselines: which merges they try, and which one they choose."""

from dataclasses import replace

import pytest
import yaml

from evomerge.baselines.baseline_plans import (
    Ingredients,
    MeasurementResult,
    TrainingRequest,
    candidates,
    check_baseline,
    plan_of,
)
from evomerge.baselines.freshness import build_key
from evomerge.baselines.info import BASELINES
from evomerge.baselines.named_recipes import NamedResult
from evomerge.baselines.training_settings import SearchFacts
from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost
from evomerge.objective import Objective
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spec import BaselineSpec, SearchSpec, load_spec
from evomerge.study.rows import TrainingResult
from evomerge.study.snapshot import SearchSnapshot

NAMES = ("base", "a", "b", "c")
REFS = {name: ModelRef(name, f"models/{name}", fingerprint=name * 8) for name in NAMES}


def scores(value):
    return Scores(
        {
            "task": TaskScores(
                metric="acc", higher_is_better=True, items=(0,), outcomes=(value,), value=value, stderr=None
            )
        },
        {},
    )


def ingredients(values, calibration=None):
    spec = SearchSpec.model_validate(
        {
            "name": "test",
            "sources": [{"name": name, "location": name, "calibration": calibration} for name in NAMES],
            "space": "task-arithmetic-per-block",
            "evaluator": "synthetic",
            "dtype": "float32",
        }
    )
    catalogue = build_catalogue({"w": ((2, 2), "float32"), "steps": ((1,), "int64")})
    references = {name: scores(value) for name, value in zip(NAMES, values, strict=True)}
    experts = tuple(REFS[name] for name in NAMES[1:])
    return Ingredients(
        spec=spec,
        base=REFS["base"],
        experts=experts,
        catalogue=catalogue,
        objective=Objective(aggregate="weighted_mean", weights={"task": 1.0}),
        references=references,
    )


def carry_out(plan, value_of):
    """Run a plan with a value for each recipe; what it tried, and its choice."""
    tried, results = [], None
    while True:
        try:
            steps = plan.send(results)
        except StopIteration as end:
            return tried, end.value
        tried += steps
        results = [
            None if value_of(step) is None else NamedResult(row=step, scores=scores(value_of(step))) for step in steps
        ]


def names_in(row):
    return [source.name for source in row.recipe.sources]


def test_a_greedy_soup_starts_with_the_best_expert_and_keeps_only_what_improves_it():
    given = ingredients([0.0, 0.3, 0.7, 0.5])
    value = {("b", "c"): 0.8, ("b", "c", "a"): 0.8}
    tried, choice = carry_out(plan_of(BaselineSpec(name="greedy-soup"), given), lambda row: value[tuple(names_in(row))])
    assert [names_in(row) for row in tried] == [["b", "c"], ["b", "c", "a"]]
    assert [source.name for source in choice.recipe.sources] == ["b", "c"]  # equal is not better
    assert choice.recipe.rules[0].parameters == {"weight": (1.0, 1.0)}


def test_of_equal_experts_a_greedy_soup_takes_the_last_first():
    tried, choice = carry_out(plan_of(BaselineSpec(name="greedy-soup"), ingredients([0, 0.5, 0.5, 0.5])), lambda row: 0)
    assert [source.name for source in choice.recipe.sources] == ["c"]
    assert [names_in(row) for row in tried] == [["c", "b"], ["c", "a"]]


def test_the_base_is_no_ingredient_of_a_soup():
    _, choice = carry_out(plan_of(BaselineSpec(name="uniform-soup"), ingredients([9, 1, 1, 1])), lambda row: 0)
    assert [source.name for source in choice.recipe.sources] == ["a", "b", "c"]
    assert choice.recipe.rules[0].tensors == ("w",)  # integer buffers are not averaged


def test_task_arithmetic_takes_the_best_weight_of_its_grid_and_survives_points_that_fail():
    value = {"task-arithmetic/0.2": 0.5, "task-arithmetic/0.4": None, "task-arithmetic/0.6": 0.7}
    plan = plan_of(BaselineSpec(name="task-arithmetic", weights=[0.2, 0.4, 0.6]), ingredients([0, 0, 0, 0]))
    tried, choice = carry_out(plan, lambda row: value[row.label])
    assert [row.label for row in tried] == list(value)
    assert choice.recipe.rules[0].parameters == {"weight": (0.6, 0.6, 0.6)}


@pytest.mark.parametrize("name", ["tsv-m", "iso-c", "wudi"])
def test_a_spectral_baseline_takes_the_best_factor_of_its_grid(name):
    value = {f"{name}/0.5": 0.5, f"{name}/1": 0.7, f"{name}/2": None}
    plan = plan_of(BaselineSpec(name=name, weights=[0.5, 1.0, 2.0]), ingredients([0, 0, 0, 0]))
    tried, choice = carry_out(plan, lambda row: value[row.label])
    assert [row.label for row in tried] == list(value)
    (rule,) = choice.recipe.rules
    assert (rule.method, rule.parameters) == (name.replace("-", "_"), {"lambda": 1.0})


def test_a_grid_in_which_everything_fails_has_no_choice():
    plan = plan_of(BaselineSpec(name="task-arithmetic"), ingredients([0, 0, 0, 0]))
    with pytest.raises(InvalidInput, match="none of the weights"):
        carry_out(plan, lambda row: None)


@pytest.mark.parametrize(("name", "density"), [("ties", 0.2), ("dare-ties", 0.2)])
def test_ties_baselines_have_the_published_defaults_unless_the_spec_says_otherwise(name, density):
    given = ingredients([0, 0, 0, 0])
    _, choice = carry_out(plan_of(BaselineSpec(name=name), given), lambda row: 0)
    (rule,) = choice.recipe.rules
    assert rule.parameters["density"] == (density,) * 3
    assert rule.parameters["lambda"] == 1.0
    assert rule.options["trim_scope"] == "global"
    changed = BaselineSpec(name=name, density=0.5, agg="dis-sum")
    (rule,) = carry_out(plan_of(changed, given), lambda row: 0)[1].recipe.rules
    assert (rule.parameters["density"], rule.options["agg"]) == ((0.5,) * 3, "dis-sum")


def test_dam_is_trained_from_the_uniform_soup_on_the_texts_of_every_expert():
    given = ingredients([0, 0, 0, 0], calibration={"task": "task", "items": 3})
    plan = plan_of(BaselineSpec(name="dam", learning_rate=0.01), given)
    (training,) = plan.send(None)
    assert isinstance(training, TrainingRequest)
    assert training.recipe == given.soup(given.experts)
    assert set(training.calibration) == {"a", "b", "c"}
    assert training.settings["learning_rate"] == 0.01
    kept = TrainingResult(given.soup(given.experts), Cost(gradient_tokens=7), {"a": (2.0, 1.0)})
    with pytest.raises(StopIteration) as end:
        plan.send([kept])
    assert end.value.value.losses == {"a": (2.0, 1.0)}


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [
        (BaselineSpec(name="ties", densty=0.5), "did you mean 'density'"),
        (BaselineSpec(name="ties", density=1.5), "outside of"),
        (BaselineSpec(name="task-arithmetic", weights=[]), "weights"),
        (BaselineSpec(name="uniform-soup", weights=[1]), "'weights' does not exist"),
        (BaselineSpec(name="dam", learning_rates=1), "did you mean 'learning_rate'"),
        (BaselineSpec(name="dam"), "name no calibration"),
    ],
)
def test_settings_that_a_baseline_does_not_have_are_refused_before_anything_runs(baseline, reason):
    with pytest.raises(InvalidInput, match=reason):
        check_baseline(baseline, ingredients([0, 0, 0, 0]).spec, ["task"])


def test_trained_merges_are_made_by_default_only_where_every_expert_names_its_texts():
    without, with_texts = ingredients([0] * 4).spec, ingredients([0] * 4, {"task": "task", "items": 3}).spec
    assert [each.name for each in without.chosen_baselines] == [*BASELINES][:5]
    assert [each.name for each in with_texts.chosen_baselines] == [*[*BASELINES][:5], "dam", "learned"]
    one_text = ingredients([0] * 4, {"task": "task", "items": 1}).spec  # none to learn from and one to stop by
    assert [each.name for each in one_text.chosen_baselines] == [*[*BASELINES][:5], "dam"]


def test_the_number_of_merges_that_a_baseline_scores_is_known_beforehand():
    spec = ingredients([0] * 4).spec
    counts = {name: candidates(BaselineSpec(name=name), spec) for name in BASELINES}
    assert counts == {
        "uniform-soup": 1,
        "given": 1,
        "greedy-soup": 3,
        "task-arithmetic": 10,
        "pcb": 1,
        "opcm": 1,
        "ties": 1,
        "dare-ties": 1,
        "lines": 10,
        "tsv-m": 10,
        "iso-c": 10,
        "wudi": 10,
        "metagpt": 1,
        "model-stock": 1,
        "nan": 1,
        "random-source": 10,
        "emr": 3,
        "fisher": 1,
        "regmean": 1,
        "dam": 1,
        "dam-from-best": 1,
        "learned": 1,
        "learned-permuted": 1,
        "learned-groups": 1,
        "learned-tensor": 1,
        "learned-column": 1,
        "fine-tune": 1,
        "adamerging": 1,
        "adamerging-task": 1,
        "adamerging-from-best": 1,
        "without-one": 3,
        "random-search": spec.budget.trials,
    }


@pytest.mark.parametrize(("name", "kind"), [("fisher", "fisher"), ("regmean", "grams")])
def test_a_baseline_with_statistics_has_every_expert_measured_and_names_the_files(name, kind):
    given = ingredients([0] * 4, {"task": "task", "items": 3})
    plan = plan_of(BaselineSpec(name=name), replace(given, facts=SearchFacts(longest=100)))
    asked = plan.send(None)
    assert [each.role for each in asked] == [f"{kind}.a", f"{kind}.b", f"{kind}.c"]
    assert {each.settings["max_length"] for each in asked} == {100}
    with pytest.raises(StopIteration) as end:
        plan.send([MeasurementResult(f"file {number}", Cost()) for number in range(3)])
    recipe = end.value.value.recipe
    assert recipe.rules[0].method == name
    assert recipe.files == {f"{kind}.a": "file 0", f"{kind}.b": "file 1", f"{kind}.c": "file 2"}


def test_a_baseline_whose_sources_cannot_be_measured_is_left_out():
    plan = plan_of(BaselineSpec(name="regmean"), ingredients([0] * 4, {"task": "task", "items": 3}))
    plan.send(None)
    with pytest.raises(InvalidInput, match="cannot be measured"):
        plan.send([MeasurementResult("file", Cost()), None, MeasurementResult("file", Cost())])


def test_options_of_a_baseline_decide_how_its_sources_are_measured():
    given = ingredients([0] * 4, {"task": "task", "items": 3})
    for bias, constant in (("joint", True), ("mean", False)):
        asked = plan_of(BaselineSpec(name="regmean", bias=bias), given).send(None)
        assert {each.settings["constant"] for each in asked} == {constant}


def test_other_texts_make_another_baseline_with_statistics():
    keys = set()
    for items in (3, 4):
        spec = ingredients([0] * 4, {"task": "task", "items": items}).spec
        keys.add(build_key(BaselineSpec(name="fisher"), spec, SearchSnapshot(None, 0)))
        assert build_key(BaselineSpec(name="ties"), spec, SearchSnapshot(None, 0)) == build_key(
            BaselineSpec(name="ties"), ingredients([0] * 4).spec, SearchSnapshot(None, 0)
        )
    assert len(keys) == 2


def test_a_raised_form_makes_the_rows_of_that_baseline_stale_and_no_others(monkeypatch):
    names = ("learned", "learned-permuted")

    def keys():
        spec = ingredients([0] * 4, {"task": "task", "items": 3}).spec
        return [build_key(BaselineSpec(name=name), spec, SearchSnapshot(None, 0)) for name in names]

    before = keys()
    monkeypatch.setitem(BASELINES, "learned-permuted", replace(BASELINES["learned-permuted"], form=1))
    assert keys()[0] == before[0]
    assert keys()[1] != before[1]


def test_an_unknown_baseline_or_one_named_twice_is_refused(write_spec):
    for baselines, reason in ((["uniform-sop"], "did you mean 'uniform-soup'"), (["ties", "ties"], "named 2 times")):
        with pytest.raises(InvalidInput, match=reason):
            load_spec(write_spec(baselines=baselines))


def test_a_calibration_file_that_does_not_exist_is_refused(write_spec):
    path = write_spec()
    content = yaml.safe_load(path.read_text())
    content["sources"][1]["calibration"] = {"file": "nowhere.txt", "items": 3}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InvalidInput, match=r"calibration file .*nowhere.txt' does not exist"):
        load_spec(path)


def merge_of(method, soup):
    """The winner of a search that mixes a merge of this method with a soup."""
    made = Rule(tensors=("w",), method=method, sources=("a", "b"), parameters={"weight": (1.0, 1.0)})
    outer = Rule(tensors=("w",), method="linear", sources=("made", "soup"), parameters={"weight": (1.0, 3.0)})
    own = replace(soup, rules=(replace(made, options={"normalize": True}),))
    mixed = replace(soup, rules=(replace(outer, options={"normalize": True}),))
    return replace(mixed, ingredients={"made": own, "soup": soup})


@pytest.mark.parametrize("name", ["dam-from-best", "adamerging-from-best"])
def test_a_training_from_a_merge_of_merges_starts_from_its_sum_of_models(name):
    given = ingredients([0.0] * 4, calibration={"task": "task", "items": 8})
    best = merge_of("linear", given.soup(given.experts))
    (request,) = next(plan_of(BaselineSpec(name=name), replace(given, best=best)))
    assert isinstance(request.recipe, Recipe)
    (rule,) = request.recipe.rules
    assert rule.sources == ("a", "b", "c")
    assert rule.parameters["weight"] == pytest.approx((0.375, 0.375, 0.25))
    assert not request.recipe.ingredients


def test_a_training_from_a_merge_of_merges_that_is_no_weighted_sum_is_refused():
    given = ingredients([0.0] * 4, calibration={"task": "task", "items": 8})
    best = merge_of("ties", given.soup(given.experts))
    with pytest.raises(InvalidInput, match="ingredient 'made': a training cannot start from a merge by ties"):
        next(plan_of(BaselineSpec(name="dam-from-best"), replace(given, best=best)))
