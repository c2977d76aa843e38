"""Evaluator packs: folders that say how a merge is scored. Read and checked here as data; nothing in them is run.

```yaml
# evaluators/<name>/evaluator.yaml
name: toy-skills
description: ...
tasks_folder: tasks            # lm-eval task YAMLs of the pack; without it the tasks are lm-eval's own
tasks:
  - {task: toy_shift, metric: exact_match}     # optional: filter, weight, num_fewshot, limit
split: {by: field, field: part}                # or {by: hash, shares: {calibration: 0.1, search: 0.4, held_out: 0.5},
                                               #     fields: [question]}: one question, one part
# optional, as lm-eval has them: apply_chat_template, fewshot_as_multiturn, system_instruction, max_length
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from evomerge.documents import Frozen, Positive, read_document, validate
from evomerge.errors import InvalidInput, unknown_name
from evomerge.forms import expanded, is_file, is_folder
from evomerge.packs.benchmarks import refuse_benchmark
from evomerge.packs.items import Part
from evomerge.packs.task_files import CodeReference, TaskFile, leaves, read_tasks
from evomerge.shipped import shipped_folder

PACK_FILE = "evaluator.yaml"
OF_THE_SEARCH = {  # settings of lm-eval that belong to the live model, which all evaluators of a search share
    "dtype": "write dtype into search.yaml: merges are scored in it",
    "trust_remote_code": "write allow: [remote_code] into search.yaml",
}


class PackTask(Frozen):
    """One task of the objective.

    Attributes:
        task: name of an lm-eval task.
        metric: one of the task's metrics, as lm-eval prints it. Its filter may follow, as in `exact_match,strict`.
        filter: one of the task's filters; the first one without it.
        weight: weight of the task in the objective, before normalisation.
        num_fewshot: examples in the prompt; the task's own number without it.
        limit: how many items of the search part are used: a seeded sample, never the first ones.
    """

    task: Annotated[str, Field(min_length=1)]
    metric: Annotated[str, Field(min_length=1)]
    filter: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    limit: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_in_results(cls, content: Any) -> Any:
        """Take the filter from behind the metric, where lm-eval writes it among its results."""
        named = content.get("metric") if isinstance(content, Mapping) else None
        if not isinstance(named, str) or "," not in named:
            return content
        metric, _, chosen = named.partition(",")
        if (content.get("filter") or chosen) != chosen:
            raise ValueError(f"metric {named!r} and filter {content['filter']!r} name two filters; leave one out")
        return {**content, "metric": metric, "filter": chosen}


class FieldSplit(Frozen):
    """Every document says which part it belongs to.

    Attributes:
        by: the rule.
        field: field of the documents that holds calibration, search or held_out.
    """

    by: Literal["field"]
    field: Annotated[str, Field(min_length=1)]


class HashSplit(Frozen):
    """The part follows from the content of the document, so that new documents move no old one to another part.

    Attributes:
        by: the rule.
        shares: part (calibration, search, held_out) -> its share; together they are 1.
        fields: those that make an item: documents that are equal in them are in one part. All without it.
    """

    by: Literal["hash"]
    shares: Mapping[Part, Annotated[float, Field(ge=0, le=1)]]
    fields: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None

    @field_validator("shares")
    @classmethod
    def _complete(cls, shares: Mapping[Part, float]) -> Mapping[Part, float]:
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"the shares must add up to 1, but add up to {sum(shares.values()):g}")
        if not (shares.get("search") and shares.get("held_out")):
            raise ValueError(
                "search and held_out must both get a share: the verdict needs items that no trial has seen"
            )
        return shares


SplitRule = Annotated[FieldSplit | HashSplit, Field(discriminator="by")]


class Pack(Frozen):
    """An evaluator pack, as its evaluator.yaml describes it.

    Attributes:
        name: of the pack.
        description: for those who choose one; no score depends on it.
        tasks_folder: folder in the pack with the YAML files of its tasks; without it the tasks are lm-eval's own.
        tasks: the tasks that are scored, each once.
        chat_template: prompts are chats by the tokenizer's template. The key may also be `apply_chat_template`, as in
            lm-eval.
        fewshot_as_multiturn: whether few-shot examples of a chat are turns of their own, and not one message with the
            question; without it they are, as in lm-eval.
        system_instruction: begins every prompt, before the description of the task.
        max_length: tokens that the model is given at most; as many as its config says without it.
        split: rule that divides the items into calibration, search and held-out ones.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
    description: str = ""
    tasks_folder: str | None = None
    tasks: Annotated[tuple[PackTask, ...], Field(min_length=1)]
    chat_template: bool = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    max_length: Annotated[int, Field(gt=1)] | None = None
    split: SplitRule

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="before")
    @classmethod
    def _named_as_in_lm_eval(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        for name, advice in OF_THE_SEARCH.items():
            if name in content:
                raise ValueError(f"{name} is no setting of an evaluator; {advice}")
        if "apply_chat_template" not in content:
            return content
        if "chat_template" in content:
            raise ValueError("chat_template and apply_chat_template are the same setting; leave one of them out")
        return {"chat_template" if key == "apply_chat_template" else key: value for key, value in content.items()}

    @model_validator(mode="after")
    def _turns_need_a_chat(self) -> Pack:
        if self.fewshot_as_multiturn and not self.chat_template:
            raise ValueError("fewshot_as_multiturn needs a chat; set apply_chat_template: true")
        return self

    @model_validator(mode="after")
    def _tasks_once(self) -> Pack:
        names = [entry.task for entry in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task {twice[0]!r} is listed twice; a task counts once, with one metric")
        return self

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples are turns of a chat: `fewshot_as_multiturn` with lm-eval's default filled in."""
        return self.chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

    @property
    def folder(self) -> Path:
        """Absolute path of the pack."""
        return self._folder

    @property
    def tasks_path(self) -> Path | None:
        """Absolute path of the folder with the pack's task YAMLs, None where the tasks are lm-eval's own."""
        return None if self.tasks_folder is None else self._folder / self.tasks_folder

    @property
    def task_files(self) -> dict[str, TaskFile]:
        """Task -> what its YAML says; empty where the tasks are lm-eval's own."""
        if self.tasks_path is None:
            return {}
        known = read_tasks(self.folder, self.tasks_path)
        for entry in self.tasks:
            if entry.task not in known:
                raise unknown_name(f"task in {self.tasks_path}:", entry.task, known)
        return {entry.task: known[entry.task] for entry in self.tasks}

    @property
    def fingerprint(self) -> str:
        """Digest of everything in the pack that determines a score: settings, task YAMLs, data and code."""
        exclude: Any = dict.fromkeys(("name", "description"), True)
        if self.multiturn == self.chat_template:
            exclude["fewshot_as_multiturn"] = True
        if isinstance(self.split, HashSplit) and self.split.fields is None:  # packs before it have no such key
            exclude["split"] = {"fields"}
        settings = self.model_dump(mode="json", exclude=exclude)
        content = {"settings": settings, "files": _data_digests(self), "code": code_files(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def load_pack(name_or_path: str | Path, others: Collection[str] = ()) -> Pack:
    """An evaluator pack by the name of a shipped one, or by the path of its folder.

    Args:
        others: names of evaluators that are no packs, which an error offers too where the caller takes them.

    Raises:
        InvalidInput: no such pack, or a pack that is not well-formed.
    """
    folder = _find(str(name_or_path), others)
    content = read_document(folder / PACK_FILE, "evaluator")
    pack = validate(Pack, content, f"evaluator {str(folder / PACK_FILE)!r}")
    pack._folder = folder
    tasks = pack.tasks_path
    if tasks is not None and not (is_folder(tasks) and tasks.resolve().is_relative_to(folder)):
        raise InvalidInput(f"evaluator {pack.name!r}: tasks_folder {pack.tasks_folder!r} is no folder inside {folder}")
    for task in pack.task_files.values():
        _refuse_foreign_code(pack, task)
    return pack


def known_packs() -> list[str]:
    """The names of the shipped packs."""
    return sorted(path.parent.name for path in shipped_folder("evaluators").glob(f"*/{PACK_FILE}"))


def code_files(pack: Pack) -> dict[str, str]:
    """Path inside the pack -> SHA-256 of every Python file in it. Whoever allows `task_code` runs these."""
    return {_name_in(pack.folder, path): _sha256(path) for path in sorted(pack.folder.rglob("*.py"))}


def check_allowed(pack: Pack, allow: Collection[str]) -> None:
    """Refuse what has to be allowed by name: code in a pack, and searching on the test set of a public benchmark.

    Raises:
        InvalidInput: names the tasks, and what to write into `allow`.
    """
    tasks = pack.task_files
    code = {name: found for name, task in tasks.items() if (found := task.code())}
    if code and "task_code" not in allow:
        listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in code.items())
        raise InvalidInput(
            f"evaluator {pack.name!r} runs code ({listed}); read it, then write 'task_code' into allow, or choose an "
            f"evaluator without code"
        )
    if "benchmark_test_sets" not in allow:
        for entry in pack.tasks:
            refuse_benchmark(entry.task, tasks.get(entry.task))


def _refuse_foreign_code(pack: Pack, task: TaskFile) -> None:
    for value in leaves(task.config):
        if isinstance(value, CodeReference) and not (
            is_file(value.file) and value.file.is_relative_to(pack.folder.resolve())
        ):
            raise InvalidInput(
                f"evaluator {pack.name!r}, task {task.name!r}: !function {value.function} is not in a Python file of "
                f"the pack (looked for {value.file}); code of an evaluator must lie in its folder"
            )


def _find(name_or_path: str, others: Collection[str]) -> Path:
    if name_or_path in known_packs():
        return (shipped_folder("evaluators") / name_or_path).resolve()
    path = expanded(name_or_path)
    folder = path.parent if path.name == PACK_FILE else path
    if is_file(folder / PACK_FILE):
        return folder.resolve()
    if is_folder(path):
        raise InvalidInput(f"folder {name_or_path!r} is no evaluator: it has no {PACK_FILE}")
    raise unknown_name("evaluator", name_or_path, [*known_packs(), *others])


def _data_digests(pack: Pack) -> list[tuple[str, str]]:
    """Name and SHA-256 of the task YAMLs and data files; data outside the pack is named without its folder."""
    tasks = pack.task_files.values()
    files = {file.resolve() for task in tasks for file in (*task.files, *task.data_paths(pack.folder))}
    return sorted((_name_in(pack.folder, file), _sha256(file)) for file in files)


def _name_in(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
