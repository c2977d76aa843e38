"""The executor in this process keeps the contract of executors."""

from evomerge.cluster import Executor, InlineExecutor
from evomerge.jobs import WorkerSetup
from evomerge.testing.executor_contract import ExecutorContract
from evomerge.worker import Worker


class TestInlineExecutor(ExecutorContract):
    def open(self, setup: WorkerSetup) -> Executor:
        return InlineExecutor(Worker(setup, "inline"))
