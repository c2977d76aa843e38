"""A connection to a Ray cluster that is opened, watched and closed in a thread of its own.

Ray's calls wait for ever, or end this process after a minute, where the head of the cluster is gone; only this thread
makes those that ask the head. The processes of a local cluster die with the thread that started them, and with this
process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import ray

from evomerge.cluster.address import listens

__all__ = ["ClusterNodes", "Connection"]

LOOK_SECONDS: Final = 1.0  # between two looks at the cluster
FEWEST_LOOKS: Final = 4  # in vain, before the head is gone: this process may have been asleep
STUCK_SECONDS: Final = 30.0  # which one look may take


@dataclass(frozen=True)
class ClusterNodes:
    """The nodes that are alive: id -> name of a resource -> amount."""

    nodes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def total(self) -> dict[str, float]:
        """Resources of all nodes together, without those that Ray names after nodes."""
        found: dict[str, float] = {}
        for resources in self.nodes.values():
            for name, amount in resources.items():
                if not name.startswith("node:"):
                    found[name] = found.get(name, 0.0) + amount
        return found

    def room(self, node: str, wanted: Mapping[str, float]) -> int:
        """Workers for which a node has room that want so much each."""
        there = self.nodes.get(node, {})
        return min(int(there.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items() if amount)

    def compared(self, wanted: Mapping[str, float]) -> str:
        """The resources that each worker wants and that there are, in words. A worker is on one node."""
        total = self.total()
        text = f"each worker wants {_amounts(wanted)}, the cluster has {_amounts(total)}"
        enough = all(total.get(name, 0.0) >= amount for name, amount in wanted.items())
        divided = enough and not any(self.room(node, wanted) for node in self.nodes)
        return f"{text}, but no node has so much alone" if divided else text


class Connection:
    """A connection to a cluster.

    Args:
        connect: joins the cluster, or starts one.
        disconnect: undoes that.
        silence: seconds after which a head that does not answer is gone. Ray itself ends this process after 60.

    Attributes:
        view: the cluster at the latest look.
        error: of `connect`; None where it went well.
    """

    def __init__(self, connect: Callable[[], None], disconnect: Callable[[], None], *, silence: float) -> None:
        self.view = ClusterNodes()
        self.error: Exception | None = None
        self._connect, self._disconnect = connect, disconnect
        self._silence = silence
        self._opened, self._closing = threading.Event(), threading.Event()
        self._node = self._head = ""
        self._failures = 0  # looks in vain, one after another
        self._silent_since = 0.0
        self._look_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until the connection is open, or has failed. False where it takes longer."""
        return self._opened.wait(seconds)

    def trouble(self) -> str | None:
        """The reason why the cluster is lost; None while it is not."""
        began = self._look_began
        if began is not None and time.monotonic() - began > STUCK_SECONDS:
            return f"the head of the cluster, {self._head}, does not answer"
        if self._failures >= FEWEST_LOOKS and time.monotonic() - self._silent_since > self._silence:
            return f"the head of the cluster, {self._head}, is gone"
        if self._node not in self.view.nodes:
            return "the node of this machine has died"
        return None

    @property
    def answers(self) -> bool:
        """Whether the head answered the latest look."""
        return not self._failures and self._look_began is None

    def close(self, seconds: float) -> bool:
        """Disconnect. False where that takes longer; it goes on, and ends with this process at the latest."""
        self._closing.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._connect()
            context = ray.get_runtime_context()
            self._node, self._head = str(context.get_node_id()), str(context.gcs_address)
            self._look()
        except Exception as error:  # Ray raises many kinds; the main thread tells of all of them
            self.error = error
        self._opened.set()
        while self.error is None and not self._closing.wait(LOOK_SECONDS):
            self._look()
        self._disconnect()

    def _look(self) -> None:
        if not listens(self._head):
            self._silent_since = self._silent_since if self._failures else time.monotonic()
            self._failures += 1
            return
        self._look_began = time.monotonic()
        nodes = ray.nodes()
        self.view = ClusterNodes({node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]})
        self._failures, self._look_began = 0, None


def _amounts(resources: Mapping[str, float]) -> str:
    """Resources in words: CPUs and GPUs first, memory left out."""
    names = ["CPU", "GPU", *sorted(set(resources) - {"CPU", "GPU", "memory", "object_store_memory"})]
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)
