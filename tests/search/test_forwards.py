"""Costs in forward passes of one item: in leaderboard and status, for what is searched and what is trained."""

import json

import pytest
import yaml

from evomerge import load_spec, run_search
from evomerge.charts.search_course import search_course
from evomerge.cli import run_command
from evomerge.jobs import Cost
from evomerge.leaderboard import leaderboard
from evomerge.storage import attributes
from evomerge.study.stored_search import read_search
from evomerge.study.trials import total_cost

TRIALS, ITEMS = 3, 40
ADA = {"name": "adamerging", "steps": 3, "batch_size": 2, "learning_rate": 0.01}


def test_a_token_that_is_read_with_gradients_counts_three_times():
    scoring = Cost(items=10, forward_tokens=200)
    assert Cost(forward_tokens=100, gradient_tokens=40).forwards(scoring) == 100 / 20 + 3 * 40 / 20
    assert scoring.forwards(scoring) == 10


def test_without_tokens_the_items_count_and_without_items_there_is_no_measure():
    assert Cost(items=7).forwards(Cost(items=10)) == 7
    assert Cost(forward_tokens=100).forwards(Cost()) is None


@pytest.fixture
def path(write_spec, pack):
    """Two experts of the toy models with a baseline of every kind: free, scored, trained, measured and searched."""
    path = write_spec(
        evaluator=str(pack),
        dtype="float32",
        budget={"trials": TRIALS},
        baselines=["uniform-soup", {"name": "task-arithmetic", "weights": [0.2, 0.4]}, "fisher", ADA, "random-search"],
    )
    content = yaml.safe_load(path.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = {"task": f"toy_{source['name']}", "items": 4}
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_row_of_the_leaderboard_and_the_status_have_the_cost_in_forwards(path, capsys):
    run_search(load_spec(path), ray="none")
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    best = next(row for row in rows.values() if row["kind"] == "best")
    assert best["forwards"] == TRIALS * ITEMS
    per_item = best["cost"]["forward_tokens"] / best["cost"]["items"]
    for name in ("task-arithmetic", "fisher", "adamerging", "random-search"):
        cost = rows[name]["cost"]
        tokens = cost["forward_tokens"] + 3 * cost["gradient_tokens"]
        assert rows[name]["forwards"] == pytest.approx(tokens / per_item)
        assert rows[name]["forwards"] > 0
    for row in rows.values():
        expected = 0 if row["kind"] == "source" else TRIALS * ITEMS
        if row["kind"] != "baseline":
            assert row["forwards"] == expected
    assert rows["uniform-soup"]["forwards"] == 0
    assert run_command(["leaderboard", str(path)]) == 0
    assert "forwards" in capsys.readouterr().out
    assert run_command(["status", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["forwards"] == TRIALS * ITEMS
    assert run_command(["status", str(path)]) == 0
    assert f"{TRIALS * ITEMS} forwards" in capsys.readouterr().out


def test_what_is_trained_from_the_winner_has_cost_the_search_too(path, capsys):
    content = yaml.safe_load(path.read_text())
    settings = {key: value for key, value in ADA.items() if key != "name"}
    content["baselines"] = [{"name": "adamerging-from-best", **settings}]
    path.write_text(yaml.safe_dump(content))
    run_search(load_spec(path), ray="none")
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    refined = rows["adamerging-from-best"]
    assert refined["cost"]["items"] == TRIALS * ITEMS
    assert refined["forwards"] > TRIALS * ITEMS


GRID = {"name": "task-arithmetic", "weights": [0.2, 0.4, 0.6]}
DERIVED = ["without-one", "random-search"]


@pytest.mark.parametrize(
    ("changes", "random_needs_the_grid"),
    [
        ({"space": "baselines-global"}, True),
        ({"warm_start": {"baselines": 1}}, False),
        ({"warm_start": {"begin": "task-arithmetic"}}, False),
    ],
    ids=["space-of-baselines", "warm-start", "beginning"],
)
def test_a_search_that_needs_baselines_has_their_cost_and_so_has_what_is_made_from_its_winner(
    write_spec, capsys, changes, random_needs_the_grid
):
    spec = load_spec(write_spec(baselines=[GRID, "uniform-soup", *DERIVED], budget={"trials": 2}, **changes))
    study = run_search(spec, ray="none")
    stored = read_search(spec)
    lines = {line.label: line for line in leaderboard(stored)}
    best = next(line for line in lines.values() if line.kind == "best")
    grid, trials = lines["task-arithmetic"].cost, total_cost(stored.study.trials)
    assert best.cost.items == trials.items + grid.items
    assert grid.items > 0
    assert lines["without-one"].cost.items > best.cost.items
    assert lines["random-search"].cost.items == trials.items + (grid.items if random_needs_the_grid else 0)
    course = search_course(stored)
    assert course.points[0].spent >= grid.items
    assert course.spent == best.forwards == study.user_attrs[attributes.STATUS]["forwards"]


def test_a_search_for_what_is_better_than_the_baselines_has_their_cost(write_spec):
    spec = load_spec(
        write_spec(
            baselines=[GRID, "uniform-soup"], budget={"trials": 2}, sampler="cma", objective={"aggregate": "pareto"}
        )
    )
    study = run_search(spec, ray="none")
    stored = read_search(spec)
    lines = {line.label: line for line in leaderboard(stored)}
    trial = next(line for line in lines.values() if line.kind in ("best", "trial"))
    assert trial.forwards == total_cost(stored.study.trials).items + lines["task-arithmetic"].cost.items
    assert study.user_attrs[attributes.STATUS]["forwards"] == trial.forwards
