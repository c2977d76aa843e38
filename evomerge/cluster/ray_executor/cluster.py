"""The Ray cluster of a run: one that is started for it and lives as long, or one that is joined."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import ray

from evomerge.cluster.address import refuse_unanswered
from evomerge.cluster.environment import LOOPBACK, environment, without
from evomerge.cluster.open_cluster import answers_anyone
from evomerge.cluster.ray_executor.connection import ClusterNodes, Connection
from evomerge.errors import Interrupted, InvalidInput
from evomerge.messages import last_line

__all__ = ["LOCAL", "Cluster", "Size"]

LOCAL: Final = "local"
OPEN_SECONDS: Final = 180.0  # in which a cluster is started or joined
CLOSE_SECONDS: Final = 15.0
LOCAL_SILENCE, JOINED_SILENCE = 5.0, 30.0  # seconds after which a head that does not answer is gone; a joined one may
# be restarted by its supervisor
MODE: Final = "RAY_AUTH_MODE"
TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MAX_RESTARTS: Final = 2  # of a local cluster, without an outcome between them
LONGEST_SOCKET: Final = 103 if sys.platform == "darwin" else 107  # bytes of the path of a Unix socket
_SOCKET: Final = "ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # like Ray's longest one


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the cluster that is started for so many workers, each of which wants these resources."""

    count: int
    cpus: int
    gpus: float
    resources: Mapping[str, float]

    def arguments(self) -> dict[str, Any]:
        """Arguments of `ray.init`."""
        return {
            "num_cpus": self.count * self.cpus,
            "num_gpus": int(-(-self.count * self.gpus // 1)),
            "resources": {name: amount * self.count for name, amount in self.resources.items()},
        }


class Cluster:
    """The cluster at an address. A local one that breaks down is started again; a joined one is not ours to mend.

    Args:
        allow_open: join a cluster that takes jobs from anyone.
        secrets: no process that is started here gets an environment variable with one of them.
        check: called while Ray starts; may raise.

    Raises:
        InvalidInput: none can be started, with the reason; or the address is wrong, or its cluster takes jobs from
            anyone.
        Interrupted: no cluster answers.
    """

    def __init__(
        self,
        address: str,
        size: Size,
        *,
        worker_output: bool = False,
        allow_open: bool = False,
        secrets: Collection[str] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._size = size
        self._worker_output = worker_output
        self._allow_open = allow_open
        self._secrets = secrets
        self._token = token_hex(32)
        self._check = check
        self._owned = not ray.is_initialized()
        self._is_local = address == LOCAL and self._owned
        if self._owned and not self._is_local:
            refuse_unanswered(address)
        self._folder = _short_folder() if self._is_local else None
        self._restarts = 0
        try:
            self._connection = self._open()
        except BaseException:
            self._remove_folder()
            raise

    @property
    def view(self) -> ClusterNodes:
        return self._connection.view

    @property
    def is_exposed(self) -> bool:
        """Whether a local cluster listens on all interfaces: Ray was imported before it could be told not to."""
        return self._is_local and not str(ray.util.get_node_ip_address()).startswith("127.")

    @property
    def answers(self) -> bool:
        """Whether its head answered just now: only then it is asked for anything."""
        return self._connection.answers

    def trouble(self) -> str | None:
        """The reason why it is lost; None while it is not."""
        return self._connection.trouble()

    def prove(self) -> None:
        """Note that an outcome came from it, since it was started."""
        self._restarts = 0

    def restart(self, reason: str) -> None:
        """Start a local cluster again.

        Raises:
            Interrupted: it is a joined one, or has broken down too often.
        """
        if not self._is_local:
            where = "this process's" if self._address == LOCAL else repr(self._address)
            raise Interrupted(f"the Ray cluster {where} is lost: {reason}; run the same command again when it is back")
        self._restarts += 1
        if self._restarts > MAX_RESTARTS or not self._connection.close(CLOSE_SECONDS):
            raise Interrupted(f"Ray broke down {self._restarts} times: {reason}; run the same command again to go on")
        try:
            self._connection = self._open()
        except InvalidInput as error:
            raise Interrupted(f"Ray broke down: {reason}. {error}") from error

    def close(self) -> None:
        self._connection.close(CLOSE_SECONDS)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> Connection:
        connection = Connection(
            self._connect, self._disconnect, silence=LOCAL_SILENCE if self._is_local else JOINED_SILENCE
        )
        end = time.monotonic() + OPEN_SECONDS
        try:
            while not connection.wait(0.2):
                self._check()
                if time.monotonic() > end:
                    raise self._refusal(f"nothing happened in {OPEN_SECONDS:g} s")
        except BaseException:
            connection.close(0.0)
            raise
        if connection.error is not None:
            connection.close(CLOSE_SECONDS)
            if isinstance(connection.error, InvalidInput):
                raise connection.error
            raise self._refusal(f"{type(connection.error).__name__}: {last_line(connection.error)}")
        return connection

    def _refusal(self, reason: str) -> InvalidInput:
        if self._address != LOCAL:
            return InvalidInput(f"no Ray cluster answers at {self._address!r}: {reason}")
        return InvalidInput(
            f"Ray cannot be started: {reason}; mend that, or score in this process: --ray none",
        )

    def _connect(self) -> None:
        if not self._owned:
            return
        arguments: dict[str, Any] = {}
        changes: dict[str, str | None] = {**without(self._secrets)}
        if self._is_local:
            arguments = {"include_dashboard": False, "_temp_dir": self._folder, **self._size.arguments()}
            changes |= LOOPBACK | self._own_token()
        with _quiet(), environment(changes):
            ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # it may know another one
            context = ray.init(
                address=self._address,
                log_to_driver=self._worker_output,
                logging_level="error",
                configure_logging=False,
                **arguments,
            )
        if not self._is_local and not self._allow_open:
            _refuse_open(self._address, str(context.dashboard_url or ""))

    def _own_token(self) -> dict[str, str | None]:
        """A token of this run's own, which is in no file, unless the user has set one, or has switched tokens off."""
        mode = os.environ.get(MODE)
        if any(os.environ.get(name) for name in TOKENS) or (mode or "token") != "token":
            return {}
        return {TOKENS[0]: self._token, MODE: mode}  # Ray sets the mode for its processes, and would leave it so

    def _disconnect(self) -> None:
        if self._owned:
            ray.shutdown()


def _refuse_open(address: str, dashboard: str) -> None:
    """Refuse a cluster that takes jobs from anyone.

    Raises:
        InvalidInput: it does.
    """
    if dashboard and answers_anyone(dashboard):
        raise InvalidInput(
            f"the Ray cluster at {address!r} runs the code of anyone who reaches http://{dashboard}, which asks for no "
            "token; start it with RAY_AUTH_MODE=token, or, where nobody else reaches it, write "
            "workers: {allow_open_cluster: true}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray's remarks on what it starts; its errors are raised."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _short_folder() -> str | None:
    """A temporary folder for a local cluster where the system's one makes the paths of sockets too long.

    Raises:
        InvalidInput: there is none.
    """
    system = os.environ.get("TMPDIR") if sys.platform == "linux" else None
    usual = os.environ.get("RAY_TMPDIR") or system or "/tmp"
    if sys.platform == "win32" or _fits(usual):
        return None
    try:
        return tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    except OSError as error:
        raise InvalidInput(
            f"the temporary folder {usual!r} is too long for Ray, whose sockets may have paths of {LONGEST_SOCKET} "
            f"bytes, and /tmp cannot be used ({error.strerror}); set RAY_TMPDIR to a short folder, or use --ray none"
        ) from None


def _fits(folder: str) -> bool:
    return len(os.fsencode(Path(folder) / _SOCKET)) <= LONGEST_SOCKET
