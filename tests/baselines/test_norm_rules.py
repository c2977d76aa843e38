"""MetaGPT, NAN and Model Stock: weights worked by hand, on real models, and through a run that is killed."""

import json
import math
import shutil

import pytest
import torch

from evomerge import load_spec, run_search
from evomerge.baselines.baseline_plans import Ingredients, ProductsRequest, ProductsResult, check_baseline, plan_of
from evomerge.baselines.info import ModelStockSettings
from evomerge.baselines.norm_rules import metagpt_weights, nan_weights, stock_share
from evomerge.catalogue import build_catalogue
from evomerge.checkpoints import open_source
from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.jobs import Cost
from evomerge.leaderboard import leaderboard
from evomerge.objective import Objective
from evomerge.recipe import ModelRef
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.study.rows import Records, read_records
from evomerge.study.stored_search import read_search

RULES = ["metagpt", "model-stock", "nan"]
TWO_TENSORS = {
    "a": ((9.0, 0.0), (0.0, 1.0)),  # lengths 3 and 1, at right angles
    "b": ((16.0, 6.0), (6.0, 9.0)),  # lengths 4 and 3, with the cosine 0.5
}


def given(names=("base", "one", "two")):
    spec = SearchSpec.model_validate(
        {
            "name": "test",
            "sources": [{"name": name, "location": name} for name in names],
            "space": "task-arithmetic-per-block",
            "evaluator": "synthetic",
            "dtype": "float32",
        }
    )
    refs = [ModelRef(name, name, fingerprint=name * 8) for name in names]
    return Ingredients(
        spec=spec,
        base=refs[0],
        experts=tuple(refs[1:]),
        catalogue=build_catalogue({"a": ((2,), "float32"), "b": ((2, 2), "float32"), "steps": ((1,), "int64")}),
        objective=Objective(aggregate="weighted_mean", weights={"task": 1.0}),
        references={},
    )


def chosen(baseline, products):
    plan = plan_of(baseline, given())
    assert plan.send(None) == [ProductsRequest()]
    with pytest.raises(StopIteration) as end:
        plan.send([ProductsResult(products, Cost())])
    return end.value.value.recipe


def weights_of(recipe):
    assert {rule.method for rule in recipe.rules} == {"task_arithmetic"}
    assert not recipe.files
    return {name: rule.parameters["weight"] for rule in recipe.rules for name in rule.tensors}


def test_metagpt_weighs_by_squared_lengths_over_the_whole_model():
    # 9 + 16 against 1 + 9
    assert weights_of(chosen(BaselineSpec(name="metagpt"), TWO_TENSORS)) == {
        "a": (25 / 35, 10 / 35),
        "b": (25 / 35, 10 / 35),
    }


def test_nan_weighs_by_inverse_lengths_over_the_whole_model():
    one, two = 1 / 5, 1 / math.sqrt(10)
    found = weights_of(chosen(BaselineSpec(name="nan"), TWO_TENSORS))
    assert found["a"] == found["b"] == pytest.approx((one / (one + two), two / (one + two)))


def test_model_stock_keeps_of_each_tensor_as_much_as_the_experts_agree_on():
    found = weights_of(chosen(BaselineSpec(name="model-stock"), TWO_TENSORS))
    assert found["a"] == (0.0, 0.0)
    assert found["b"] == pytest.approx((1 / 3, 1 / 3))  # t = 2 * 0.5 / 1.5, and half of it for each


def test_experts_of_one_direction_are_averaged_and_of_three_the_mean_over_pairs_counts():
    settings = ModelStockSettings()
    assert stock_share(((4.0, 2.0), (2.0, 1.0)), settings) == pytest.approx(1.0)
    three = ((1.0, 0.5, 0.0), (0.5, 1.0, 0.25), (0.0, 0.25, 1.0))  # cosines 0.5, 0 and 0.25
    assert stock_share(three, settings) == pytest.approx(3 * 0.25 / 1.5)
    angle = (math.acos(0.5) + math.acos(0.0) + math.acos(0.25)) / 3
    cosine = math.cos(angle)
    found = stock_share(three, ModelStockSettings(pair_mean="angles"))
    assert found == pytest.approx(3 * cosine / (1 + 2 * cosine))


def test_task_vectors_that_point_away_from_each_other_are_clipped_unless_they_are_taken_raw():
    away = ((1.0, -0.5), (-0.5, 1.0))
    assert stock_share(away, ModelStockSettings()) == 0.0
    assert stock_share(away, ModelStockSettings(negative="raw")) == pytest.approx(-2.0)
    with pytest.raises(InvalidInput, match="negative: raw has no answer"):
        stock_share(((1.0, -1.0), (-1.0, 1.0)), ModelStockSettings(negative="raw"))


def test_an_expert_that_is_the_base_has_no_weight():
    one_is_zero = ((0.0, 0.0), (0.0, 4.0))
    assert metagpt_weights(one_is_zero) == nan_weights(one_is_zero) == [0.0, 1.0]
    assert stock_share(one_is_zero, ModelStockSettings()) == 0.0
    for rule in (metagpt_weights, nan_weights):
        with pytest.raises(InvalidInput, match="no expert differs from the base"):
            rule(((0.0, 0.0), (0.0, 0.0)))


def test_products_that_failed_are_no_products():
    plan = plan_of(BaselineSpec(name="metagpt"), given())
    plan.send(None)
    with pytest.raises(InvalidInput, match="cannot be multiplied"):
        plan.send([None])


def test_a_single_expert_agrees_with_nobody():
    spec = given(("base", "one")).spec
    check_baseline(BaselineSpec(name="metagpt"), spec, [])
    with pytest.raises(InvalidInput, match=r"needs 2 of them.*leave it out"):
        check_baseline(BaselineSpec(name="model-stock"), spec, [])


def test_a_setting_that_there_is_not_ends_with_exit_code_2_before_anything_is_written(write_spec, tmp_path, capsys):
    spec = write_spec(baselines=[{"name": "model-stock", "pair_mean": "medians"}])
    assert run_command(["run", str(spec), "--ray", "none"]) == 2
    assert "pair_mean" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_multiplies_the_task_vectors_of_its_models(write_spec):
    spec = load_spec(write_spec(baselines=RULES))
    study = read_search_of(spec)
    rows = {row.label: row for row in read_records(study.baselines) if row.made is not None}
    assert [label for label in rows if label in RULES] == RULES
    base, *experts = (open_source(ModelRef(each.name, each.location)) for each in spec.sources)
    names = [entry.name for entry in base.catalogue.mergeable]
    vectors = [
        torch.cat([(each.tensors[name].double() - base.tensors[name].double()).reshape(-1) for name in names])
        for each in experts
    ]
    squares = torch.stack(vectors).square().sum(1)
    expected = (squares / squares.sum()).tolist()
    assert rows["metagpt"].recipe.rules[0].parameters["weight"] == pytest.approx(tuple(expected), rel=1e-6)
    by_tensor = weights_of(rows["model-stock"].recipe)
    assert set(by_tensor) == set(names)
    lines = {line.label: line for line in leaderboard(study)}
    assert all(lines[label].cost.candidates == 0 for label in RULES)


def read_search_of(spec):
    run_search(spec, ray="none")
    return read_search(spec)


def test_a_run_that_is_killed_between_rules_ends_with_the_same_recipes(write_spec, monkeypatch, tmp_path):
    path = write_spec(baselines=RULES)
    whole = {row.label: row.digest for row in read_records(read_search_of(load_spec(path)).baselines)}
    (tmp_path / "killed").mkdir()
    path = shutil.copy(path, tmp_path / "killed")
    add = Records.add

    def killed_at_the_second(self, row, number=None):
        if row.label == "model-stock":
            raise KeyboardInterrupt
        return add(self, row, number)

    monkeypatch.setattr(Records, "add", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_search(load_spec(path), ray="none")
    monkeypatch.setattr(Records, "add", add)
    resumed = {row.label: row.digest for row in read_records(read_search_of(load_spec(path)).baselines)}
    assert resumed == whole


def test_the_command_adds_one_to_the_verdict(write_spec, capsys):
    spec = write_spec()
    run_search(load_spec(spec), ray="none")
    assert run_command(["baseline", str(spec), "--name", "model-stock", "--ray", "none", "--json"]) == 0
    compared = [each["baseline"] for each in json.loads(capsys.readouterr().out)["verdict"]["comparisons"]]
    assert "model-stock" in compared
