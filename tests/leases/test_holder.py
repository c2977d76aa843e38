"""Who holds a study, as others see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from evomerge.clock import ManualClock
from evomerge.leases import holding_process, lock
from evomerge.leases.holder import Holder, holder_of
from evomerge.leases.journal_leases import lease_file
from evomerge.leases.lock import hold, lock_file
from evomerge.storage.attributes import WRITER
from evomerge.storage.opening import open_storage, release

URLS = ["sqlite:///{}/study.db", "journal:///{}/study.journal"]


@pytest.mark.parametrize("url", URLS)
def test_a_study_that_nobody_has_ever_held_has_no_holder(url: str, tmp_path: Path) -> None:
    assert holder_of(url.format(tmp_path), "s") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", URLS)
def test_a_file_is_held_by_the_living_process_until_it_lets_go(url: str, tmp_path: Path) -> None:
    url = url.format(tmp_path)
    with hold(url, "s") as held:
        holder = holder_of(url, "s")
        assert holder is not None
        assert (holder.alive, holder.process, holder.since) == ("yes", os.getpid(), held.held_since)
        assert (holder.refreshed is None) == url.startswith("sqlite")
    assert holder_of(url, "s") is None


@pytest.mark.parametrize("url", URLS)
def test_a_holder_that_was_killed_is_not_alive(url: str, tmp_path: Path) -> None:
    url = url.format(tmp_path)
    code = "import os, sys; from evomerge.leases.lock import hold\nwith hold(sys.argv[1], 's'): os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, url], check=False)
    assert killed.returncode == -9
    holder = holder_of(url, "s")
    assert holder is not None
    assert holder.alive == "no"
    with hold(url, "s"):
        assert holder_of(url, "s") != holder


@pytest.mark.parametrize("url", URLS)
def test_in_another_container_of_the_same_kernel_the_lock_tells(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url.format(tmp_path)
    taken = hold(url, "s")
    taken.__enter__()
    monkeypatch.setattr(holding_process.socket, "gethostname", lambda: "another container")
    holder = holder_of(url, "s")
    assert holder is not None
    assert holder.alive == "yes"
    name = "study.db" if url.startswith("sqlite") else "study.journal"
    texts = {
        path: path.read_text() for path in (lock_file(tmp_path / name), lease_file(tmp_path / name)) if path.exists()
    }
    taken.__exit__(None, None, None)
    for path, text in texts.items():
        path.write_text(text)  # as after a kill
    holder = holder_of(url, "s")
    assert holder is not None
    assert holder.alive == "no"


def test_a_look_at_the_lock_keeps_nobody_from_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    looks = [BlockingIOError(), BlockingIOError()]
    flock = lock.fcntl.flock

    def taken_for_an_instant(*arguments: object) -> None:
        if looks:
            raise looks.pop()
        flock(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lock.fcntl, "flock", taken_for_an_instant)
    with hold(url, "s"):
        assert looks == []


RECORD = {"id": "x", "pid": 7, "host": "elsewhere", "boot": "b", "start": "1", "since": "2020"}


@pytest.mark.parametrize(
    ("age", "alive"), [(-3600.0, "unknown"), (-30.0, "yes"), (30.0, "yes"), (300.0, "unknown"), (1e6, "no")]
)
@pytest.mark.parametrize("release_", ["this", "an earlier one"])
def test_on_another_machine_its_signs_of_life_tell(age: float, alive: str, release_: str, tmp_path: Path) -> None:
    url, clock = f"sqlite:///{tmp_path}/study.db", ManualClock()
    storage = open_storage(url)  # as on a server
    refreshed = clock.epoch - age
    times = {"expires": refreshed + 60.0} | ({"refreshed": refreshed} if release_ == "this" else {})
    optuna.create_study(storage=storage, study_name="s").set_user_attr(WRITER, RECORD | times)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.leases.holder.local_file", lambda url: None)
        holder = holder_of(url, "s", storage=storage, clock=clock)
        assert holder_of(url, "another", storage=storage, clock=clock) is None
        assert holder_of(url, "s", clock=clock) == holder
        optuna.load_study(storage=storage, study_name="s").set_user_attr(WRITER, {"number": 3})
        assert holder_of(url, "s", storage=storage, clock=clock) is None
    release(storage)
    assert holder == Holder(alive=alive, process=7, host="elsewhere", since="2020", refreshed=pytest.approx(age))


def test_odd_contents_of_a_lease_are_survived(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    for record in ({"id": 5, "pid": "x", "refreshed": "y", "since": 3}, {"id": [1]}):
        lease_file(journal).write_text(json.dumps(record))
        holder = holder_of(f"journal:///{journal}", "s")
        assert holder is not None
        assert (holder.alive, holder.process, holder.refreshed) == ("unknown", None, None)
