"""A baseline and a sampler of a third party are one row and one function each, and every path takes them up.

They are in `toy_search/baseline.py` and `toy_search/sampler.py`; no file of the package names them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import optuna
import pytest

from evomerge import load_spec, run_search
from evomerge.baselines.info import BASELINES
from evomerge.errors import InvalidInput
from evomerge.leaderboard import leaderboard
from evomerge.samplers import SAMPLERS
from evomerge.study.stored_search import read_search


@pytest.fixture(autouse=True)
def toy_search(monkeypatch):
    """The extension, imported as its package is, and forgotten after the test."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    tables = (BASELINES, SAMPLERS)
    before = [dict(table) for table in tables]
    for name in ("toy_search.baseline", "toy_search.sampler"):
        importlib.reload(importlib.import_module(name))
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_a_search_with_a_toy_sampler_is_compared_with_a_toy_baseline(write_spec):
    spec = load_spec(write_spec(sampler="golden", baselines=["uniform-soup", "worst-expert"]))
    run_search(spec, ray="none")
    rows = {line.label: line for line in leaderboard(read_search(spec))}
    assert rows["worst-expert"].kind == "baseline"
    assert rows["worst-expert"].search.value == min(rows[name].search.value for name in ("reverse", "sort"))
    study = optuna.load_study(study_name="sim", storage="sqlite:///runs/sim/study.db")
    assert len({tuple(trial.params.values()) for trial in study.trials}) == len(study.trials)


def test_names_and_settings_of_both_are_checked(write_spec):
    with pytest.raises(InvalidInput, match="did you mean 'worst-expert'"):
        load_spec(write_spec(baselines=["worst-exper"]))
    with pytest.raises(InvalidInput, match="unknown setting of sampler 'golden'"):
        run_search(load_spec(write_spec(sampler={"name": "golden", "step": 2})), ray="none")
    with pytest.raises(InvalidInput, match="'weights' does not exist"):
        run_search(load_spec(write_spec(baselines=[{"name": "worst-expert", "weights": [1]}])), ray="none")
