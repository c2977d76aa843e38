"""Tasks of lm-eval in folders of a user's, copied into the folder of an evaluator with all that they need."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.forms import is_folder
from evomerge.packs.task_files import FILE_BUILDERS, CodeReference, TaskFile, leaves, read_tasks

TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class FoundTask:
    """A task in a search path.

    Attributes:
        path: the search path, absolute.
        inside: folder of the evaluator that stands for the search path.
    """

    file: TaskFile
    path: Path
    inside: str

    @property
    def fewshot_is_fixed(self) -> bool:
        """Whether the task has no examples whatever is asked for: so lm-eval takes a 0 of the task's own."""
        return self.file.config.get("num_fewshot") == 0

    def higher_is_better(self, metric: str) -> bool | None:
        """The direction of a metric; None where the task does not say."""
        metrics = self.file.config.get("metric_list")
        for each in metrics if isinstance(metrics, list) else []:
            if isinstance(each, Mapping) and each.get("metric") == metric:
                direction = each.get("higher_is_better")
                return direction if isinstance(direction, bool) else None
        return None


def find_tasks(names: Collection[str], paths: Sequence[Path]) -> dict[str, FoundTask]:
    """The tasks of these names in the search paths, the first path that has one winning.

    Raises:
        InvalidInput: a path is no folder, or a task file in it cannot be read.
    """
    found: dict[str, FoundTask] = {}
    for number, path in enumerate(paths, start=1):
        if not is_folder(path):
            raise InvalidInput(f"--task-search-path {path}: there is no such folder")
        inside = TASKS if len(paths) == 1 else f"{TASKS}/{number}"
        folder = path.resolve()
        for name, file in read_tasks(folder, folder).items():
            if name in names and name not in found:
                found[name] = FoundTask(file=file, path=folder, inside=inside)
    return found


def copy_tasks(tasks: Collection[FoundTask], out: Path) -> None:
    """Copy task files, their includes, their Python modules and their data into the folder of an evaluator.

    Paths of data in a task begin at the working directory for lm-eval, and at the evaluator's folder here.

    Raises:
        InvalidInput: data or code of a task is not there, or outside of what can be copied.
    """
    for task in tasks:
        for file in (*task.file.files, *_modules(task)):
            _copy(file, out / task.inside / file.relative_to(task.path))
        for relative, file in _data(task):
            _copy(file, out / relative)


def _modules(task: FoundTask) -> Iterator[Path]:
    """The modules of the task's functions, and those beside them, which they may import."""
    for value in leaves(task.file.config):
        if isinstance(value, CodeReference):
            if not value.file.is_relative_to(task.path):
                raise InvalidInput(
                    f"task {task.file.name!r}: !function {value.function} is in {value.file}, outside of {task.path}; "
                    "give --task-search-path a folder that has both"
                )
            for folder in {value.folder.resolve(), value.file.parent}:
                yield from sorted(folder.glob("*.py"))


def _data(task: FoundTask) -> Iterator[tuple[Path, Path]]:
    """(place in the evaluator's folder, file) of the task's data that is given by relative paths."""
    named = list(_relative_paths(task.file))
    if not named:
        return
    if climbing := next((each for each in named if ".." in Path(each).parts), None):
        raise InvalidInput(
            f"task {task.file.name!r}: data {climbing!r} is outside of the working directory; write an absolute path"
        )
    roots = (Path.cwd(), task.file.files[0].parent, task.path)
    root = next((each for each in roots if _has_all(each, named)), None)
    if root is None:
        raise InvalidInput(
            f"task {task.file.name!r}: data {named[0]!r} is neither in the working directory, where lm-eval looks for "
            "it, nor beside the task; run this command where you run mergekit-evolve, or write an absolute path"
        )
    for file in task.file.data_paths(root):
        if file.is_relative_to(root):
            yield file.relative_to(root), file


def _relative_paths(task: TaskFile) -> Iterator[str]:
    if task.config.get("dataset_path") not in FILE_BUILDERS:
        return
    options = task.config.get("dataset_kwargs") or {}
    named = [options[key] for key in ("data_files", "data_dir") if key in options]
    for each in leaves(named):
        if isinstance(each, str) and "://" not in each and not Path(each).is_absolute():
            yield each


def _has_all(root: Path, named: Sequence[str]) -> bool:
    return all(any(root.glob(each)) for each in named)


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)
