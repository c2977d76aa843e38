"""The protocol of the lease, step by step on a clock that the test moves: one writer, whatever fails."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError

from evomerge.clock import Clock, ManualClock
from evomerge.errors import Interrupted, StudyHeld
from evomerge.leases.holding_process import Process, this_process
from evomerge.leases.lease import Lease, LeaseStore, holder_in, record_in


class MemoryStore:
    """A `LeaseStore` in memory.

    Args:
        trouble: called with "read", "swap" (before the text is stored) and "stored" (after it); may raise.
    """

    def __init__(self, text: str | None = None, trouble: Callable[[str], None] = lambda step: None) -> None:
        self.text = text
        self.trouble = trouble
        self.guarded: list[Any] = []

    def read(self) -> str | None:
        self.trouble("read")
        return self.text

    def swap(self, old: str | None, new: str) -> bool:
        self.trouble("swap")
        if self.text != old:
            return False
        self.text = new
        self.trouble("stored")
        return True

    def guard(self, storage: Any, holder: str) -> None:
        self.guarded.append((storage, holder))


class Shared:
    """One controller's view of a store that several share, with trouble of its own."""

    def __init__(self, store: MemoryStore, trouble: Callable[[str], None]) -> None:
        self._store = store
        self._trouble = trouble

    def read(self) -> str | None:
        self._trouble("read")
        return self._store.read()

    def swap(self, old: str | None, new: str) -> bool:
        self._trouble("swap")
        stored = self._store.swap(old, new)
        self._trouble("stored")
        return stored

    def guard(self, storage: Any, holder: str) -> None:
        self._store.guard(storage, holder)


def on_host(host: str) -> Process:
    """A process of another machine, of which nobody can tell whether it runs."""
    return Process(host=host, boot=f"boot of {host}", pid=1, start="1")


def lease_on(host: str, store: LeaseStore, clock: Clock, **options: Any) -> Lease:
    """A lease as a controller of another machine sees it."""
    return Lease(store, what="the study 's'", process=on_host(host), clock=clock, **options)


def take(lease: Lease, clock: ManualClock) -> float:
    """Seconds that it takes to take a lease."""
    begun = clock.seconds
    while (wait := lease.attempt()) is not None:
        clock.sleep(wait)
    return clock.seconds - begun


def record(process: Process, **changes: object) -> str:
    return json.dumps({"id": "x", "number": 7, **asdict(process), "since": "2020", "expires": 0.0, **changes})


@pytest.mark.parametrize("text", [None, "null", '{"number": 7}', "", "[1]", "no JSON"])
def test_a_lease_that_nobody_has_is_taken_at_once(text: str | None) -> None:
    clock, store = ManualClock(), MemoryStore(text)
    lease = lease_on("here", store, clock)
    assert take(lease, clock) == 0.0
    assert holder_in(store.text) == lease.id
    assert record_in(store.text)["number"] == lease.number == (8 if text == '{"number": 7}' else 1)
    lease.confirm()


def test_a_lease_that_was_given_back_is_free_and_its_number_goes_on() -> None:
    clock, store = ManualClock(), MemoryStore()
    numbers = []
    for host in "abc":
        lease = lease_on(host, store, clock)
        assert take(lease, clock) == 0.0
        numbers.append(lease.number)
        lease.release()
        assert holder_in(store.text) is None
    assert numbers == [1, 2, 3]


@pytest.mark.parametrize("minutes", [-1e6, -16, 0, 16, 1e6])
def test_another_machine_is_taken_over_after_silence_whatever_the_clocks_say(minutes: float) -> None:
    clock = ManualClock()
    expires = clock.epoch + 60 * minutes
    store = MemoryStore(record(on_host("elsewhere"), expires=expires, refreshed=expires - 60))
    lease = lease_on("here", store, clock)
    assert take(lease, clock) == lease.times.silence
    assert lease.number == 8


@pytest.mark.parametrize("minutes", [-16, 0, 16])
def test_one_that_refreshes_is_not_taken_over_whatever_the_clocks_say(minutes: float) -> None:
    ours, theirs, store = ManualClock(), ManualClock(), MemoryStore()
    theirs.epoch += 60 * minutes
    holder, rival = lease_on("elsewhere", store, theirs), lease_on("here", store, ours)
    take(holder, theirs)
    assert rival.attempt() is not None
    ours.advance(59.0)
    theirs.advance(59.0)
    holder.refresh()
    with pytest.raises(StudyHeld, match="process 1 on elsewhere") as error:
        rival.attempt()
    assert error.value.exit_code == 6
    holder.confirm()


def test_a_lease_of_an_earlier_release_without_a_number_is_understood() -> None:
    clock = ManualClock()
    store = MemoryStore(record(on_host("elsewhere"), number=None))
    lease = lease_on("here", store, clock)
    assert take(lease, clock) == lease.times.silence
    assert lease.number == 1


def test_a_process_of_this_machine_that_runs_is_held_and_one_that_ended_is_not() -> None:
    clock, me = ManualClock(), this_process()
    with pytest.raises(StudyHeld, match=rf"process {me.pid} on"):
        Lease(MemoryStore(record(me)), what="s", clock=clock).attempt()
    ended = replace(me, start="1")  # an earlier one with our number
    assert Lease(MemoryStore(record(ended)), what="s", clock=clock).attempt() is None


def test_who_has_the_lock_of_the_file_need_not_wait_for_one_that_had_it_under_the_same_kernel() -> None:
    clock, me = ManualClock(), this_process()
    container = Process(host="container", boot=f"{me.boot.partition(' ')[0]} pid:[1]", pid=1, start="1")
    locked = MemoryStore(record(container, locked=True))
    assert Lease(locked, what="s", locked=True, clock=clock).attempt() is None
    for text, mine in [(record(container, locked=True), False), (record(container), True)]:
        assert Lease(MemoryStore(text), what="s", locked=mine, clock=clock).attempt() is not None
    elsewhere = MemoryStore(record(on_host("elsewhere"), locked=True))
    assert Lease(elsewhere, what="s", locked=True, clock=clock).attempt() is not None


def test_a_holder_asks_nobody_while_its_latest_sign_of_life_is_young() -> None:
    clock, store = ManualClock(), MemoryStore()
    lease = lease_on("here", store, clock)
    take(lease, clock)
    steps: list[str] = []
    store.trouble = steps.append
    clock.advance(lease.times.silence - lease.times.margin)
    lease.confirm()
    assert steps == []
    clock.advance(0.1)
    lease.confirm()  # too old: one more sign of life, at once
    assert steps == ["swap", "stored"]
    clock.advance(lease.times.silence - lease.times.margin)
    lease.confirm()
    assert steps == ["swap", "stored"]


def test_a_holder_that_was_silent_may_not_write_while_it_cannot_ask() -> None:
    clock, store = ManualClock(), MemoryStore()
    lease = lease_on("here", store, clock)
    take(lease, clock)

    def away(step: str) -> None:
        raise ConnectionError("away")

    store.trouble = away
    with pytest.raises(ConnectionError):
        lease.refresh()
    clock.advance(50.0)
    lease.confirm()
    clock.advance(0.1)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            lease.confirm()
    store.trouble = lambda step: None
    lease.confirm()  # nobody has taken it meanwhile


def test_a_sign_of_life_counts_from_when_it_was_sent() -> None:
    clock, store = ManualClock(), MemoryStore()
    lease = lease_on("here", store, clock)
    take(lease, clock)

    def slow(step: str) -> None:
        if step == "swap":
            clock.advance(40.0)

    store.trouble = slow
    lease.refresh()
    store.trouble = lambda step: None
    clock.advance(10.1)
    stored = store.text
    lease.confirm()
    assert store.text != stored  # it had to give another one
    store.trouble = lambda step: clock.advance(60.0)
    clock.advance(60.0)
    with pytest.raises(StorageInternalError, match="a sign of life took"):
        lease.confirm()


def test_a_refresh_that_waits_for_the_storage_refuses_writes_without_waiting() -> None:
    clock, store = ManualClock(), MemoryStore()
    lease = lease_on("here", store, clock)
    take(lease, clock)
    seen = []

    def hang(step: str) -> None:  # in the middle of a refresh, the thread that writes looks at the lease
        lease.confirm()
        clock.advance(60.0)
        with pytest.raises(StorageInternalError, match="no sign of life could be given for 60 s"):
            lease.confirm()
        lease.release()  # gives up at once, too
        seen.append(step)
        store.trouble = lambda step: None

    store.trouble = hang
    lease.refresh()
    assert seen == ["swap"]
    assert holder_in(store.text) == lease.id


def test_one_that_was_taken_over_knows_it_for_ever_and_leaves_the_other_alone() -> None:
    clock, store = ManualClock(), MemoryStore()
    former, other = lease_on("here", store, clock), lease_on("elsewhere", store, clock)
    take(former, clock)
    assert take(other, clock) == other.times.silence
    for step in (former.refresh, former.confirm, former.refresh):
        with pytest.raises(StudyHeld, match="now held by the controller with process 1 on elsewhere") as error:
            step()
        assert error.value.exit_code == 6
    former.release()
    assert holder_in(store.text) == other.id
    other.confirm()


def test_a_lease_that_vanishes_ends_the_run_as_one_that_can_be_resumed() -> None:
    clock, store = ManualClock(), MemoryStore()
    lease = lease_on("here", store, clock)
    take(lease, clock)
    store.text = None
    for step in (lease.refresh, lease.confirm):
        with pytest.raises(Interrupted, match="has vanished") as error:
            step()
        assert error.value.exit_code == 3
    lease.release()
    assert store.text is None


@pytest.mark.parametrize("failing", ["swap", "stored"])
def test_a_step_whose_answer_was_lost_is_repeated_whether_it_was_stored_or_not(failing: str) -> None:
    clock, store = ManualClock(), MemoryStore()
    lease = lease_on("here", store, clock)

    def lose(step: str) -> None:
        if step == failing:
            raise ConnectionError("no answer")

    for step in (lease.attempt, lease.refresh, lease.release):
        store.trouble = lose
        with pytest.raises(ConnectionError):
            step()
        store.trouble = lambda step: None
        step()
        if step != lease.release:
            lease.confirm()
            assert holder_in(store.text) == lease.id
    assert holder_in(store.text) is None


SITUATIONS = {
    "never held": None,
    "given back": '{"number": 3}',
    "its holder ended": record(replace(this_process(), start="1")),
    "its holder is silent": record(on_host("silent")),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_of_two_that_come_at_once_exactly_one_has_it(situation: str) -> None:
    for seed in range(200):
        assert winners_of_two(random.Random(seed), SITUATIONS[situation]) == 1, f"seed {seed}"


def winners_of_two(draw: random.Random, text: str | None) -> int:
    """Two candidates whose steps interrupt each other anywhere, over a storage that loses requests and answers."""
    clock, store = ManualClock(), MemoryStore(text)
    candidates: dict[str, Lease] = {}
    busy: list[str] = []
    decided: dict[str, bool] = {}

    def step(name: str) -> None:
        if name in busy or name in decided:
            return
        busy.append(name)
        try:
            if candidates[name].attempt() is None:
                decided[name] = True
        except StudyHeld:
            decided[name] = False
        except ConnectionError:
            pass  # tried again
        finally:
            busy.remove(name)

    def trouble(name: str) -> None:
        if draw.random() < 0.5:
            step("b" if name == "a" else "a")
        if draw.random() < 0.2:
            raise ConnectionError
        clock.epoch += draw.uniform(-1e4, 1e4)

    for name in "ab":
        view = Shared(store, lambda step, name=name: trouble(name))
        candidates[name] = lease_on(name, view, clock)
    for _ in range(300):
        if len(decided) == 2:
            break
        step(draw.choice("ab"))
        clock.advance(draw.uniform(0.0, 5.0))
        for name, won in list(decided.items()):
            if won:
                with suppress(ConnectionError):
                    candidates[name].refresh()
    assert len(decided) == 2
    won = [name for name in "ab" if decided[name]]
    assert [name for name in "ab" if holder_in(store.text) == candidates[name].id] == won
    return len(won)


def test_never_do_two_write_at_once_whatever_stops_hangs_or_is_cut_off() -> None:
    takeovers = sum(takeovers_in(random.Random(seed)) for seed in range(60))
    assert takeovers > 120


def takeovers_in(draw: random.Random) -> int:
    """Half an hour of three machines that stop, continue, lose the storage, and set their wall clocks."""
    clock, store = ManualClock(), MemoryStore()
    cut: set[str] = set()
    stopped: set[str] = set()
    leases: dict[str, Lease] = {}
    holding: set[str] = set()

    def view_of(name: str) -> Shared:
        def trouble(step: str) -> None:
            if name in cut or draw.random() < 0.05:
                raise ConnectionError

        return Shared(store, trouble)

    for _ in range(300):
        for name in "abc":
            for troubled, chance in ((cut, 0.01), (stopped, 0.01)):
                if draw.random() < (chance if name not in troubled else 0.03):
                    troubled ^= {name}
            if name in stopped:
                continue
            if name not in leases:
                leases[name] = lease_on(name, view_of(name), clock)
            try:
                if name not in holding:
                    if leases[name].attempt() is None:
                        holding.add(name)
                else:
                    leases[name].refresh()
            except ConnectionError:
                pass
            except StudyHeld:  # the command ends, and somebody runs it again
                holding.discard(name)
                del leases[name]
        writers = [name for name in holding - stopped if may_write(leases[name])]
        assert len(writers) <= 1
        assert all(holder_in(store.text) == leases[name].id for name in writers)
        clock.advance(draw.uniform(1.0, 11.0))
        clock.epoch += draw.choice([0.0, 0.0, 0.0, 960.0, -3600.0])
    return int(record_in(store.text)["number"])


def may_write(lease: Lease) -> bool:
    try:
        lease.confirm()
    except (ConnectionError, StudyHeld, StorageInternalError):
        return False
    return True
