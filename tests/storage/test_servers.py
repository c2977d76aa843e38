"""A whole small search on every storage: begun, killed, continued, with the proposals of one that was never killed."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

sys.path.append(str(Path(__file__).parents[1] / "search"))

import killer
from servers import without_studies

from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.storage.patience import StorageAway

STORAGES = ("sqlite", "journal", "postgres", "mariadb", "redis")
SERVERS = ("postgres", "mariadb", "redis")
TRIALS = 6
LONGEST = 2048  # bytes of an attribute; MySQL's column takes 64 KiB


@pytest.fixture(params=STORAGES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a storage without a study of ours."""
    if request.param in SERVERS:
        return without_studies(request.getfixturevalue(request.param))
    return f"{request.param}:///{tmp_path}/other/study.{request.param}"


def trials_in(url: str, name: str) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(url)
    try:
        return optuna.load_study(storage=storage, study_name=name).get_trials()
    finally:
        release(storage)


def commanded(arguments: list[str]) -> list[str]:
    """A command in a process of its own, at whose end its connections are closed."""
    return [sys.executable, "-m", "evomerge.cli", *arguments]


def killed(command: list[str], point: str, trial: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killer.run, args=(command, point, trial))
    process.start()
    process.join()
    assert process.exitcode == -9


def test_a_search_is_killed_and_goes_on_with_the_same_proposals(
    url: str, write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec: dict[str, Any] = {"budget": {"trials": TRIALS}, "sampler": {"name": "cma", "popsize": 3}}
    (tmp_path / "url").write_text(f"{url}\n")
    never = write_spec("never.yaml", **spec)
    path = write_spec(storage="file:url", artifacts=str(tmp_path / "items"), **spec)
    command = ["run", str(path), "--ray", "none", "--json"]
    killed(command, "between tell order and tell", 2)
    assert subprocess.run(commanded(command), capture_output=True).returncode == 0
    assert run_command(["run", str(never), "--ray", "none", "--json"]) == 0
    found, wanted = trials_in(url, "sim"), trials_in(f"sqlite:///{tmp_path}/runs/sim/study.db", "sim")
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * TRIALS
    assert [(trial.params, trial.value) for trial in found] == [(trial.params, trial.value) for trial in wanted]
    assert [trial.user_attrs[attributes.TELL] for trial in found] == list(range(TRIALS))
    sizes = [len(json.dumps(value).encode()) for trial in found for value in trial.user_attrs.values()]
    assert max(sizes) < LONGEST
    shown = subprocess.run(commanded(["leaderboard", str(path), "--json"]), capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["schema"]
    assert "127.0.0.1" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("name", SERVERS)
def test_a_wrong_password_is_invalid_and_a_dead_server_resumable(name: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)

    with pytest.raises(InvalidInput, match="refuses the user or the password") as refused:
        open_storage(server.url.replace("%7Ba%7D", "wrong"))
    assert "wrong" not in str(refused.value)
    server.kill()
    try:
        with pytest.raises(StorageAway, match="nothing listens there"):
            open_storage(server.url)
    finally:
        server.start()
    release(open_storage(server.url))
