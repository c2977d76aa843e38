"""A worker in a process of Ray."""

from __future__ import annotations

from collections.abc import Iterator

import ray

from evomerge.errors import InvalidInput
from evomerge.jobs import Job, Outcome, Progress, WorkerSetup
from evomerge.worker import Worker


class WorkerActor:
    """An actor that builds one worker and does its jobs. It has its place long before the worker has its models."""

    def __init__(self, setup: WorkerSetup, name: str, threads: int) -> None:
        self._setup, self._name, self._threads = setup, name, threads
        self._worker: Worker | None = None

    def place(self) -> str:
        """The id of the node on which it is."""
        return str(ray.get_runtime_context().get_node_id())

    def build(self) -> str | None:
        """Build the worker. Returns the reason why its input is invalid, None where there is none."""
        import torch

        torch.set_num_threads(self._threads)  # two workers with two threads each on two cores run tenfold slower
        try:
            self._worker = Worker(self._setup, self._name)
        except InvalidInput as error:  # Ray would wrap it in an error of its own
            return str(error)
        return None

    def run(self, job: Job) -> Outcome:
        return self._built.run(job)

    def events(self, job: Job) -> Iterator[Progress | Outcome]:
        yield from self._built.events(job)

    @property
    def _built(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("a job came before the worker was built")
        return self._worker
