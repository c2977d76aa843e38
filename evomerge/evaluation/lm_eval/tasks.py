"""lm-eval's tasks: loaded with their documents, and refused where a search could not use them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.lm_eval.harness_seeds import harness_seeds
from evomerge.messages import in_one_line
from evomerge.packs.benchmarks import refuse_test_split
from evomerge.packs.items import Split
from evomerge.packs.pack import Pack, PackTask, check_allowed
from evomerge.packs.split import item_key


class PreparedTask(ConfigurableTask):  # type: ignore[misc]
    """A task that renders the templates of a frozen item once; lm-eval compiles and renders them for every result."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._rendered: dict[tuple[str, int], Any] = {}
        self._documents: list[Any] = []  # keeps them alive, and with that their ids taken
        self._eval_docs: Any = None
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    @property
    def task_name(self) -> str:
        """The task's name; lm-eval's property draws a spare name from the global generator at each call."""
        return str(self.config.task)

    @property
    def eval_docs(self) -> Any:
        """The task's documents; lm-eval processes them at each access, and code that draws at random gives others."""
        if self._eval_docs is None:
            self._eval_docs = super().eval_docs
        return self._eval_docs

    def remember(self, document: Any) -> None:
        self._documents.append(document)
        rendered = {"text": self.doc_to_text(document), "target": self.doc_to_target(document)}
        if self.config.doc_to_choice is not None:
            rendered["choice"] = self.doc_to_choice(document)
        self._rendered.update({(what, id(document)): value for what, value in rendered.items()})

    def doc_to_text(self, doc: Any, doc_to_text: Any = None) -> Any:
        key = ("text", id(doc))
        known = doc_to_text is None and key in self._rendered
        return self._rendered[key] if known else super().doc_to_text(doc, doc_to_text)

    def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> Any:
        key = ("target", id(doc))
        known = doc_to_target is None and key in self._rendered
        return self._rendered[key] if known else super().doc_to_target(doc, doc_to_target)

    def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> Any:
        key = ("choice", id(doc))
        known = doc_to_choice is None and key in self._rendered
        return self._rendered[key] if known else super().doc_to_choice(doc, doc_to_choice)


def load_tasks(pack: Pack, allow: Collection[str]) -> dict[str, Any]:
    """The pack's lm-eval tasks with their documents, by name.

    Raises:
        InvalidInput: see `HarnessEvaluator`.
    """
    check_allowed(pack, allow)
    if pack.tasks_path is None:
        manager = TaskManager()
    else:
        manager = TaskManager(include_path=str(pack.tasks_path), include_defaults=False)
    members = [_member(pack, entry, manager.task_index) for entry in pack.tasks]
    try:
        # Only members of a group are built from their YAML and our overrides; a bare mapping replaces the YAML.
        with harness_seeds():
            tasks: dict[str, Any] = manager.load({"group": pack.name, "task": members})["tasks"]
    except Exception as error:  # anything: templates, data and code of the pack are run here for the first time
        cause = error.__cause__ or error
        reason = in_one_line(cause)
        raise InvalidInput(f"lm-eval cannot load the tasks of evaluator {pack.name!r}: {reason}") from error
    for entry in pack.tasks:
        _check_task(tasks[entry.task], entry, allow, builtin=pack.tasks_path is None)
    return {entry.task: tasks[entry.task] for entry in pack.tasks}


def _member(pack: Pack, entry: PackTask, index: Mapping[str, Any]) -> dict[str, Any]:
    if entry.task not in index:
        raise unknown_name("task", entry.task, index)
    known = index[entry.task]
    if known.kind.name not in ("TASK", "PY_TASK"):
        raise InvalidInput(
            f"{entry.task!r} is a {known.kind.name.lower()} of tasks; list those of its tasks that shall count, each "
            f"with its metric"
        )
    own = {} if known.kind.name == "PY_TASK" else {"class": PreparedTask}
    file = pack.task_files.get(entry.task)
    return {"task": entry.task, **own, **(file.dataset(pack.folder) if file else {})}


def _check_task(task: Any, entry: PackTask, allow: Collection[str], *, builtin: bool) -> None:
    if builtin and "benchmark_test_sets" not in allow and task.has_test_docs():
        raise refuse_test_split(entry.task)
    if is_unsafe(task) and "task_code" not in allow:
        raise InvalidInput(
            f"task {entry.task!r} runs code that the model writes; write 'task_code' into allow for that"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InvalidInput(f"task {entry.task!r} needs images or sound; only text is scored")
    own = task.config.num_fewshot
    if own == 0 and entry.num_fewshot:
        raise InvalidInput(
            f"task {entry.task!r} fixes num_fewshot at 0, which lm-eval never overrides; remove it from the task, or "
            f"num_fewshot: {entry.num_fewshot} from the evaluator"
        )
    task.set_config("num_fewshot", own or 0 if entry.num_fewshot is None else entry.num_fewshot)


def refuse_leaking_examples(pack: Pack, tasks: Mapping[str, Any], split: Split) -> None:
    """Refuse few-shot examples that are held-out items of any task: the prompts of the search would show them."""
    drawing = {name: task for name, task in tasks.items() if task.config.num_fewshot}
    if not drawing:
        return
    held_out: dict[str, str] = {}  # key of an item -> the task
    for name, task in tasks.items():
        documents = documents_of(task)
        held_out |= {item_key(documents[item], pack.split): name for item in split.parts["held_out"][name]}
    for name, task in drawing.items():
        examples = (item_key(example, pack.split) for example in task.sampler.fewshot_docs())
        shown = next((held_out[example] for example in examples if example in held_out), None)
        if shown is not None:
            raise InvalidInput(
                f"task {name!r} would draw held-out items of task {shown!r} as few-shot examples; give the task a "
                f"fewshot_split with documents of its own, or set num_fewshot: 0"
            )


def documents_of(task: Any) -> Any:
    """The documents of a task, which its own code may draw at random."""
    with harness_seeds():
        return task.eval_docs


def is_unsafe(task: Any) -> bool:
    return bool(getattr(task, "UNSAFE_CODE", False))


def builtin_configs(pack: Pack, tasks: Mapping[str, Any]) -> dict[str, str]:
    """The configurations of lm-eval's own tasks, which no file of the pack holds, as JSON."""
    if pack.tasks_path is not None:
        return {}
    elsewhere = ("metadata", "dataset_kwargs", "class")
    configs = {name: task.dump_config() for name, task in tasks.items()}
    return {
        name: json.dumps(
            {key: value for key, value in config.items() if key not in elsewhere}, sort_keys=True, default=_name_of
        )
        for name, config in configs.items()
    }


def _name_of(value: Any) -> str:
    """A function or class by its name; what `str` says of it holds an address."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))
