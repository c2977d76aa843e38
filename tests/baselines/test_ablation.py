"""The winner without one of its experts: the best such merge is one row, and the leaderboard names the expert."""

import json
from dataclasses import replace

import pytest

from evomerge import load_spec, run_search
from evomerge.baselines.ablation import weighed_sources
from evomerge.baselines.baseline_plans import check_baseline, plan_of
from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.spec import BaselineSpec
from evomerge.study.rows import read_records
from evomerge.study.stored_search import read_search
from tests.baselines.test_baseline_plans import carry_out, ingredients

WITHOUT = BaselineSpec(name="without-one")


def given(**weights):
    """Plans' inputs whose winner weighs the experts a, b and c."""
    found = ingredients([0, 0, 0, 0])
    chosen = {"weight": [weights.get(name, 0.5) for name in ("a", "b", "c")]}
    return replace(found, best=found.recipe("task_arithmetic", chosen, {}))


def test_each_expert_is_left_out_once_and_the_best_merge_is_chosen():
    value = {"without-one/a": 0.3, "without-one/b": 0.6, "without-one/c": None}
    tried, choice = carry_out(plan_of(WITHOUT, given()), lambda row: value[row.label])
    assert [row.label for row in tried] == list(value)
    assert choice.recipe.rules[0].parameters == {"weight": (0.5, 0.0, 0.5)}
    assert list(weighed_sources(choice.recipe)) == ["a", "c"]


def test_an_expert_that_has_no_weight_is_left_out_already():
    tried, _ = carry_out(plan_of(WITHOUT, given(b=0.0)), lambda row: 0.5)
    assert [row.label for row in tried] == ["without-one/a", "without-one/c"]


def test_an_average_keeps_the_shares_of_the_others():
    found = ingredients([0, 0, 0, 0])
    tried, _ = carry_out(plan_of(WITHOUT, replace(found, best=found.soup(found.experts))), lambda row: 0.5)
    (rule,) = tried[0].recipe.rules
    assert rule.method == "task_arithmetic"
    assert rule.parameters["weight"] == pytest.approx((0.0, 1 / 3, 1 / 3))


def test_where_nothing_can_be_scored_there_is_no_choice():
    with pytest.raises(InvalidInput, match="none of the merges without one expert"):
        carry_out(plan_of(WITHOUT, given()), lambda row: None)
    with pytest.raises(InvalidInput, match="run the search first"):
        carry_out(plan_of(WITHOUT, ingredients([0, 0, 0, 0])), lambda row: 0.5)


def test_a_space_that_is_no_weighted_sum_is_refused_before_anything_runs(write_spec):
    spec = load_spec(write_spec(space="ties-per-block"))
    with pytest.raises(InvalidInput, match="takes one source out of a weighted sum, but the space has ties"):
        check_baseline(WITHOUT, spec, [])


def test_the_command_scores_it_and_the_leaderboard_names_the_expert(write_spec, capsys):
    path = write_spec()
    run_search(load_spec(path), ray="none")
    assert run_command(["baseline", str(path), "--name", "without-one", "--ray", "none", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = [row for row in document["rows"] if row["label"] == "without-one"]
    assert row["without"] in ("reverse", "sort")
    assert "without-one" in [each["baseline"] for each in document["verdict"]["comparisons"]]
    stored = {each.label for each in read_records(read_search(load_spec(path)).baselines)}
    assert {"without-one/reverse", "without-one/sort"} <= stored
    assert run_command(["leaderboard", str(path)]) == 0
    assert f"without-one leaves out {row['without']}." in capsys.readouterr().out
