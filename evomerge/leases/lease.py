"""The lease of a study: the name of its one writer, which the writer keeps refreshing.

Three rules together keep two controllers from writing:

- Taking, refreshing and giving back replace the stored text only where it is still the one that was read.
- The holder writes while its latest refresh is younger than `silence - margin`; another one takes over after it has
  seen nothing new for `silence`. Each measures by its own monotonic clock: what wall clocks say does not matter.
- The storage itself refuses what a former holder writes, see `LeaseStore.guard`: a process that was stopped between
  looking at its clock and writing may be continued at any time later.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.errors import EvomergeError, Interrupted, StudyHeld
from evomerge.leases.holding_process import Process, described, has_ended, is_running, on_same_kernel, this_process

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["Lease", "LeaseStore", "LeaseTimes", "holder_in", "record_in", "taken_over"]


_ATTEMPTS: Final = 3


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """Times in seconds, by which a lease is refreshed and taken over.

    Attributes:
        refresh: between two signs of life of the holder.
        silence: without a sign of life, after which another one takes over.
        margin: before the end of `silence`, from which on the holder itself writes no more.
    """

    refresh: float = 5.0
    silence: float = 60.0
    margin: float = 10.0


class LeaseStore(Protocol):
    """The place of one lease, which is a JSON text."""

    def read(self) -> str | None:
        """The text as it is stored; None where there was never one."""

    def swap(self, old: str | None, new: str) -> bool:
        """Store `new` where `old` is stored, in one atomic step; False where something else is, or it is locked."""

    def guard(self, storage: BaseStorage, holder: str) -> None:
        """Refuse whatever is written through a storage from now on, unless the stored lease is that of `holder`.

        Looking at the lease and storing are one atomic step. A write that is refused raises StudyHeld.
        """


def record_in(text: str | None) -> dict[str, Any]:
    """The record in the text of a lease; an empty one where there is none."""
    try:
        record = json.loads(text or "null")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def holder_in(text: str | None) -> str | None:
    """The id of the holder in the text of a lease; None where nobody holds it."""
    holder = record_in(text).get("id")
    return str(holder) if holder else None


def taken_over(text: str | None) -> EvomergeError:
    """The error for a write of one who is not the holder in the text of a lease."""
    if text is None:  # nobody takes a lease away without leaving its number
        return Interrupted(
            "the lease of the study has vanished: the storage has lost it, or somebody has deleted it; nothing of this "
            "controller is stored any more, run the same command again to go on with what is there"
        )
    who = described(record_in(text))
    return StudyHeld(
        f"this controller was silent for too long, and the study is now held by {who}; nothing of this controller is "
        "stored any more"
    )


class Lease:
    """A lease as one process sees it. Its steps are repeated by others; nothing here waits or starts a thread.

    Args:
        what: is held, in words.
        locked: whether this process has the lock of the file as well: a holder that had it under the same kernel is
            gone, then.
        process: in whose name it is taken.

    Attributes:
        id: of this holder, never used again.
        number: of the takeover, 0 before it is taken; each one has a higher number than all before it.
        since: when it was taken, in ISO format.
        awaited: whose sign of life is waited for before it is taken, in words; "" where nobody's is.
    """

    def __init__(
        self,
        store: LeaseStore,
        *,
        what: str,
        times: LeaseTimes | None = None,
        locked: bool = False,
        process: Process | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.number = 0
        self.awaited = ""
        self.since = datetime.fromtimestamp(clock.time(), UTC).isoformat(timespec="seconds")
        self.times = times or LeaseTimes()
        self._store = store
        self._what = what
        self._locked = locked
        self._process = process or this_process()
        self._clock = clock
        self._turn = threading.Lock()
        self._beat = 0
        self._stored: str | None = None  # the text of which we know that it is, or was, stored
        self._refreshed = 0.0  # when the latest refresh that succeeded was sent
        self._watched: tuple[str | None, float] | None = None  # another one's text, and when it was seen first
        self._lost: EvomergeError | None = None

    def attempt(self) -> float | None:
        """Take the lease if nobody has it. After an error of the storage, attempt it again.

        Returns:
            None where it is taken, else the seconds after which to attempt it again.

        Raises:
            StudyHeld: another one has it, and gives signs of life.
        """
        text = self._store.read()
        record = record_in(text)
        if holder_in(text) == self.id:  # it was stored, although the storage reported an error
            self._stored = text
            return None
        if holder_in(text) is not None and not self._is_gone(record):
            if is_running(record) or (self._watched is not None and self._watched[0] != text):
                raise StudyHeld(f"{self._what} is held by {described(record)}; stop it, or wait until it ends")
            left = self._watch(text)
            if left > 0:
                self.awaited = f"{self._what} is held by {described(record)}, which may have ended"
                return min(self.times.refresh / 2, left)
        self.number = _number(record) + 1
        self._refreshed = self._clock.monotonic()
        mine = self._text()
        if self._store.swap(text, mine):
            self._stored = mine
            return None
        # What is there now is another one's, which was faster; or its process is stopped with the lease locked.
        self._watched = (text, self._clock.monotonic())
        return 0.0

    def refresh(self) -> None:
        """Give a sign of life.

        Raises:
            StudyHeld: another one has taken the lease over.
            Interrupted: the lease has vanished from the storage.
            Exception: whatever the storage raises; the lease is kept as long as `confirm` says so.
        """
        with self._turn:
            self._refresh()

    def confirm(self) -> None:
        """Return where this process surely has the lease, after a refresh if the latest one was too long ago.

        Raises:
            StudyHeld: another one has taken it over.
            Interrupted: it has vanished from the storage.
            StorageInternalError: a refresh is waiting for the storage, or took too long.
            Exception: whatever the storage raises to the refresh.
        """
        if self._lost is None and self._is_fresh():
            return
        if not self._turn.acquire(blocking=False):
            raise _away(f"{self._what}: no sign of life could be given for {self._age():.0f} s")
        try:
            self._refresh()
        finally:
            self._turn.release()
        if not self._is_fresh():
            raise _away(f"{self._what}: a sign of life took {self._age():.0f} s")

    def release(self) -> None:
        """Give the lease back, if it is still ours and no refresh is waiting for the storage.

        Raises:
            Exception: whatever the storage raises; others then have to wait for `silence`.
        """
        if self.number and self._lost is None and self._turn.acquire(blocking=False):
            try:
                self._swap(json.dumps({"number": self.number}))
            finally:
                self._turn.release()

    def guard(self, storage: BaseStorage) -> None:
        """Have a storage refuse what is written through it when another one has taken the lease over."""
        self._store.guard(storage, self.id)

    def _is_gone(self, record: Mapping[str, Any]) -> bool:
        """Whether the holder can surely not write any more. One that is silent may."""
        return has_ended(record) or (self._locked and bool(record.get("locked")) and on_same_kernel(record))

    def _watch(self, text: str | None) -> float:
        """Seconds for which another one has still to be silent."""
        now = self._clock.monotonic()
        if self._watched is None:
            self._watched = (text, now)
        return self._watched[1] + self.times.silence - now

    def _is_fresh(self) -> bool:
        return self._age() <= self.times.silence - self.times.margin

    def _age(self) -> float:
        return self._clock.monotonic() - self._refreshed

    def _refresh(self) -> None:
        if self._lost is None:
            sent = self._clock.monotonic()
            self._swap(self._text())
            self._refreshed = sent
        if self._lost is not None:
            raise self._lost

    def _swap(self, text: str) -> None:
        """Store a text in the place of our own, or notice who has taken it."""
        for _ in range(_ATTEMPTS):
            if self._store.swap(self._stored, text):
                self._stored = text
                return
            # An earlier text of ours may be stored, although the storage reported an error for it.
            current = self._store.read()
            if holder_in(current) != self.id:
                self._lost = taken_over(current)
                return
            self._stored = current
        raise _away(f"{self._what}: its lease is ours, and cannot be replaced")

    def _text(self) -> str:
        self._beat += 1
        now = self._clock.time()
        record = {
            "id": self.id,
            "number": self.number,
            "beat": self._beat,
            **asdict(self._process),
            "since": self.since,
            "refreshed": now,
            "expires": now + self.times.silence,  # for earlier releases, which looked at it
            "locked": self._locked,
        }
        return json.dumps(record)


def _number(record: Mapping[str, Any]) -> int:
    """Number of the latest takeover; 0 in leases of earlier releases, which had none."""
    number = record.get("number")
    return number if isinstance(number, int) else 0


def _away(reason: str) -> Exception:
    """The error of a storage that does not answer."""
    from optuna.exceptions import StorageInternalError  # who only looks at a lease does without Optuna

    return StorageInternalError(reason)
