"""Executors: where jobs run. Two implementations of one protocol, in this process and on Ray."""

from evomerge.cluster.choice import (
    gpus_of_each,
    ignored_without_ray,
    is_local,
    open_executor,
    worker_count,
    workers_share,
)
from evomerge.cluster.executor import Executor, WorkerState
from evomerge.cluster.inline import InlineExecutor

__all__ = [
    "Executor",
    "InlineExecutor",
    "WorkerState",
    "gpus_of_each",
    "ignored_without_ray",
    "is_local",
    "open_executor",
    "worker_count",
    "workers_share",
]
