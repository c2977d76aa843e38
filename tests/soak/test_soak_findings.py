"""The findings of a soak in a study: none where all went well, else what is lost or doubled."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from evomerge.cli import run_command
from evomerge.storage import attributes

sys.path.append(str(Path(__file__).parent))

from soak_findings import findings
from study_memory import optuna_mb, study_mb

NOTHING = {"failed": 0, "lost": 0, "doubled": 0, "items_lost": 0, "items_doubled": 0}


@pytest.fixture
def url(write_spec, tmp_path):
    """The storage of a finished search of six trials."""
    spec = write_spec(name="soak", artifacts=str(tmp_path / "soak"), baselines=[])
    there = f"sqlite:///{tmp_path}/study.db"
    assert run_command(["run", str(spec), "--ray", "none", "--storage", there]) == 0
    return there


def test_what_is_lost_or_doubled_is_counted(url, tmp_path):
    assert findings(url, "soak", tmp_path / "soak", 6) == {"finished": 6, **NOTHING}
    assert findings(url, "soak", tmp_path / "soak", 8) == {"finished": 6, **NOTHING, "lost": 2}

    study = optuna.load_study(storage=url, study_name="soak")
    again = create_trial(state=TrialState.FAIL, user_attrs={attributes.TELL: 3})
    study.add_trial(again)
    study.ask()
    assert findings(url, "soak", tmp_path / "soak", 6) == {
        "finished": 7,
        **NOTHING,
        "failed": 1,
        "lost": 1,
        "doubled": 1,
    }

    for file in (tmp_path / "soak").iterdir():
        if file.is_file():
            file.unlink()
    assert findings(url, "soak", tmp_path / "soak", 6)["items_lost"] == 6


def test_memory_is_that_of_processes_of_their_own_of_which_one_loads_the_study(url, tmp_path):
    file = tmp_path / "storage_url"
    file.write_text(url)
    for megabytes in (optuna_mb(file), study_mb(file, "soak")):
        assert 20.0 < megabytes < 1000.0
    with pytest.raises(subprocess.CalledProcessError):
        study_mb(file, "another")
