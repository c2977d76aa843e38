"""The whole life of a search on PostgreSQL, by the commands of docs/operations.md alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from browser import answer_of, free_address, page_of
from drill_rows import Row
from optuna.trial import TrialState
from servers import without_studies

from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release

pytestmark = pytest.mark.drill

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
TRIALS = 40
SPEC: dict[str, Any] = {
    "name": "toy",
    "space": "task-arithmetic-per-block",
    "evaluator": {"name": "synthetic", "items": 40, "delay_seconds": 2.0},
    "budget": {"trials": TRIALS},
    "baselines": ["uniform-soup"],
    "workers": {"count": 2, "cpus": 1},
    "storage": "file:storage_url",
    "seed": 1,
}


class Life:
    """A folder with a spec, and the commands of the page in it."""

    def __init__(self, folder: Path, url: str, sources: list[dict[str, str]]) -> None:
        self.folder = folder
        self.url = url
        (folder / "storage_url").write_text(url)
        (folder / "search.yaml").write_text(yaml.safe_dump({**SPEC, "sources": sources}, sort_keys=False))
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}

    def _words(self, command: str) -> list[str]:
        assert re.search(rf"(?:^|`){re.escape(command)}(?:[ `]|$)", PAGE, re.MULTILINE), f"the page has no {command!r}"
        words = shlex.split(command.replace("postgresql+psycopg://…", "file:storage_url"))
        return [sys.executable, "-m", "evomerge.cli", *words[1:]]

    def does(self, command: str, *more: str) -> str:
        """The output of a command of the page, given further words, which has to end well."""
        done = subprocess.run(
            [*self._words(command), *more],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def document(self, command: str, *more: str) -> dict[str, Any]:
        """The JSON document that a command of the page prints."""
        document: dict[str, Any] = json.loads(self.does(command, *more, "--json"))
        return document

    @contextmanager
    def begun(self, command: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command of the page that goes on while others are given."""
        with (self.folder / "said").open("ab") as log:
            process = subprocess.Popen(
                [*self._words(command), *more], cwd=self.folder, env=self._environment, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def trials(self, url: str | None = None) -> list[optuna.trial.FrozenTrial]:
        storage = open_storage(url or self.url)
        try:
            return optuna.load_study(storage=storage, study_name="toy").get_trials(deepcopy=False)
        finally:
            release(storage)

    def status_when(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status for which this is true. All of them come before the search is over."""
        while True:
            try:
                status = self.document("evomerge status search.yaml")
            except AssertionError:  # the study is not there yet
                time.sleep(1.0)
                continue
            if reached(status):
                return status
            assert status["trials"]["complete"] < TRIALS, "the search was over before it could be steered"
            time.sleep(1.0)


def is_paused(status: dict[str, Any]) -> bool:
    """Whether a living controller waits, and no candidate is being scored any more."""
    said = status["status"] or {}
    return (status["alive"], said.get("state"), said.get("running")) == ("yes", "paused", 0)


@pytest.fixture
def life(tmp_path: Path, postgres: Any, sources: list[dict[str, str]]) -> Life:
    return Life(tmp_path, without_studies(postgres), sources)


@pytest.mark.drill("the whole life: pause, kill -9, restart of the database, resume, copy, export")
def test_a_search_lives_by_the_words_of_the_page(life: Life, postgres: Any, row: Row) -> None:
    row.storage = "PostgreSQL"
    life.does("evomerge check search.yaml")
    life.does("evomerge doctor search.yaml")
    with life.begun("evomerge run search.yaml") as controller:
        life.status_when(lambda status: status["trials"]["complete"] >= 8)
        life.does("evomerge pause", "search.yaml")
        paused = life.status_when(is_paused)["trials"]["complete"]
        watch(life)
        controller.kill()
        row.exit_codes.append(controller.wait())
    postgres.kill()
    postgres.start()
    with life.begun("evomerge run search.yaml") as controller:
        assert life.status_when(is_paused)["trials"]["complete"] == paused < TRIALS
        life.does("evomerge resume", "search.yaml")
        row.exit_codes.append(controller.wait())
    assert row.exit_codes == [-9, 0], (life.folder / "said").read_text()
    row.count(range(TRIALS), told(life.trials()))
    assert (row.lost, row.doubled) == (0, 0)
    take_home(life)


def told(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    """Positions at which results were told."""
    return [trial.user_attrs[attributes.TELL] for trial in trials if trial.state is TrialState.COMPLETE]


def watch(life: Life) -> None:
    """Look at the running search from another terminal and in a browser."""
    assert "toy" in life.does("evomerge list postgresql+psycopg://…")
    assert life.document("evomerge leaderboard search.yaml")["rows"]
    life.does("evomerge logs search.yaml", "--trial", "3")
    address, port = free_address()
    with life.begun("evomerge dashboard search.yaml", "--port", str(port)):
        studies = json.loads(answer_of(f"{address}/api/studies"))["study_summaries"]
        (number,) = (each["study_id"] for each in studies if each["study_name"] == "toy")
        assert "toy/baselines" in page_of(f"{address}/dashboard", life.folder)
        assert re.search(r"(number=|Trial )\d", page_of(f"{address}/dashboard/studies/{number}", life.folder))


def take_home(life: Life) -> None:
    """Copy the study to a file, and export the winner there and here: the same model."""
    life.does("evomerge study copy file:storage_url sqlite:///copy.db --study toy")
    copy, there = f"sqlite:///{life.folder}/copy.db", ["--storage", "sqlite:///copy.db", "--study", "toy"]
    assert [(each.number, each.state, each.params, each.values) for each in life.trials(copy)] == [
        (each.number, each.state, each.params, each.values) for each in life.trials()
    ]
    assert (
        life.document("evomerge leaderboard", *there)["rows"]
        == (life.document("evomerge leaderboard search.yaml")["rows"])
    )
    assert life.document("evomerge export search.yaml --out my-merge")["verified"]
    assert life.document("evomerge export", *there, "--out", "copied-merge")["verified"]
    weights = [life.folder / folder / "model.safetensors" for folder in ("my-merge", "copied-merge")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
