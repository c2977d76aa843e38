"""Parts of several drills: proposals of a search that nothing happened to, a search in its own process, its row."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState

sys.path.append(str(Path(__file__).parent))

from drill_rows import Row, storage_of

from evomerge.storage import attributes
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

    def __init__(self, folder: Path, sources: list[dict[str, Any]], url: str, row: Row, **changes: Any) -> None:
        self.url = url
        self.row = row
        self.spec = folder / "search.yaml"
        self.artifacts = folder / "items"
        (folder / "url").write_text(url)
        content = {**SPEC, "sources": sources, "storage": "file:url", "artifacts": str(self.artifacts), **changes}
        self.spec.write_text(yaml.safe_dump(content, sort_keys=False))
        self._folder = folder
        self._said = folder / "said"

    def command(self, ray: str) -> list[str]:
        return [sys.executable, "-m", "evomerge.cli", "run", str(self.spec), "--ray", ray, "--json"]

    @contextmanager
    def running(self, ray: str = "none", inside: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """The search as a process, started by another command where `inside` names one."""
        command = [*inside, *self.command(ray)]
        with self._said.open("w") as log:
            process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.poll()
            if process.returncode is not None:
                self.row.exit_codes.append(process.returncode)
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

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def signal(self, process: subprocess.Popen[bytes], number: int, timeout: float | None = None) -> str:
        """Send the process a signal. Returns what it has said when it has ended; its row has how long that took."""
        process.send_signal(number)
        sent = time.monotonic()
        said = self.end_of(process, timeout)
        self.row.seconds_to_end = max(time.monotonic() - sent, self.row.seconds_to_end or 0.0)
        return said

    def trials(self, study: str = "drill") -> list[FrozenTrial]:
        try:
            storage = open_storage(self.url)
        except Exception:  # not there yet
            return []
        try:
            return optuna.load_study(storage=storage, study_name=study).get_trials(deepcopy=False)
        except KeyError:
            return []
        finally:
            release(storage)

    def wait_for(self, finished: int, study: str = "drill") -> None:
        """Return when so many trials are finished."""
        while sum(trial.state.is_finished() for trial in self.trials(study)) < finished:
            time.sleep(0.2)

    def count(self, wanted: int) -> list[FrozenTrial]:
        """All trials. How many of the wanted results are lost, and how many were told twice, is noted in the row."""
        found = self.trials()
        told = [trial.user_attrs[attributes.TELL] for trial in found if trial.state is TrialState.COMPLETE]
        self.row.count(range(wanted), told)
        return found

    def check_whole(self, wanted: list[FrozenTrial]) -> None:
        """No trial is lost, doubled or left; each has its items once; the proposals are the wanted ones."""
        found = self.count(len(wanted))
        assert [trial.number for trial in found] == list(range(len(wanted)))
        assert {trial.state for trial in found} == {TrialState.COMPLETE}
        assert [(trial.params, trial.value) for trial in found] == [(trial.params, trial.value) for trial in wanted]
        assert (self.row.lost, self.row.doubled) == (0, 0)
        storage = open_storage(self.url)
        try:
            metas = [get_all_artifact_meta(trial, storage=storage) for trial in found]
        finally:
            release(storage)
        assert [len(each) for each in metas] == [1] * len(wanted)


@pytest.fixture(autouse=True)
def row(request: pytest.FixtureRequest) -> Row:
    """A row for what this try finds. Its words are those of the test's marker, with the parameters filled in."""
    words = next((mark.args[0] for mark in request.node.iter_markers("drill") if mark.args), "")
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    storages = [storage_of(each) for each in params.values() if isinstance(each, str)]
    return Row(cell=words.format(**params), storage=next((each for each in storages if each is not None), None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Append the row of a drill to the file that `EVOMERGE_DRILL_ROWS` names."""
    report: Any = yield
    file = os.environ.get("EVOMERGE_DRILL_ROWS")
    if file and report.when == "call" and not report.skipped and (row := item.funcargs["row"]).cell:
        row.failed, row.seconds = int(report.failed), report.duration
        row.append_to(Path(file))
    return report


@pytest.fixture
def make_drill(tmp_path: Path, sources: list[dict[str, str]], row: Row) -> Callable[..., Drill]:
    """make_drill(url, **changes of the spec) -> a search in a folder of its own."""

    def make(url: str, *, folder: str = "", **changes: Any) -> Drill:
        row.storage = row.storage or storage_of(url)
        (tmp_path / folder).mkdir(exist_ok=True)
        return Drill(tmp_path / folder, changes.pop("sources", sources), url, row, **changes)

    return make


@pytest.fixture(scope="session")
def sources() -> list[dict[str, str]]:
    models = Path(__file__).parents[2] / "examples" / "toy" / "models"
    return [{"name": name, "location": str(models / name)} for name in ("base", "reverse", "sort")]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sources: list[dict[str, str]]) -> list[FrozenTrial]:
    """The trials of a search that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    drill = Drill(folder, sources, f"sqlite:///{folder}/study.db", Row(cell="none"))
    with drill.running() as process:
        said = drill.end_of(process)
        assert process.returncode == 0, said
    return drill.trials()
