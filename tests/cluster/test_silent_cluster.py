"""A cluster whose head does not answer: nothing is started on it, and looking at it costs next to nothing."""

from evomerge.clock import ManualClock
from evomerge.cluster.ray_executor import RayExecutor, ray_executor
from evomerge.testing.executor_contract import setup


class SilentCluster:
    """A cluster that is neither lost nor there."""

    answers = False
    is_exposed = False

    def __init__(self, *arguments, **named):
        pass

    def trouble(self):
        return None

    def close(self):
        pass


class CountingClock(ManualClock):
    """A manual clock on which every look at the time takes a thousandth of a second, so that nothing waits for ever."""

    sleeps = 0

    def monotonic(self):
        self.advance(0.001)
        return super().monotonic()

    def sleep(self, seconds):
        self.sleeps += 1
        super().sleep(seconds)


def test_workers_that_are_due_while_the_head_does_not_answer_keep_no_core_busy(monkeypatch):
    monkeypatch.setattr(ray_executor, "Cluster", SilentCluster)
    clock = CountingClock()
    pool = RayExecutor(setup(), count=1, cpus=1, gpus=0, resources={}, timeout=60.0, clock=clock)
    assert pool.next_event(30.0) is None
    assert {worker.state for worker in pool.workers()} == {"backing off"}
    assert 0 < clock.sleeps <= 300
    pool.close()
