"""A Ray cluster of several nodes on this machine, whose workers and nodes can be killed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import psutil
from fault_plan import NODE_KILLED, WORKER_KILLED, WORKER_STOPPED, Fault

START_TRIES = 3

_Chosen = TypeVar("_Chosen")


class RayNodes:
    """The nodes of a cluster, the head among them, with room for so many workers each.

    The head is never killed: a driver is attached to it, and without it there is no cluster.
    """

    def __init__(self, nodes: int, slots: int) -> None:
        from ray.cluster_utils import Cluster

        self._slots = slots
        head = {"num_cpus": slots, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self._nodes: list[Any] = [self._new_node() for _ in range(nodes - 1)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def meet(self, fault: Fault) -> str | None:
        """Let a fault happen. Returns what it hit; None where there was nothing to hit."""
        if fault.kind == NODE_KILLED:
            return self._replace(fault)
        worker = _chosen(self._workers(), fault.choice)
        if worker is None:
            return None
        with suppress(psutil.NoSuchProcess):
            if fault.kind == WORKER_KILLED:
                worker.kill()
            elif fault.kind == WORKER_STOPPED:
                worker.suspend()
                time.sleep(fault.lasts)
                worker.resume()
        return f"process {worker.pid}"

    def _replace(self, fault: Fault) -> str | None:
        """Kill a node, and add another one after a while."""
        node = _chosen(self._nodes, fault.choice)
        if node is None:
            return None
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.remove(node)
        time.sleep(fault.lasts)
        self._nodes.append(self._new_node())
        return f"node {str(node.unique_id)[:8]}"

    def _new_node(self) -> Any:
        """A node that joins the cluster. Ray gives it 30 s to start, which a machine under faults may miss."""
        for _ in range(START_TRIES - 1):
            with suppress(Exception):
                return self._cluster.add_node(wait=False, num_cpus=self._slots)
        return self._cluster.add_node(wait=False, num_cpus=self._slots)

    def _workers(self) -> list[psutil.Process]:
        """The processes of workers, oldest first."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "WorkerActor" in " ".join(process.cmdline()):
                    found.append((process.create_time(), process.pid, process))
        return [process for *_, process in sorted(found, key=lambda each: each[:2])]

    def close(self) -> None:
        self._cluster.shutdown()


def _chosen(those: Sequence[_Chosen], choice: float) -> _Chosen | None:
    return those[int(choice * len(those))] if those else None


@contextmanager
def ray_nodes(nodes: int, slots: int) -> Iterator[RayNodes]:
    """A cluster with a token and a folder of its own, for this process and those that it starts."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets need a short path
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_TMPDIR=folder,
        RAY_USAGE_STATS_ENABLED="0",
    )
    try:
        with closing(RayNodes(nodes, slots)) as made:
            yield made
    finally:
        _end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end_processes_of(folder: str) -> None:
    """End what is left of a cluster, also of one that could not be started, by the folder that is its own."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if folder in " ".join(process.cmdline()):
                process.kill()
