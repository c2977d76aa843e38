"""Runs a command in a process of its own that comes to a standstill at a named place, and tells it by a file."""

from __future__ import annotations

import ctypes
import importlib.abc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna.exceptions
import ray

import evomerge.__main__
import evomerge.cluster.choice
import evomerge.interjection
import evomerge.opening.inputs
import evomerge.search.stages
import evomerge.spec
from evomerge.evaluation.evaluator import Candidate
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.packs.items import ItemBlock
from evomerge.storage.single_writer import SingleWriterStorage

REACHED = "reached"


def stand_still(*_: Any, **__: Any) -> None:
    """Wait as Python does, which a signal may end."""
    Path(REACHED).touch()
    time.sleep(600)


def hang(*_: Any, **__: Any) -> None:
    """Wait in compiled code that never returns to Python: for a mutex that this thread holds itself."""
    mutex = ctypes.create_string_buffer(256)
    library = ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    Path(REACHED).touch()
    library.pthread_mutex_lock(mutex)


def swallow(*_: Any, **__: Any) -> None:
    """Wait in code that takes every exception for one that does not matter."""
    while True:
        with suppress(BaseException):
            stand_still()


def leave(*_: Any, **__: Any) -> None:
    sys.exit(7)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> None:
        if name == "evomerge.report.terminal":
            stand_still()


def _in_imports() -> None:
    sys.modules.pop("evomerge.report.terminal", None)
    sys.meta_path.insert(0, _Finder())


def _in_ray() -> None:
    ray.init = stand_still


def _in_retries() -> None:
    def never(self: SingleWriterStorage) -> None:
        Path(REACHED).touch()
        raise optuna.exceptions.StorageInternalError("away")

    SingleWriterStorage.transaction = never


def _in_trial(what: Callable[..., Any]) -> Callable[[], None]:
    """In the scoring of the third candidate."""

    def arm() -> None:
        score = SyntheticEvaluator.score

        def replaced(self: SyntheticEvaluator, candidate: Candidate, items: ItemBlock) -> Any:
            return what() if candidate.key == "sim/2" else score(self, candidate, items)

        _set(SyntheticEvaluator, "score", replaced)()

    return arm


def _set(owner: Any, name: str, what: Callable[..., Any]) -> Callable[[], None]:
    return lambda: setattr(owner, name, what)


PLACES: dict[str, Callable[[], None]] = {
    "imports": _in_imports,
    "opening models": _set(evomerge.opening.inputs, "open_source", stand_still),
    "reading the spec": _set(evomerge.spec, "load_spec", stand_still),
    "ray.init": _in_ray,
    "starting workers": _set(evomerge.cluster.choice, "Worker", stand_still),
    "scoring": _set(SyntheticEvaluator, "score", stand_still),
    "compiled code": _set(SyntheticEvaluator, "score", hang),
    "code that catches everything": _set(SyntheticEvaluator, "score", swallow),
    "the third candidate": _in_trial(stand_still),
    "compiled code of the third candidate": _in_trial(hang),
    "sys.exit in the third candidate": _in_trial(leave),
    "sys.exit while models are opened": _set(evomerge.opening.inputs, "open_source", leave),
    "retries of the storage": _in_retries,
    "the search": _set(evomerge.search.stages, "build_fidelity", stand_still),
    "the verdict": _set(evomerge.search.stages, "_store_verdict", stand_still),
}


def run(arguments: list[str], place: str) -> None:
    """The command, with the exit code that its process has. To be the target of a process."""
    evomerge.interjection.HANG_SECONDS = 0.5
    PLACES[place]()
    evomerge.__main__.main(arguments)
