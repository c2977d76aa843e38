"""The tasks of a configuration as an evaluator: evaluator.yaml, with a remark on every line of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.json_files import read_object_if_there
from evomerge.mergekit_evolve.evolve_file import EvolveFile, EvolveTask, Keys, Remark
from evomerge.mergekit_evolve.task_folder import TASKS, FoundTask

SHARES = {"search": 0.5, "held_out": 0.5}


class EvolveEvaluator:
    """evaluator.yaml of a configuration.

    Args:
        found: the tasks that are in a search path; the others are lm-eval's own.
        base: folder of the model that gives the tokenizer; None where it is a hub id.

    Attributes:
        content: of evaluator.yaml.
        remarks: on the file's lines, in their order.

    Raises:
        InvalidInput: no evaluator has these tasks, weights, or chats; names the line.
    """

    def __init__(self, file: EvolveFile, name: str, *, found: Mapping[str, FoundTask], base: Path | None) -> None:
        self._file = file
        self._found = found
        self._base = base
        self.remarks: list[Remark] = []
        self.content: dict[str, Any] = {
            "name": name,
            "description": f"The tasks of {file.path.name}, a configuration of mergekit-evolve.",
            **self._folder(),
            "tasks": list(self._tasks()),
            **self._prompts(),
            "split": {"by": "hash", "shares": SHARES},
        }
        self._say("differs", None, "half of the items of each task are searched on, the others are for the verdict")

    def _say(self, kind: Any, line: int | None, text: str) -> None:
        self.remarks.append(Remark(kind=kind, line=line, text=text))

    def _folder(self) -> dict[str, str]:
        own = [task for task in self._file.tasks if task.name not in self._found]
        if own and self._found:
            raise self._file.refusal(
                own[0].keys,
                f"{own[0].name} is in no --task-search-path, and an evaluator has either tasks of a folder or "
                "lm-eval's own; copy its YAML into the folder, or take it out",
            )
        return {"tasks_folder": TASKS} if self._found else {}

    def _tasks(self) -> Iterator[dict[str, Any]]:
        weighed: dict[str, EvolveTask] = {}
        for task in self._file.tasks:
            line = self._file.line(*task.keys)
            if task.weight == 0:
                self._say("left out", line, f"{task.name} has no weight")
                continue
            if task.name in weighed:
                raise self._file.refusal(
                    task.keys, f"{task.name} is there twice; here a task counts once, with one metric and one weight"
                )
            weighed[task.name] = task
            yield self._task(task, line)
        if not weighed:
            raise self._file.refusal(("tasks",), "no task has a weight, so that there is nothing to search for")
        if len(weighed) > 1:
            self._say("same", self._file.line("tasks"), "the mean weighted by them ranks merges as the sum does")
        if self._file.limit is not None:
            self._say(
                "same" if self._file.shuffle else "differs",
                self._file.line("limit"),
                f"{self._file.limit} items of each task, drawn once at random"
                + ("" if self._file.shuffle else "; mergekit takes the first ones"),
            )
        if self._file.shuffle and self._file.limit is None:
            self._say("left out", self._file.line("shuffle"), "without `limit` all items count, in whatever order")

    def _task(self, task: EvolveTask, line: int | None) -> dict[str, Any]:
        content: dict[str, Any] = {"task": task.name, "metric": task.metric}
        if task.filter is not None:
            content["filter"] = task.filter
        if abs(task.weight) != 1:
            content["weight"] = abs(task.weight)
        said = f"{task.name} by {task.metric}" + (f" after the filter {task.filter}" if task.filter else "")
        where = "" if task.name in self._found else ", a task of lm-eval's own"
        self._say("same", line, f"{said}, weight {abs(task.weight):g}{where}")
        self._check_direction(task)
        if self._file.num_fewshot is not None and self._has_examples(task):
            content["num_fewshot"] = self._file.num_fewshot
        if self._file.limit is not None:
            content["limit"] = self._file.limit
        return content

    def _check_direction(self, task: EvolveTask) -> None:
        """Refuse or explain a sign of the weight that says otherwise than the direction that the task states."""
        found = self._found.get(task.name)
        direction = None if found is None else found.higher_is_better(task.metric)
        keys: Keys = (*task.keys, "weight")
        if task.weight < 0 and direction:
            raise self._file.refusal(
                keys,
                f"{task.name} says that more {task.metric} is better, and a search maximises what a task calls better; "
                "write higher_is_better: false into the task",
            )
        if task.weight < 0:
            text = f"the sign has no meaning: {task.name} itself says whether less {task.metric} is better"
            self._say("differs", self._file.line(*keys), text)
        elif direction is False:
            text = f"{task.name} says that less {task.metric} is better, so it is minimised; mergekit maximises it"
            self._say("differs", self._file.line(*task.keys), text)

    def _has_examples(self, task: EvolveTask) -> bool:
        found, line = self._found.get(task.name), self._file.line("num_fewshot")
        if found is not None and found.fewshot_is_fixed:
            if self._file.num_fewshot:
                text = f"{task.name} itself has num_fewshot: 0, which lm-eval never overrides, so it has no examples"
                self._say("same", line, text)
            return False
        self._say("same", line, f"{self._file.num_fewshot} examples before each item of {task.name}")
        return True

    def _prompts(self) -> dict[str, Any]:
        file, chat = self._file, self._chat_template()
        content: dict[str, Any] = {"chat_template": True} if chat else {}
        if file.fewshot_as_multiturn is not None:
            line = file.line("fewshot_as_multiturn")
            if not chat:
                self._say("left out", line, "without a chat there are no turns")
            elif file.fewshot_as_multiturn:
                self._say("same", line, "few-shot examples are turns of the chat")
            else:
                content["fewshot_as_multiturn"] = False
                self._say("same", line, "few-shot examples and the question are one message")
        if file.system_instruction is not None:
            content["system_instruction"] = file.system_instruction
            self._say("same", file.line("system_instruction"), "the system prompt of every item")
        return content

    def _chat_template(self) -> bool:
        """Whether prompts are chats: as the file says, or else where the tokenizer has a template for them."""
        given, line = self._file.apply_chat_template, self._file.line("apply_chat_template")
        has_template = None if self._base is None else _has_chat_template(self._base)
        if given and has_template is False:
            keys: Keys = ("apply_chat_template",)
            raise self._file.refusal(keys, f"the tokenizer in {self._base} has no chat template; write false")
        if given is not None:
            self._say("same", line, "prompts are chats" if given else "prompts are plain text")
            return given
        if has_template is False:
            self._say(
                "differs", None, "prompts are plain text, as the tokenizer has no chat template; mergekit needs one"
            )
            return False
        text = "prompts are chats, mergekit's default"
        if has_template is None:
            text += "; if the tokenizer has no chat template, take chat_template out of evaluator.yaml"
        self._say("same", None, text)
        return True


def _has_chat_template(folder: Path) -> bool:
    settings = read_object_if_there(folder / "tokenizer_config.json") or {}
    return bool(settings.get("chat_template")) or any(folder.glob("chat_template*"))
