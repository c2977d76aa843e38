"""Tasks of lm-eval as an evaluator of the user's: whether they exist, their metrics, and evaluator.yaml."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from evomerge.errors import InvalidInput, unknown_name
from evomerge.mergekit_evolve.task_folder import TASKS, FoundTask, copy_tasks, find_tasks
from evomerge.packs.pack import PACK_FILE, check_allowed, load_pack
from evomerge.packs.task_files import read_tasks
from evomerge.whole_files import folder_in_place

FOLDER: Final = "evaluator"  # beside search.yaml
SHARES: Final = {"calibration": 0.1, "search": 0.4, "held_out": 0.5}

# By `output_type`, of tasks that name no metric; lm-eval has the same defaults.
_METRICS: Final = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "exact_match"}
_NAME: Final = re.compile(rb"^(task|group):[ \t]*[\"']?([\w.,+-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """The tasks of an evaluator, all of them found.

    Attributes:
        metrics: task -> metric.
        found: task -> its files, of tasks in folders of the user's; empty where all are lm-eval's own.
        limit: search items of each task.
    """

    metrics: Mapping[str, str]
    found: Mapping[str, FoundTask]
    limit: int

    def text(self, name: str) -> str:
        """evaluator.yaml, with comments."""
        where = "tasks_folder: tasks           # YAML files of the tasks\n" if self.found else ""
        tasks = "".join(
            f"  - {_flow({'task': task, 'metric': metric, 'limit': self.limit})}\n"
            for task, metric in self.metrics.items()
        )
        return (
            "# How merges are scored: written by `evomerge init`.\n"
            f"name: {name}\n{where}"
            "# metric: one that lm-eval prints for the task. limit: so many of its search items are used. Further\n"
            "# keys: weight (of the task in the mean), num_fewshot, filter.\n"
            f"tasks:\n{tasks}"
            "# Parts of the items, by their content: calibration for what is trained, search for what the search\n"
            "# sees, held_out for the verdict at its end.\n"
            f"split: {_flow({'by': 'hash', 'shares': SHARES})}\n"
        )

    def write(self, folder: Path, name: str, allow: Sequence[str]) -> None:
        """Write the evaluator, whole or not at all.

        Raises:
            InvalidInput: a task runs code or is a public test set, and `allow` does not permit it.
        """
        with folder_in_place(folder) as aside:
            (aside / PACK_FILE).write_text(self.text(name), encoding="utf-8")
            if self.found:
                (aside / TASKS).mkdir()
                copy_tasks(list(self.found.values()), aside)
            try:
                check_allowed(load_pack(aside), allow)
            except InvalidInput as error:
                raise InvalidInput(f"{error} (here: --allow)") from error


def choose_tasks(given: Sequence[str], paths: Sequence[Path], limit: int) -> TaskChoice:
    """Tasks given as NAME or NAME:METRIC, in folders of the user's or, without any, among lm-eval's own.

    Raises:
        InvalidInput: there is no such task, it is a group of tasks, is given twice, or its metric is not known.
    """
    asked = {name: metric for name, _, metric in (each.partition(":") for each in given)}
    if len(asked) < len(given):
        raise InvalidInput(f"--task {' --task '.join(given)}: give each task once")
    found = find_tasks(list(asked), paths) if paths else {}
    if paths and (unknown := next((name for name in asked if name not in found), None)):
        known = {name for path in paths for name in read_tasks(path.resolve(), path.resolve())}
        raise unknown_name("task in the folders of --task-search-path:", unknown, known)
    own = {} if paths else _own_configs([name for name, metric in asked.items() if not metric], list(asked))
    configs = {**own, **{name: task.file.config for name, task in found.items()}}
    metrics = {name: metric or _metric(name, configs[name]) for name, metric in asked.items()}
    return TaskChoice(metrics=metrics, found=found, limit=limit)


def _own_configs(wanted: Sequence[str], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The configurations of the wanted tasks of lm-eval's own; all names must be among its tasks."""
    files = _own_files(names)
    root = _own_folder()
    return {name: read_tasks(root, files[name].parent)[name].config for name in wanted}


def _own_files(names: Sequence[str]) -> dict[str, Path]:
    """The file of each of these tasks, found by its text: lm-eval itself takes a minute to list its tasks.

    Raises:
        InvalidInput: there is no such task, or it is a group.
    """
    tasks: dict[str, Path] = {}
    groups: set[str] = set()
    for path in _own_folder().rglob("*.yaml"):
        for kind, name in _NAME.findall(path.read_bytes()):
            tasks.setdefault(name.decode(), path) if kind == b"task" else groups.add(name.decode())
    for name in names:
        if name in groups:
            raise InvalidInput(f"--task {name} is a group of tasks; name those of its tasks that shall count")
        if name not in tasks:
            raise unknown_name("task of lm-eval", name, tasks)
    return {name: tasks[name] for name in names}


def _own_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidInput("lm-eval is not installed; install evomerge again, or give --evaluator synthetic")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _metric(name: str, config: Mapping[str, Any]) -> str:
    listed = config.get("metric_list")
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, Mapping) and isinstance(each.get("metric"), str):
            return str(each["metric"])
    metric = _METRICS.get(str(config.get("output_type", "generate_until")))
    if metric is None:
        raise InvalidInput(f"--task {name}: the task names no metric; give --task {name}:METRIC as lm-eval prints it")
    return metric


def _flow(content: object) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump(content, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000).strip()
