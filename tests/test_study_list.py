"""The list of the searches in a storage, and what is beside them."""

import json

import optuna
import pytest

from evomerge.cli import run_command
from evomerge.leases.lock import hold
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage

URLS = {"sqlite": "sqlite:///study.db", "journal": "journal:///study.journal"}


@pytest.fixture(params=URLS)
def url(request, write_spec):
    """A storage with two searches, one of which has not been paused for long, and a study of another program."""
    url = URLS[request.param]
    for name, trials in (("first", 2), ("second", 3)):
        assert (
            run_command(["run", str(write_spec(name=name, storage=url)), "--ray", "none", "--trials", str(trials)]) == 0
        )
    assert run_command(["pause", "--storage", url, "--study", "first"]) == 0
    optuna.create_study(storage=open_storage(url), study_name="foreign")
    return url


def listed(capsys, *arguments):
    capsys.readouterr()
    assert run_command(["list", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_searches_are_listed_with_states_and_siblings_folded(url, capsys, write_spec):
    document = listed(capsys, url)
    assert [study["name"] for study in document["studies"]] == ["first", "second"]
    assert document["others"] == 1
    first, second = document["studies"]
    assert first["siblings"] == ["baselines", "held-out", "requests"]
    assert (second["state"], second["trials"]["finished"], second["trials"]["budget"]) == ("finished", 3, 3)
    assert second["best"]["trial"] in range(3)
    assert second["controller"] is None
    assert listed(capsys, str(write_spec(name="second", storage=url)))["studies"] == document["studies"]
    assert run_command(["list", url]) == 0
    shown = capsys.readouterr().out
    assert "second" in shown
    assert "/baselines" not in shown


def test_a_search_that_is_held_is_listed_with_its_controller(url, capsys):
    with hold(url, "second"):
        first, second = listed(capsys, url)["studies"]
    assert second["controller"]
    assert first["controller"] is None


def test_a_heartbeat_after_the_latest_status_is_the_last_sign_of_life(url, capsys):
    study = optuna.load_study(study_name="second", storage=open_storage(url))
    latest = study.user_attrs[attributes.STATUS]["updated"] + 40.0
    study.set_user_attr(attributes.HEARTBEAT, latest)
    assert listed(capsys, url)["studies"][1]["updated"] == latest


def test_a_storage_that_does_not_exist_is_not_made(capsys, tmp_path):
    assert run_command(["list", f"sqlite:///{tmp_path}/none.db"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_a_search_whose_run_was_killed_before_its_verdict_is_not_listed_as_finished(url, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    study = optuna.load_study(study_name="second", storage=open_storage(url))
    study.set_user_attr(attributes.PHASE, "making the baselines")
    assert run_command(["list", url]) == 0
    assert "making the baselines, but no controller is alive" in " ".join(capsys.readouterr().out.split())
