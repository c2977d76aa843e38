"""Chooses the executor of a run and the number of its workers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection

from evomerge.cluster.environment import LOOPBACK, environment
from evomerge.cluster.executor import Executor
from evomerge.cluster.inline import InlineExecutor
from evomerge.errors import InvalidInput
from evomerge.jobs import Outcome, WorkerSetup
from evomerge.spec import WorkersSpec
from evomerge.worker import Worker

LOCAL = "local"
NONE = "none"


def worker_count(workers: WorkersSpec, ray: str | None) -> int:
    """Number of workers: that of the spec, else one per GPU, else as many as the cores allow."""
    if chosen_ray(ray) == NONE:
        return 1
    if workers.count is not None:
        return workers.count
    if not is_local(ray):
        raise InvalidInput(
            "say how many workers the Ray cluster shall run: workers: {count: N} in the spec, or --workers N"
        )
    gpus = _gpus()
    return gpus if gpus else max(1, (os.cpu_count() or 1) // workers.cpus)


def open_executor(
    setup: WorkerSetup,
    workers: WorkersSpec,
    ray: str | None = None,
    *,
    worker_output: bool = False,
    secrets: Collection[str] = (),
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    on_hang: Callable[[Outcome], None] | None = None,
) -> Executor:
    """The executor that a run asks for.

    Args:
        ray: the address of a cluster, "local" for one that lives as long as this run, "none" for this process; None
            means "local" where Ray is installed, else "none".
        worker_output: have Ray print what its workers print on this process's standard output and error.
        secrets: such as passwords; no process that Ray starts gets an environment variable with one of them.
        say: told of resources that are waited for, and of a cluster that was started again.
        check: called while Ray starts; may raise.
        on_hang: without Ray, ends this process, see `InlineExecutor`.

    Raises:
        InvalidInput: Ray is asked for and not installed, cannot be started, the address is wrong, or the cluster
            there takes jobs from anyone.
        Interrupted: no cluster answers at the address.
    """
    address = chosen_ray(ray)
    if address == NONE:
        return InlineExecutor(Worker(setup, "inline"), timeout=workers.timeout, on_hang=on_hang)
    with environment(LOOPBACK if address == LOCAL else {}):
        from evomerge.cluster.ray_executor import RayExecutor

    return RayExecutor(
        setup,
        count=worker_count(workers, ray),
        fewest=workers.min,
        cpus=workers.cpus,
        gpus=_enough_gpus(workers, worker_count(workers, ray)) if address == LOCAL else workers.gpus,
        resources=workers.resources,
        timeout=workers.timeout,
        address=address,
        worker_output=worker_output,
        allow_open=workers.allow_open_cluster,
        secrets=secrets,
        say=say,
        check=check,
    )


def gpus_of_each(workers: WorkersSpec, count: int, ray: str | None) -> float:
    """GPUs of each of so many workers on this machine, or its share of one."""
    if workers.gpus is None or chosen_ray(ray) == NONE:
        return min(1.0, _gpus() / count)
    return workers.gpus


def workers_share(count: int, ray: str | None) -> bool:
    """Whether workers of one machine keep what is made of the sources for all of them: a single one has it alone."""
    return count > 1 and chosen_ray(ray) != NONE


def _enough_gpus(workers: WorkersSpec, count: int) -> float:
    """
    Raises:
        InvalidInput: the workers want more GPUs than there are. Some would silently score on a CPU.
    """
    there, wanted = _gpus(), gpus_of_each(workers, count, LOCAL)
    if wanted * count > there + 1e-9:
        raise InvalidInput(
            f"{count} workers with {wanted:g} GPUs each want more than the {there} of this machine; "
            "set workers.count or workers.gpus"
        )
    return wanted


def chosen_ray(ray: str | None) -> str:
    """`ray` with its default filled in."""
    installed = importlib.util.find_spec("ray") is not None
    if ray is None:
        return LOCAL if installed else NONE
    if ray != NONE and not installed:
        raise InvalidInput("Ray is not installed; run with --ray none, or pip install 'ray[default]'")
    return ray


def ignored_without_ray(workers: WorkersSpec, ray: str | None) -> list[str]:
    """Settings of the spec about workers that a run in this process ignores."""
    if chosen_ray(ray) != NONE:
        return []
    default = WorkersSpec()
    others = [name for name in WorkersSpec.model_fields if name not in ("timeout", "checkpoint")]
    changed = [name for name in others if getattr(workers, name) != getattr(default, name)]
    return [f"workers.{name}" for name in changed if (name, workers.count) != ("count", 1)]


def is_local(ray: str | None) -> bool:
    """Whether the workers run on this machine."""
    return chosen_ray(ray) in (LOCAL, NONE)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
