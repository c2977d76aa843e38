"""The table of all systems: its searches are valid, and its rows are those of their leaderboards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import systems

from evomerge.baselines.info import BASELINES
from evomerge.spec import load_spec


@pytest.mark.parametrize("name", systems.SEARCHES)
def test_every_search_of_the_table_is_a_valid_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "RUNS", tmp_path)
    spec = load_spec(systems.spec_file(name, trials=3))
    assert (spec.name, spec.budget.trials) == (name, 3)
    assert all(Path(source.location).is_dir() for source in spec.sources)


def test_the_first_search_has_all_baselines_that_neither_search_nor_follow_a_search() -> None:
    made = {name for name, info in BASELINES.items() if not (info.sampler or info.needs_search or info.from_file)}
    assert {each.name for each in load_spec(systems.HERE / "systems.yaml").chosen_baselines} == made


def test_rows_are_sorted_by_held_out_items_and_say_what_they_cost() -> None:
    text = systems.table([_row("worse", 0.5, None), _row("better", 0.75, {"candidates": 7, "seconds": 12.3})])
    assert text.splitlines()[2:] == ["| better | 75.0 ± 1.0 | 80.0 | 7 | 12 |", "| worse | 50.0 ± 1.0 | 80.0 |  |  |"]


def _row(title: str, held_out: float, cost: dict[str, Any] | None) -> systems.Row:
    row = {"held_out": {"value": held_out, "stderr": 0.01}, "search": {"value": 0.8}, "cost": cost}
    return systems.Row(title=title, row=row)
