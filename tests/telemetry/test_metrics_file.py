"""The file of metrics: what is said when it cannot be written, and when it can be again."""

import logging
from types import SimpleNamespace

from evomerge.spec import load_spec
from evomerge.study.status import Status
from evomerge.study.tally import Tally
from evomerge.telemetry.run_observer import RunObserver

ENDED = Status(
    state="finished", finished=7, budget=7, failed=0, running=0, best=None, best_trial=None, trials_per_hour=None,
    seconds_left=None, run_seconds=1.0, workers={}, restarts=0, host="h", pid=1, updated=0.0,
)  # fmt: skip


def test_each_time_that_the_file_cannot_be_written_any_more_is_said_once_and_so_is_its_end(
    write_spec, tmp_path, caplog
):
    folder, moved = tmp_path / "metrics", tmp_path / "moved"
    search = SimpleNamespace(study=None, tally=Tally([]), latest_failure=None)
    observer = RunObserver(load_spec(write_spec(metrics={"textfile": "metrics/run.prom"})), search, None)
    caplog.set_level(logging.WARNING, logger="evomerge")
    said = []
    for blocked in (False, True, True, False, False, True):
        if blocked and folder.is_dir():
            folder.rename(moved)
            folder.write_text("a file in the place of the folder")
        elif not blocked and folder.is_file():
            folder.unlink()
            moved.rename(folder)
        caplog.clear()
        observer.status(ENDED, search)
        said.append([record.getMessage().partition(" to ")[0] for record in caplog.records])
    fails, works = ["metrics are not written"], ["metrics are written"]
    assert said == [[], fails, [], works, [], fails]
