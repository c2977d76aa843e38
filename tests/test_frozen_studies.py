"""Studies of earlier versions open, say what they said, and go on as they would have gone on."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "assets"))

import frozen

from evomerge.cli import run_command
from evomerge.study.stored_search import read_stored_spec

LARGEST = 1_500_000  # bytes of all that is frozen: it is in every clone

STUDIES = [(kind, name) for kind, names in frozen.NAMES.items() for name in names]


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """opened(kind) -> URL of a copy of the frozen studies; the working directory is where their paths begin."""
    monkeypatch.chdir(frozen.ROOT)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # they were frozen on a CPU
    return lambda kind: frozen.copy_of(kind, tmp_path / "run")


@pytest.mark.parametrize(("kind", "name"), STUDIES)
def test_everything_that_is_read_of_a_frozen_study_is_what_was_pinned(opened, tmp_path, kind, name):
    now = frozen.read(opened(kind), name, tmp_path / "run")
    different = frozen.differences(frozen.pinned()[name], now, name)
    assert not different, "\n".join(different)


@pytest.mark.parametrize("kind", frozen.FILES)
def test_a_frozen_search_goes_on_with_the_pinned_trials(opened, kind):
    different = frozen.differences(frozen.pinned()["resumed"], frozen.resume(opened(kind)), "resumed")
    assert not different, "\n".join(different)


@pytest.mark.parametrize("which", ["best", "0", "uniform-soup", "dam"])
@pytest.mark.parametrize("kind", frozen.FILES)
def test_a_merge_of_a_frozen_study_is_exported_as_it_was_scored(opened, tmp_path, kind, which):
    search = ("--storage", opened(kind), "--study", "skills")
    document = frozen.command("export", *search, "--trial", which, "--out", str(tmp_path / "out"))
    skills = frozen.pinned()["skills"]
    rows = {row["label"]: row["recipe"] for row in skills["leaderboard"]["rows"]}
    label = {"best": f"trial {skills['winner']['trial']}", "0": "trial 0"}.get(which, which)
    assert document["recipe"] == rows[label]
    assert document["verified"] == (label == f"trial {skills['winner']['trial']}")
    assert (tmp_path / "out" / "recipe-files" / "coefficients.safetensors").is_file() == (which == "dam")


def test_a_frozen_study_is_checked_like_a_new_one_and_names_no_place_of_the_machine_that_made_it(opened, capsys):
    url = opened("sqlite")
    for name in frozen.NAMES["sqlite"]:
        assert run_command(["check", "--storage", url, "--study", name]) == 0
        spec = read_stored_spec(url, name)
        assert not any(Path(place).is_absolute() for place in (spec.evaluator.name, *_locations(spec)))
    assert "two-skills" in capsys.readouterr().out


def _locations(spec):
    return [source.location for source in spec.sources]


def test_what_is_frozen_has_every_kind_of_trial_and_row():
    pinned = frozen.pinned()
    states = {trial["state"] for trial in pinned["race"]["trials"]}
    assert states == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}  # FAIL: its proposal was interrupted
    assert pinned["front"]["status"]["trials"]["failed"] > 0
    assert all(pinned[name]["verdict"] and pinned[name]["winner"] for name in frozen.NAMES["sqlite"])
    assert pinned["race"]["leaderboard"]["held_out_looks"] > 1
    assert len(pinned["front"]["trials"][0]["values"]) == len(pinned["goals"]["trials"][0]["values"]) == 3
    assert pinned["goals"]["goals"]
    assert any(row["recipe"] and row["recipe"]["files"] for row in pinned["skills"]["baselines"])
    assert "RUNNING" in pinned["skills"]["rows"]["baselines"]


def test_what_is_frozen_stays_small():
    assert sum(path.stat().st_size for path in frozen.FOLDER.rglob("*") if path.is_file()) < LARGEST


def test_a_value_that_is_gone_or_another_is_found_and_one_that_is_new_is_not():
    old = frozen.pinned()["race"]
    new = copy.deepcopy(old)
    new["winner"]["trial"] += 1
    new["trials"][0]["values"][0] += 1e-6
    new["cost"]["more"] = 1
    del new["status"]["phase"]
    assert [line.split(" was ")[0] for line in frozen.differences(old, new)] == [
        "/status/phase",
        "/winner/trial",
        "/trials/0/values/0",
    ]
    new["trials"].append({})
    assert "/trials" in frozen.differences(old, new)[-1]
