"""A worker in a process of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import ray

from evomerge.errors import InvalidInput
from evomerge.job_faults import is_file_away
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

    def build(self, neighbours: int = 1) -> str | None:
        """Build the worker.

        Args:
            neighbours: workers that may be on this machine with it, itself included.

        Returns:
            The reason why its input is invalid, None where there is none.
        """
        import torch

        torch.set_num_threads(self._threads)  # two workers with two threads each on two cores run tenfold slower
        if self._setup.device == "cuda" and self._setup.gpus < 1:  # Ray divides the count, not the memory
            torch.cuda.set_per_process_memory_fraction(self._setup.gpus)
        try:
            self._worker = Worker(replace(self._setup, neighbours=neighbours), self._name)
        except InvalidInput as error:
            if is_file_away(error):  # this worker is started again
                raise
            return str(error)  # which Ray would wrap in an error of its own
        return None

    def run(self, job: Job) -> Outcome:
        return self._built.run(job)

    def events(self, job: Job) -> Iterator[Progress | Outcome]:
        yield from self._built.events(job)

    def release(self) -> None:
        """Give up what it shares with other workers of its machine. It is ended next."""
        if self._worker is not None:
            self._worker.close()

    @property
    def _built(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("a job came before the worker was built")
        return self._worker
