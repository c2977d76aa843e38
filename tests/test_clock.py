"""The clock of waiting and leases."""

from evomerge.clock import SYSTEM_CLOCK, ManualClock


def test_the_system_clock_never_runs_backwards():
    seen = [SYSTEM_CLOCK.monotonic() for _ in range(100)]
    assert seen == sorted(seen)
    SYSTEM_CLOCK.sleep(0.0)
    assert SYSTEM_CLOCK.time() > 1_700_000_000


def test_a_manual_clock_runs_only_by_its_own_sleep_and_its_wall_clock_may_be_set():
    clock = ManualClock(seconds=10.0, epoch=100.0)
    clock.sleep(2.5)
    clock.advance(1.0)
    assert (clock.monotonic(), clock.time()) == (13.5, 103.5)
    clock.epoch -= 3600.0
    assert (clock.monotonic(), clock.time()) == (13.5, -3496.5)
