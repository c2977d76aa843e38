"""The outcomes of every item, as they are kept and read again."""

from dataclasses import replace

import optuna
import pyarrow.parquet as pq
import pytest

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.recipe import ModelRef, Recipe
from evomerge.study.item_outcomes import ItemOutcome, read_items, summary, write_items
from evomerge.study.rows import NewRow, Records

RECIPE = Recipe(base=ModelRef("base", "/nowhere"), sources=(ModelRef("a", "/nowhere"),), rules=(), dtype="float32")

SCORES = Scores(
    {
        "right": TaskScores(
            metric="acc",
            higher_is_better=True,
            items=(5, 2, 9),
            outcomes=(1.0, 0.0, 1.0),
            value=2 / 3,
            stderr=0.3,
            aggregate="mean",
        ),
        "read": TaskScores(
            metric="bits_per_byte",
            higher_is_better=False,
            items=(1, 0),
            outcomes=(-3.5, -7.25),
            value=0.7,
            stderr=None,
            aggregate="bits_per_byte",
            weights=(12.0, 8.0),
        ),
    },
    {},
)


def test_outcomes_and_weights_come_back_in_the_order_of_the_block(tmp_path):
    write_items(tmp_path / "items.parquet", SCORES)
    items = read_items(tmp_path / "items.parquet")
    assert items["read"] == {1: ItemOutcome(-3.5, 12.0), 0: ItemOutcome(-7.25, 8.0)}
    assert list(items["right"].items()) == [
        (5, ItemOutcome(1.0, None)),
        (2, ItemOutcome(0.0, None)),
        (9, ItemOutcome(1.0, None)),
    ]


def test_a_file_without_weights_is_read(tmp_path):
    write_items(tmp_path / "items.parquet", SCORES)
    table = pq.read_table(tmp_path / "items.parquet").drop_columns(["weight"])
    pq.write_table(table, tmp_path / "older.parquet")
    assert read_items(tmp_path / "older.parquet")["read"][0] == ItemOutcome(-7.25, None)


def test_the_study_keeps_how_outcomes_become_the_value():
    assert summary(SCORES)["read"]["aggregate"] == "bits_per_byte"
    assert summary(SCORES)["right"]["items"] == 3


def test_stored_scores_are_the_scores_that_were_given(tmp_path):
    """Through a sibling study and its artifacts."""
    storage = optuna.storages.InMemoryStorage()
    records = Records(storage, "sim/held-out", artifacts=tmp_path / "artifacts")
    record = records.add(
        NewRow(label="soup", recipe=RECIPE, scores=SCORES, value=0.5, stderr=0.1, seconds={"total": 1.0})
    )
    stored = records.scores(record)
    assert stored is not None
    assert stored.tasks == SCORES.tasks


def test_the_companion_of_a_row_comes_back_with_its_scores_though_the_gold_does_not(tmp_path):
    gold = replace(SCORES.tasks["right"], gold=(-0.1, -0.4, -0.1))
    scores = Scores({"right": gold}, {})
    objective = Objective(aggregate="weighted_mean", weights={"right": 1.0})
    records = Records(optuna.storages.InMemoryStorage(), "sim/baselines", artifacts=tmp_path / "artifacts")
    row = NewRow(label="soup", recipe=RECIPE, scores=scores, value=0.5, stderr=0.1, seconds={})
    older = records.scores(records.add(row))
    stored = records.scores(records.add(replace(row, companion=objective.companion(scores))))
    assert stored.tasks["right"].gold is None
    assert objective.assess(stored).companion == pytest.approx(-0.2)
    assert objective.assess(older).companion is None
