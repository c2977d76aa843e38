"""A real PostgreSQL server as the study's storage."""

import subprocess
import sys

import optuna

from evomerge import load_spec, run_search
from evomerge.spec import override
from evomerge.storage.opening import release


def test_a_search_lives_in_postgresql_and_goes_on_there(postgres, write_spec, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_TEST_STORAGE", postgres.url)
    path = write_spec(name="lives-in-postgresql", storage="env:EVOMERGE_TEST_STORAGE")
    run_search(override(load_spec(path), trials=2), ray="none")
    study = run_search(override(load_spec(path), trials=4), ray="none")
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 4
    release(study._storage)
    assert (tmp_path / "runs" / "lives-in-postgresql" / "artifacts").is_dir()
    command = [sys.executable, "-m", "evomerge.cli", "leaderboard", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "postgresql+psycopg://***/postgres" in printed
    assert "%7Ba" not in printed
    command = [sys.executable, "-m", "evomerge.cli", "export", str(path), "--storage", postgres.url, "--out", "merge"]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    card = (tmp_path / "merge" / "README.md").read_text()
    assert "--storage" in card
    assert "%7Ba" not in card
