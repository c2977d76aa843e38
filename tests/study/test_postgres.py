"""A real PostgreSQL server as the study's storage."""

import glob
import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from evomerge import load_spec, run_search
from evomerge.spec import override
from evomerge.storage.opening import release


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server of our own, with a password that has to be encoded."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))  # noqa: PTH207
    binaries = Path(found[-1]) if found else None
    if binaries is None or not (binaries / "initdb").exists():
        pytest.skip("needs a PostgreSQL server (Debian: postgresql)")
    pytest.importorskip("psycopg", reason="needs the driver psycopg (the extra postgres)")
    folder = Path("/tmp") / f"evomerge-postgres-{os.getpid()}"
    folder.mkdir()
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, pwd.getpwnam("postgres").pw_uid)
    (folder / "password").write_text("{a}%@:")
    os.chmod(folder / "password", 0o644)  # noqa: PTH101
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def control(*arguments):
        subprocess.run([*as_user, *arguments], check=True, capture_output=True, cwd=folder)

    data, log = str(folder / "data"), str(folder / "log")
    control(str(binaries / "initdb"), "-D", data, "-U", "evo", "--auth=scram-sha-256", f"--pwfile={folder}/password")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control(str(binaries / "pg_ctl"), "-D", data, "-o", options, "-l", log, "-w", "start")
    try:
        yield f"postgresql+psycopg://evo:%7Ba%7D%25%40%3A@127.0.0.1:{port}/postgres"
    finally:
        control(str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_a_search_lives_in_postgresql_and_goes_on_there(server, write_spec, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_TEST_STORAGE", server)
    path = write_spec(storage="env:EVOMERGE_TEST_STORAGE")
    run_search(override(load_spec(path), trials=2), ray="none")
    study = run_search(override(load_spec(path), trials=4), ray="none")
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 4
    release(study._storage)
    assert (tmp_path / "runs" / "sim" / "artifacts").is_dir()
    command = [sys.executable, "-m", "evomerge.cli", "leaderboard", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "postgresql+psycopg://***/postgres" in printed
    assert "%7Ba" not in printed
    command = [sys.executable, "-m", "evomerge.cli", "export", str(path), "--storage", server, "--out", "merge"]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    card = (tmp_path / "merge" / "README.md").read_text()
    assert "--storage" in card
    assert "%7Ba" not in card
