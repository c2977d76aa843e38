"""Processes that write to studies: told apart from later ones with the same number, and named in messages."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Process", "described", "has_ended", "is_running", "on_same_kernel", "this_process"]


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, told apart from a later one with the same number by the time of its start.

    Attributes:
        boot: scope of the number: this run of the machine, and the container in it; "" where the system does not tell.
        start: in clock ticks since boot; "" where the system does not tell.
    """

    host: str
    boot: str
    pid: int
    start: str


def this_process() -> Process:
    """The process that asks."""
    return Process(host=socket.gethostname(), boot=_boot(), pid=os.getpid(), start=_start(os.getpid()))


def is_running(record: Mapping[str, Any]) -> bool:
    """Whether a record names a process of this machine and container that runs, or was stopped and may run again."""
    return _is_here(record) and bool(record.get("start")) and _start(_pid(record)) == record.get("start")


def has_ended(record: Mapping[str, Any]) -> bool:
    """Whether a record names a process of this machine and container that runs no more. Of others nobody knows."""
    return _is_here(record) and bool(record.get("start")) and _start(_pid(record)) != record.get("start")


def on_same_kernel(record: Mapping[str, Any]) -> bool:
    """Whether a record names a process under the same kernel, in whatever container, so that both share file locks."""
    boot, mine = str(record.get("boot", "")).partition(" ")[0], _boot().partition(" ")[0]
    return boot == mine if mine else record.get("host") == socket.gethostname()


def described(record: Mapping[str, Any]) -> str:
    """The process of a record, in words."""
    if not record.get("pid"):
        return "another controller"
    return f"the controller with process {record.get('pid')} on {record.get('host')}, since {record.get('since')}"


def _is_here(record: Mapping[str, Any]) -> bool:
    return (record.get("host"), record.get("boot")) == (socket.gethostname(), _boot())


def _pid(record: Mapping[str, Any]) -> int:
    pid = record.get("pid")
    return pid if isinstance(pid, int) else 0


@cache
def _boot() -> str:
    try:
        return f"{_read('/proc/sys/kernel/random/boot_id').strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _start(pid: int) -> str:
    # The second field is the program's name in parentheses and may hold anything; the start is number 22.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X") else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
