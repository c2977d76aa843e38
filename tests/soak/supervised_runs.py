"""A supervisor of `evomerge run`: it starts the command again until it ends with 0, and keeps a record of every run."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fault_plan import BOTH_KILLED, CONTROLLER_KILLED, CONTROLLER_TERMINATED, DATABASE_FROZEN, DATABASE_RESTARTED, Fault

if TYPE_CHECKING:
    from servers import Server

FINISHED, INTERRUPTED, KILLED = 0, 3, -signal.SIGKILL
PAUSE_SECONDS = 1.0  # between the end of a run and the next one
POLL_SECONDS = 0.2


@dataclass(kw_only=True)
class Run:
    """One process of the controller.

    Attributes:
        began, ended: seconds since the soak began.
        allowed: exit codes that the contract allows, after what has happened to it.
        peak_mb: peak of its resident memory.
        seconds_to_end: from the signal that it was sent to its end.
    """

    began: float
    allowed: set[int]
    ended: float = 0.0
    exit_code: int | None = None
    peak_mb: float = 0.0
    seconds_to_end: float | None = None

    @property
    def is_by_contract(self) -> bool:
        return self.exit_code in self.allowed


class SupervisedRuns:
    """Runs of one command, one after another.

    Args:
        command: of the controller.
        database: that it writes to.
        log: file that gets all that it says.
    """

    def __init__(self, command: list[str], database: Server, log: Path) -> None:
        self.runs: list[Run] = []
        self._command = command
        self._database = database
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # of the process and its run, which faults reach from another thread
        self._is_away = False  # the database
        self._began = time.monotonic()

    def until_finished(self, seconds: float) -> bool:
        """Start runs until one ends with 0. False where that takes longer than so many seconds, or cannot go on."""
        while self._now() < seconds:
            run = self._one(seconds)
            if run.exit_code == FINISHED:
                return True
            if run.exit_code not in (INTERRUPTED, KILLED):
                return False
            time.sleep(PAUSE_SECONDS)
        return False

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _one(self, seconds: float) -> Run:
        allowed = {FINISHED, INTERRUPTED} if self._is_away else {FINISHED}
        run = Run(began=self._now(), allowed=allowed)
        with self._lock, self._log.open("ab") as log:
            self._process = process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._log.parent)
            self.runs.append(run)
        while process.poll() is None:
            run.peak_mb = max(run.peak_mb, peak_mb(process.pid))
            if self._now() > seconds:  # that is no fault of it
                run.allowed.add(KILLED)
                process.kill()
            time.sleep(POLL_SECONDS)
        with self._lock:
            run.exit_code, run.ended = process.returncode, self._now()
            self._process = None
        return run

    def meet(self, fault: Fault) -> str | None:
        """Let a fault happen. Returns what it hit; None where there was nothing to hit."""
        if fault.kind == DATABASE_RESTARTED:
            return self._away(fault)
        if fault.kind == DATABASE_FROZEN:
            self._database.freeze()
            time.sleep(fault.lasts)
            self._database.thaw()
            return f"for {fault.lasts:.1f} s"
        if fault.kind == CONTROLLER_TERMINATED:
            return self._signal(signal.SIGTERM, INTERRUPTED)
        if fault.kind == CONTROLLER_KILLED:
            return self._signal(signal.SIGKILL, KILLED)
        assert fault.kind == BOTH_KILLED
        return self._away(fault, kill=True)

    def _away(self, fault: Fault, *, kill: bool = False) -> str:
        self._is_away = True
        self._database.kill()
        hit = self._signal(signal.SIGKILL, KILLED) if kill else None
        time.sleep(fault.lasts)
        self._database.start()
        self._is_away = False
        return f"for {fault.lasts:.1f} s{'' if hit is None else f', {hit}'}"

    def _signal(self, number: signal.Signals, exit_code: int) -> str | None:
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                return None
            run = self.runs[-1]
            run.allowed.add(exit_code)
            process.send_signal(number)
        sent = time.monotonic()
        process.wait()
        run.seconds_to_end = time.monotonic() - sent
        return f"process {process.pid}, which ended after {run.seconds_to_end:.1f} s"


def peak_mb(process: int) -> float:
    """Peak of the resident memory of a living process in MB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return 0.0 if found is None else int(found[1]) / 1000
