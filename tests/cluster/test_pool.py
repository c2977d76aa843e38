"""The policy of a pool of workers, on a clock that the test sets: nothing of Ray is started."""

import random

import pytest

from evomerge.clock import ManualClock
from evomerge.cluster.pool import PATIENT_SECONDS, PLACE_SECONDS, START_SECONDS, Pool
from evomerge.errors import Interrupted, StoppedByFailures
from evomerge.jobs import Failed, Outcome, Scored
from evomerge.testing.executor_contract import job

TIMEOUT = 100.0


@pytest.fixture
def clock():
    return ManualClock()


def pool_of(count, clock, **options):
    return Pool(count, timeout=TIMEOUT, clock=clock, **options)


def start(pool, *slots, node="node-a"):
    """Let these slots, or all that are due, have ready workers."""
    for slot in pool.start_due():
        if not slots or slot in slots:
            pool.place(slot, node)
            pool.make_ready(slot)


def done(job):
    return Outcome(key=job.key, attempt=job.attempt, result=Scored(scores=None), seconds={}, worker="w")


def give(pool, key="a"):
    """Submit a job. Returns the slot that got it."""
    pool.submit(job(key))
    ((slot, _),) = pool.assign()
    return slot


def states(pool):
    return [worker.state for worker in pool.states()]


def test_a_slot_whose_workers_die_does_not_end_a_pool_that_has_others(clock):
    pool = pool_of(2, clock)
    broken, healthy = pool.start_due()
    pool.place(healthy, "node-a")
    pool.make_ready(healthy)
    for _ in range(20):
        assert pool.die(broken, "no device", lost=False) is None
        pool.check()
        clock.advance(1000.0)
        pool.start_due()
    assert healthy.state == "idle"
    assert pool.capacity == 2  # it is given another chance even now


def test_a_pool_ends_when_no_slot_can_live_and_says_why(clock):
    pool = pool_of(2, clock)
    for _ in range(3):
        pool.check()
        for slot in pool.start_due():
            pool.die(slot, "no device", lost=False)
        clock.advance(10.0)
    with pytest.raises(StoppedByFailures, match=r"no device; it could not be started 3 times in a row"):
        pool.check()


def test_a_slot_waits_longer_after_every_death_and_not_at_all_after_the_first(clock):
    pool = pool_of(2, clock)
    waits = []
    slot = pool.start_due()[0]
    for _ in range(7):
        pool.die(slot, "no device", lost=False)
        before = clock.monotonic()
        while slot not in pool.start_due():
            clock.advance(0.5)
        waits.append(clock.monotonic() - before)
    assert waits == [0.0, 1.0, 60.0, 120.0, 240.0, 480.0, 900.0]


def test_a_slot_in_quarantine_is_shown_and_not_counted_on(clock):
    pool = pool_of(2, clock)
    start(pool)
    for _ in range(3):
        pool.die(pool.slots[0], "no device", lost=False)
    assert states(pool) == ["quarantined", "idle"]
    assert pool.capacity == 1


def test_an_outcome_forgives_the_deaths_before_it(clock):
    pool = pool_of(1, clock)
    for _ in range(12):
        for _ in range(2):
            clock.advance(30.0)
            pool.die(pool.start_due()[0], "no device", lost=False)
        clock.advance(30.0)
        start(pool)
        slot = give(pool)
        pool.finish(slot, done(job("a")))
        pool.check()
        pool.die(slot, "its node has died", lost=True)


def test_candidates_that_kill_their_workers_do_not_end_a_pool_of_one(clock):
    pool = pool_of(1, clock)
    for number in range(30):
        while not pool.capacity or pool.slots[0].state != "idle":
            clock.advance(1.0)
            start(pool)
        slot = give(pool, f"job/{number}")
        assert pool.die(slot, "segmentation fault", lost=False).result.crashed
        pool.check()
    assert pool.slots[0].record.not_before - clock.monotonic() == 60.0


def test_a_job_whose_worker_crashed_is_tried_on_another_one(clock):
    pool = pool_of(2, clock)
    start(pool)
    first = give(pool)
    pool.die(first, "segmentation fault", lost=False)
    start(pool)
    assert give(pool) is not first


def test_a_job_waits_for_another_worker_than_the_one_that_crashed_under_it_but_not_for_ever(clock):
    pool = pool_of(2, clock)
    start(pool)
    first = give(pool, "a")
    second = give(pool, "b")
    pool.die(first, "segmentation fault", lost=False)
    start(pool)
    pool.submit(job("a"))
    assert pool.assign() == []
    pool.die(second, "its node has died", lost=True)
    assert [slot for slot, _ in pool.assign()] == [first]


def with_bad_node(clock):
    """A pool of which one slot works on a node, and the other has crashed three times on another one; and that slot."""
    pool = pool_of(2, clock)
    bad, good = pool.start_due()
    pool.place(good, "good")
    pool.make_ready(good)
    give(pool, "long")
    for number in range(3):
        assert pool.quarantined_nodes == []
        pool.place(bad, "bad")
        pool.make_ready(bad)
        pool.die(give(pool, f"job/{number}"), "bus error", lost=False)
        clock.advance(5.0)
        assert pool.start_due() == [bad]
    return pool, bad


def test_a_node_whose_workers_crash_gets_none_while_another_node_does_its_jobs(clock):
    pool, _ = with_bad_node(clock)
    assert pool.quarantined_nodes == ["bad"]
    clock.advance(60.0)
    assert pool.quarantined_nodes == []


def test_a_worker_that_waits_elsewhere_is_started_anew_when_the_quarantine_of_its_node_ends(clock):
    pool, bad = with_bad_node(clock)
    restarts = bad.restarts
    assert bad.avoided == {"bad"}
    clock.advance(PATIENT_SECONDS)
    assert (pool.start_due(), pool.waiting, pool.capacity) == ([], 1, 1)
    clock.advance(60.0 - PATIENT_SECONDS)
    assert pool.start_due() == [bad]
    assert (bad.avoided, bad.restarts, pool.capacity) == (frozenset(), restarts, 2)
    assert pool.start_due() == []
    pool.place(bad, "bad")
    assert states(pool) == ["starting", "busy"]


def test_the_only_node_is_never_in_quarantine(clock):
    pool = pool_of(2, clock)
    for number in range(4):
        clock.advance(60.0)
        start(pool)
        pool.die(give(pool, f"job/{number}"), "bus error", lost=False)
    assert pool.quarantined_nodes == []


def test_workers_that_find_no_place_are_said_to_wait_and_the_others_go_on(clock):
    pool = pool_of(3, clock)
    placed, *_ = pool.start_due()
    pool.place(placed, "node-a")
    assert (states(pool), pool.waiting, pool.capacity) == (["starting", "placing", "placing"], 0, 3)
    clock.advance(PATIENT_SECONDS)
    assert states(pool) == ["starting", "waiting for resources", "waiting for resources"]
    assert (pool.waiting, pool.capacity) == (2, 1)
    clock.advance(PLACE_SECONDS - PATIENT_SECONDS - 1)
    pool.make_ready(placed)
    clock.advance(10 * PLACE_SECONDS)
    pool.check()


def test_workers_come_and_go_with_the_cluster(clock):
    pool = pool_of(3, clock)
    first, second, third = pool.start_due()
    pool.place(first, "node-a")
    pool.make_ready(first)
    clock.advance(PATIENT_SECONDS)
    assert pool.capacity == 1
    for slot in (second, third):  # a node joins
        pool.place(slot, "node-b")
        pool.make_ready(slot)
    assert pool.capacity == 3
    outcomes = []
    for key in ("a", "b", "c"):
        give(pool, key)
    for slot in (second, third):  # and leaves
        outcomes.append(pool.die(slot, "its node has died", lost=True))
    assert [(outcome.key, outcome.result.lost, outcome.result.crashed) for outcome in outcomes] == [
        ("b", True, False),
        ("c", True, False),
    ]
    assert pool.start_due() == [second, third]
    clock.advance(PATIENT_SECONDS)
    assert pool.capacity == 1
    assert states(pool)[0] == "busy"


@pytest.mark.parametrize(
    ("fewest", "says"), [(1, "no worker has found a place for 600 s"), (2, "fewer than 2 workers")]
)
def test_too_few_places_for_long_end_the_run_so_that_it_can_be_resumed(clock, fewest, says):
    pool = pool_of(2, clock, fewest=fewest, describe=lambda: "each worker wants 8 GPU, the cluster has 2 GPU")
    first, _ = pool.start_due()
    if fewest == 2:
        pool.place(first, "node-a")
        pool.make_ready(first)
    for _ in range(int(PLACE_SECONDS)):
        pool.check()
        clock.advance(1)
    with pytest.raises(Interrupted, match=f"{says}.*wants 8 GPU, the cluster has 2 GPU"):
        pool.check()


def test_time_in_which_nobody_started_workers_is_no_time_without_a_place(clock):
    pool = pool_of(1, clock)
    clock.advance(PLACE_SECONDS)  # the process was stopped, or waited for its storage
    pool.check()
    start(pool)
    pool.check()
    assert states(pool) == ["idle"]


def test_a_pool_whose_machines_are_lost_again_and_again_can_be_resumed(clock):
    pool = pool_of(1, clock)
    for _ in range(int(PLACE_SECONDS)):
        for slot in pool.start_due():
            pool.die(slot, "its node has died", lost=True)
        pool.check()
        clock.advance(1.0)
    with pytest.raises(Interrupted, match="no worker has found a place"):
        pool.check()


def test_a_worker_that_is_never_built_is_given_up(clock):
    pool = pool_of(1, clock)
    (slot,) = pool.start_due()
    pool.place(slot, "node-a")
    clock.advance(START_SECONDS - 1)
    assert pool.end_overdue() == []
    clock.advance(1)
    assert pool.end_overdue() == [(slot, None)]
    assert slot.state == "backing off"


def test_a_job_without_a_sign_of_life_is_given_up_by_its_own_fault(clock):
    pool = pool_of(1, clock)
    start(pool)
    slot = give(pool)
    clock.advance(TIMEOUT - 1)
    pool.extend(slot)
    clock.advance(TIMEOUT - 1)
    assert pool.end_overdue() == []
    clock.advance(1)
    ((ended, outcome),) = pool.end_overdue()
    assert ended is slot
    assert outcome.result == Failed("no outcome after 100 s; the worker was ended (workers.timeout)")
    assert pool.start_due() == [slot]


def test_when_the_whole_cluster_is_lost_running_jobs_come_back_and_waiting_ones_stay(clock):
    pool = pool_of(2, clock)
    start(pool)
    give(pool, "a")
    give(pool, "b")
    pool.submit(job("c"))
    assert {outcome.key for outcome in pool.lose_all("its head is gone")} == {"a", "b"}
    start(pool)
    assert [given.key for _, given in pool.assign()] == ["c"]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_every_job_has_one_outcome_and_nothing_waits_for_ever(clock, seed):
    """Workers that are placed, built, crash, hang and are lost in any order, from one seed."""
    chance = random.Random(seed)
    pool = pool_of(chance.randint(1, 4), clock)
    wanted, outcomes, submitted = 30, [], 0
    steps = 0
    while len(outcomes) < wanted:
        steps += 1
        assert steps < 20_000
        clock.advance(chance.choice([0.1, 1.0, 5.0, min(200.0, pool.seconds_to_act())]))
        outcomes += [outcome for _, outcome in pool.end_overdue() if outcome is not None]
        pool.start_due()
        if submitted < wanted:
            pool.submit(job(f"job/{submitted}"))
            submitted += 1
        pool.assign()
        slot = chance.choice(pool.slots)
        roll = chance.random()
        if slot.state == "placing":
            pool.place(slot, chance.choice("ab")) if roll < 0.8 else pool.die(slot, "lost", lost=True)
        elif slot.state == "starting":
            pool.make_ready(slot) if roll < 0.8 else pool.die(slot, "fault", lost=False)
        elif slot.state == "busy" and roll < 0.9:
            key = slot.job
            outcome = done(key)
            if roll < 0.3:
                outcome = pool.die(slot, "gone", lost=roll < 0.15)
            elif roll < 0.4:
                outcome = Outcome(
                    key=key.key, attempt=1, result=Failed("device", crashed=True), seconds={}, worker=slot.name
                )
                pool.finish(slot, outcome)
            else:
                pool.finish(slot, outcome)
            outcomes.append(outcome)
    assert sorted(outcome.key for outcome in outcomes) == sorted(f"job/{number}" for number in range(wanted))
