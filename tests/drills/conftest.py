"""What drills share: the proposals of a search that nothing happened to, and a search in a process of its own."""

from __future__ import annotations

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
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.opening import open_storage, release

TRIALS = 60
SPEC: dict[str, Any] = {
    "name": "drill",
    "space": "task-arithmetic-per-block",
    "evaluator": {"name": "synthetic", "items": 40, "delay_seconds": 0.1},
    "budget": {"trials": TRIALS},
    "baselines": [],
    "verdict": {"best": 1},
    "seed": 1,
}


class Drill:
    """One search of 60 quick trials on a storage, as a process."""

    def __init__(self, folder: Path, sources: list[dict[str, str]], url: str, **changes: Any) -> None:
        self.url = url
        self.spec = folder / "search.yaml"
        (folder / "url").write_text(url)
        content = {**SPEC, "sources": sources, "storage": "file:url", "artifacts": str(folder / "items"), **changes}
        self.spec.write_text(yaml.safe_dump(content, sort_keys=False))
        self._folder = folder
        self._said = folder / "said"

    @contextmanager
    def running(self, ray: str = "none") -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "evomerge.cli", "run", str(self.spec), "--ray", ray, "--json"]
        with self._said.open("w") as log:
            process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def end_of(self, process: subprocess.Popen[bytes], timeout: float | None = None) -> str:
        """What the process has said, when it has ended."""
        process.wait(timeout)
        return self.said

    @property
    def said(self) -> str:
        """What the latest process has said so far."""
        return self._said.read_text()

    def trials(self) -> list[FrozenTrial]:
        try:
            storage = open_storage(self.url)
        except Exception:  # not there yet
            return []
        try:
            return optuna.load_study(storage=storage, study_name="drill").get_trials(deepcopy=False)
        except KeyError:
            return []
        finally:
            release(storage)

    def wait_for(self, finished: int) -> None:
        """Return when so many trials are finished."""
        while sum(trial.state.is_finished() for trial in self.trials()) < finished:
            time.sleep(0.2)

    def check_whole(self, wanted: list[FrozenTrial]) -> None:
        """No trial is lost, doubled or left; each has its items once; the proposals are the wanted ones."""
        found = self.trials()
        assert [trial.number for trial in found] == list(range(len(wanted)))
        assert {trial.state for trial in found} == {TrialState.COMPLETE}
        assert [(trial.params, trial.value) for trial in found] == [(trial.params, trial.value) for trial in wanted]
        storage = open_storage(self.url)
        try:
            metas = [get_all_artifact_meta(trial, storage=storage) for trial in found]
        finally:
            release(storage)
        assert [len(each) for each in metas] == [1] * len(wanted)


@pytest.fixture
def make_drill(tmp_path: Path, sources: list[dict[str, str]]) -> Callable[..., Drill]:
    """make_drill(url, **changes of the spec) -> a search in a folder of its own."""

    def make(url: str, **changes: Any) -> Drill:
        return Drill(tmp_path, sources, url, **changes)

    return make


@pytest.fixture(scope="session")
def sources() -> list[dict[str, str]]:
    models = Path(__file__).parents[2] / "examples" / "toy" / "models"
    return [{"name": name, "location": str(models / name)} for name in ("base", "reverse", "sort")]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sources: list[dict[str, str]]) -> list[FrozenTrial]:
    """The trials of a search that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    drill = Drill(folder, sources, f"sqlite:///{folder}/study.db")
    with drill.running() as process:
        said = drill.end_of(process)
        assert process.returncode == 0, said
    return drill.trials()
