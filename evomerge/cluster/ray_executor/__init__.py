"""Workers on Ray. The only folder that imports ray."""

from evomerge.cluster.ray_executor.actor import WorkerActor
from evomerge.cluster.ray_executor.ray_executor import RayExecutor

__all__ = ["RayExecutor", "WorkerActor"]
