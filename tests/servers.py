"""Database servers of the tests' own: started in a temporary folder on a free port of this machine, ended by id."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from evomerge.storage.opening import open_storage, release

PASSWORD = "{a}%@:/?#"  # has to be percent-encoded
START_SECONDS = 60.0


class Server:
    """A server that can be stopped, killed and started again. Its data stay.

    Args:
        command: of the server, which stays in the foreground.
        url: for evomerge, the password encoded.
        answers: raises while the server does not answer.
        hard: the signal that ends it without giving it time to clean up.
    """

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        answers: Callable[[], None],
        *,
        folder: Path,
        hard: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.url = url
        self._command = list(command)
        self._answers = answers
        self._folder = folder
        self._hard = hard
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._answers()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the server did not start: {said}") from error
                time.sleep(0.05)

    def kill(self) -> None:
        """End it without warning."""
        assert self._process is not None
        self._process.send_signal(self._hard)
        self._process.wait()

    def freeze(self) -> None:
        """Stop all its processes: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, number)


@contextlib.contextmanager
def folder_of(account: str) -> Iterator[tuple[Path, list[str]]]:
    """A folder that an account may write to, and the words before a command that is to run as it.

    PostgreSQL and MariaDB refuse to run as root.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"evomerge-{account}-", dir="/tmp"))  # pytest's own are for their owner only
    as_account: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, pwd.getpwnam(account).pw_uid)
        as_account = ["setpriv", f"--reuid={account}", f"--regid={account}", "--clear-groups"]
    try:
        yield folder, as_account
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needs(driver: str, extra: str, *programs: Path | str | None) -> None:
    """Skip where the server is not installed, or the driver."""
    if any(program is None or shutil.which(str(program)) is None for program in programs):
        pytest.skip(f"needs a server (Debian: {extra})")
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"needs the driver {driver} (pip install 'evomerge[{driver}]')")


def without_studies(server: Server) -> str:
    """The URL of a server, whose studies of earlier tests are deleted."""
    storage = open_storage(server.url)
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)
    release(storage)
    return server.url


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server.

    Raises:
        pytest.skip.Exception: it is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    needs("psycopg", "postgresql", *((found[-1] / "postgres", found[-1] / "initdb") if found else (None,)))
    import psycopg

    with folder_of("postgres") as (folder, as_postgres):
        (folder / "password").write_text(PASSWORD)
        os.chmod(folder / "password", 0o644)  # noqa: PTH101
        data, port = str(folder / "data"), free_port()
        create = [str(found[-1] / "initdb"), "-D", data, "-U", "evo", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run(
            [*as_postgres, *create, f"--pwfile={folder}/password"], check=True, capture_output=True, cwd=folder
        )
        listen = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-k", str(folder)]
        command = [*as_postgres, str(found[-1] / "postgres"), "-D", data, *listen]

        def answers() -> None:
            psycopg.connect(host="127.0.0.1", port=port, user="evo", password=PASSWORD, dbname="postgres").close()

        url = f"postgresql+psycopg://evo:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        # SIGQUIT is its immediate shutdown: nothing is written any more, and the next start recovers.
        with running(Server(command, url, answers, folder=folder, hard=signal.SIGQUIT)) as server:
            yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """A MariaDB server."""
    needs("pymysql", "mariadb-server", "mariadbd", "mariadb-install-db")
    import pymysql

    with folder_of("mysql") as (folder, as_mysql):
        port = free_port()
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/data", "--skip-test-db"]
        subprocess.run([*as_mysql, *install], check=True, capture_output=True, cwd=folder)
        (folder / "init.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS evomerge;\n"
            f"CREATE USER IF NOT EXISTS evo@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON evomerge.* TO evo@'127.0.0.1';\n"
        )
        os.chmod(folder / "init.sql", 0o644)  # noqa: PTH101
        listen = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder}/socket", "--skip-name-resolve"]
        command = ["mariadbd", "--no-defaults", f"--datadir={folder}/data", f"--init-file={folder}/init.sql", *listen]

        def answers() -> None:
            pymysql.connect(host="127.0.0.1", port=port, user="evo", password=PASSWORD, database="evomerge").close()

        url = f"mysql+pymysql://evo:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/evomerge"
        with running(Server([*as_mysql, *command], url, answers, folder=folder)) as server:
            yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    """A Redis server that keeps every entry that it has acknowledged."""
    needs("redis", "redis-server", "redis-server")
    import redis as client

    with folder_of("redis") as (folder, as_redis):
        port = free_port()
        (folder / "redis.conf").write_text(
            f'bind 127.0.0.1\nport {port}\nrequirepass "{PASSWORD}"\ndir {folder}\n'
            'appendonly yes\nappendfsync always\nsave ""\n'
        )
        os.chmod(folder / "redis.conf", 0o644)  # noqa: PTH101

        def answers() -> None:
            with contextlib.closing(client.Redis(port=port, password=PASSWORD, socket_timeout=5)) as connection:
                connection.ping()

        url = f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0"
        command = [*as_redis, "redis-server", str(folder / "redis.conf")]
        with running(Server(command, url, answers, folder=folder)) as server:
            yield server
