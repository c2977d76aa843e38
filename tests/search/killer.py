"""Runs a search in a process of its own that kills itself, with SIGKILL, at a named instant of a given trial."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore

from evomerge.cli import run_command
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.object_store.remote_folder import RemoteFolder
from evomerge.storage import attributes
from evomerge.study import search_study
from evomerge.study.search_study import SearchStudy
from evomerge.study.trial_writer import TrialWriter


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(
    owner: Any,
    name: str,
    before: Callable[..., None] = lambda *a, **k: None,
    after: Callable[..., None] = lambda *a, **k: None,
) -> None:
    """Call `before` and `after` around a method, with its arguments."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        result = method(*args, **kwargs)
        after(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def _in_ask(trial: int) -> None:
    def at_third_param(self: optuna.Trial, name: str, *args: Any, **kwargs: Any) -> None:
        if self.number == trial and len(self.params) == 2:
            die()

    around(optuna.Trial, "suggest_float", before=at_third_param)
    around(optuna.Trial, "suggest_categorical", before=at_third_param)


def _on_proposal(method: str, when: str) -> Callable[[int], None]:
    def arm(trial: int) -> None:
        around(SearchStudy, method, **{when: lambda self, proposal, *rest, **named: proposal.number == trial and die()})

    return arm


def _in_scoring(trial: int) -> None:
    around(SyntheticEvaluator, "score", before=lambda self, candidate, items: candidate.key == f"sim/{trial}" and die())


def _in_upload(trial: int) -> None:
    """With half of the bytes of the artifact written."""
    current: list[int] = []
    _on_upload("before", current.append)

    def half(self: FileSystemArtifactStore, artifact_id: str, content: Any) -> None:
        if current and current[-1] == trial:
            with open(os.path.join(self._base_path, artifact_id), "wb") as file:  # noqa: PTH118, PTH123
                file.write(content.read(100))
                file.flush()
            die()

    around(FileSystemArtifactStore, "write", before=half)


def _after_upload(trial: int) -> None:
    _on_upload("after", lambda number: number == trial and die())


def _on_upload(when: str, act: Callable[[int], object]) -> None:
    """Act on the trials of the search; its sibling studies are written in the same way."""
    told: list[int] = []
    around(SearchStudy, "tell", before=lambda self, proposal, *rest, **named: told.append(proposal.number))

    def of_the_search(self: TrialWriter, *rest: Any) -> None:
        if self._study.study_name == "sim" and told:
            act(told[-1])

    around(TrialWriter, "upload", **{when: of_the_search})


def _on_tell(when: str) -> Callable[[int], None]:
    def arm(trial: int) -> None:
        def of_this_trial(self: optuna.Study, number: Any, *args: Any, **kwargs: Any) -> None:
            if self.study_name == "sim" and number == trial:
                die()

        around(optuna.Study, "tell", **{when: of_this_trial})

    return arm


def _in_status(trial: int) -> None:
    def once_told(self: SearchStudy, key: str, value: Any) -> None:
        if key == attributes.STATUS and self.tally.finished >= trial:
            die()

    around(SearchStudy, "set", before=once_told)


POINTS: dict[str, Callable[[int], None]] = {
    "inside ask": _in_ask,
    "between ask and submit": _on_proposal("begin", "before"),
    "after submit": _on_proposal("begin", "after"),
    "while scoring": _in_scoring,
    "between result and tell": _on_proposal("tell", "before"),
    "inside the artifact upload": _in_upload,
    "after the artifact upload": _after_upload,
    "between tell order and tell": _on_tell("before"),
    "after tell": _on_tell("after"),
    "while writing the status": _in_status,
}


def _on_ingredients(when: str) -> Callable[[int], None]:
    def arm(_: int) -> None:
        around(SearchStudy, "set_text", **{when: lambda self, key, text: key == attributes.INGREDIENTS and die()})

    return arm


def _before_the_beginning(_: int) -> None:
    around(search_study, "write_beginning", before=lambda study, beginning: die())


STAGES: dict[str, Callable[[int], None]] = {
    "before the beginning is stored": _before_the_beginning,
    "before the merges are taken": _on_ingredients("before"),
    "after the merges are taken": _on_ingredients("after"),
}


def _on_put(when: str) -> Callable[[int], None]:
    def arm(trial: int) -> None:
        current: list[int] = []
        _on_upload("before", current.append)
        around(RemoteFolder, "put", **{when: lambda self, name, file: current[-1:] == [trial] and die()})

    return arm


OBJECTS: dict[str, Callable[[int], None]] = {
    "before the object is put": _on_put("before"),
    "after the object is put": _on_put("after"),
}


def run(arguments: list[str], point: str | None = None, trial: int = -1) -> None:
    """The command, until it ends or dies. To be the target of a process."""
    if point is not None:
        {**POINTS, **STAGES, **OBJECTS}[point](trial)
    os._exit(run_command(arguments))
