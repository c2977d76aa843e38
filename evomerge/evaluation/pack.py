"""Evaluator packs: folders that say how a merge is scored. Read and checked here as data; nothing in them is run.

```yaml
# evaluators/<name>/evaluator.yaml
name: toy-skills
description: ...
tasks_folder: tasks            # lm-eval task YAMLs of the pack; without it the tasks are lm-eval's own
tasks:
  - {task: toy_shift, metric: exact_match}     # optional: filter, weight, num_fewshot, limit
split: {by: field, field: part}                # or {by: hash, shares: {calibration: 0.1, search: 0.4, held_out: 0.5}}
```
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.evaluator import Part
from evomerge.spaces.document import MAX_ALIASES, MAX_BYTES, read_document, read_text, validate
from evomerge.spaces.shipped import shipped_folder

PACK_FILE = "evaluator.yaml"

# Builders of `datasets` that read plain files: only with these do relative paths mean files of the pack.
FILE_BUILDERS = frozenset({"json", "csv", "parquet", "arrow", "text", "xml", "imagefolder", "audiofolder"})

# Benchmarks whose published numbers would mean nothing for a model that was selected on them: how the names of
# lm-eval's tasks for them look, and where their documents come from.
_BENCHMARK_TASKS = re.compile(
    r"(?:^|_)(?:mmlu|gsm8k|gsm_plus|hellaswag|arc_(?:easy|challenge)|winogrande|truthfulqa|humaneval|mbpp|ifeval|bbh|"
    r"bigbench|math|hendrycks_math|minerva_math|gpqa|mgsm|piqa|boolq|openbookqa|commonsense_qa|triviaqa|nq_open|drop|"
    r"lambada|agieval|musr|aime|squad\w*|race|ceval|cmmlu|xcopa|xnli|glue|super_glue|leaderboard)(?:_|$)"
)
_BENCHMARK_DATA = re.compile(
    r"(?:^|/)(?:mmlu\w*|mmlu[-_]pro|gsm8k|hellaswag|ai2_arc|winogrande|truthful_?qa|openai_humaneval|humaneval\w*|mbpp|"
    r"ifeval|bbh|bigbench\w*|big_bench_hard|hendrycks_math|competition_math|math-?500|minerva_math|gpqa|mgsm|piqa|boolq|"
    r"openbookqa|commonsense_qa|trivia_?qa|nq_open|drop|lambada\w*|agieval\w*|musr|aime\w*|squad\w*|race|ceval\w*|"
    r"cmmlu|xcopa|xnli|glue|super_glue)$",
    re.IGNORECASE,
)

# What reaches into Python from a template; lm-eval renders templates without a sandbox.
_TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_TEMPLATE_CODE = re.compile(r"__|\\x5f|\\u005f|\|\s*attr\b")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class PackTask(_Frozen):
    """One task of the objective.

    Attributes:
        task: name of an lm-eval task.
        metric: one of the task's metrics, as lm-eval prints it, without the filter.
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
    limit: Annotated[int, Field(gt=0)] | None = None


class FieldSplit(_Frozen):
    """Every document says which part it belongs to."""

    by: Literal["field"]
    field: Annotated[str, Field(min_length=1)]


class HashSplit(_Frozen):
    """The part follows from the content of the document, so that new documents move no old one to another part."""

    by: Literal["hash"]
    shares: Mapping[Part, Annotated[float, Field(ge=0, le=1)]]

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


class Pack(_Frozen):
    """An evaluator pack, as its evaluator.yaml describes it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
    description: str = ""
    tasks_folder: str | None = None
    tasks: Annotated[tuple[PackTask, ...], Field(min_length=1)]
    chat_template: bool = False
    system_instruction: str | None = None
    max_length: Annotated[int, Field(gt=1)] | None = None
    split: SplitRule

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _tasks_once(self) -> Pack:
        names = [entry.task for entry in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task {twice[0]!r} is listed twice; a task counts once, with one metric")
        return self

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
        known = _read_tasks(self.folder, self.tasks_path)
        for entry in self.tasks:
            if entry.task not in known:
                raise unknown_name(f"task in {self.tasks_path}:", entry.task, known)
        return {entry.task: known[entry.task] for entry in self.tasks}

    @property
    def fingerprint(self) -> str:
        """Digest of everything in the pack that determines a score: settings, task YAMLs, data and code."""
        settings = self.model_dump(mode="json", exclude={"name", "description"})
        content = {"settings": settings, "files": _data_digests(self), "code": code_files(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class CodeReference:
    """A `!function` in a YAML: the function, and the folder that its module is looked for in."""

    function: str
    folder: Path

    @property
    def file(self) -> Path:
        module = self.function.rpartition(".")[0]
        return (self.folder / f"{module.replace('.', '/')}.py").resolve()


@dataclass(frozen=True)
class TaskFile:
    """A task YAML of a pack with its includes, read as data.

    Attributes:
        name: the task.
        files: the YAML itself and everything that it includes.
        config: the task's configuration; functions stand in it as `CodeReference`.
    """

    name: str
    files: tuple[Path, ...]
    config: Mapping[str, Any]

    @property
    def evaluated_split(self) -> str | None:
        """The split of the dataset whose documents are the task's items."""
        return self.config.get("test_split") or self.config.get("validation_split")

    def code(self) -> list[str]:
        """Everything in this task that runs code, in words."""
        functions = [
            f"!function {value.function}" for value in _leaves(self.config) if isinstance(value, CodeReference)
        ]
        templates = [
            f"template {value[:60]!r}" for value in _leaves(self.config) if isinstance(value, str) and _is_code(value)
        ]
        switches = ["unsafe_code: it runs what the model writes"] if self.config.get("unsafe_code") else []
        if (self.config.get("dataset_kwargs") or {}).get("trust_remote_code"):
            switches.append("trust_remote_code: the dataset brings its own code")
        if str(self.config.get("dataset_path", "")).endswith(".py"):
            switches.append(f"dataset_path {self.config['dataset_path']}")
        return list(dict.fromkeys(functions + templates + switches))

    def dataset(self, folder: Path) -> dict[str, Any]:
        """The keys of the configuration that name data, with relative paths resolved against the pack's folder."""
        builder, options = self.config.get("dataset_path"), dict(self.config.get("dataset_kwargs") or {})
        resolved: dict[str, Any] = {}
        if isinstance(builder, str) and "://" not in builder and (folder / builder).is_dir():
            resolved["dataset_path"] = str((folder / builder).resolve())
        elif builder not in FILE_BUILDERS:
            return {}
        for key in ("data_files", "data_dir"):
            if key in options:
                options[key] = _map_strings(options[key], lambda path: _absolute(path, folder))
        return {**resolved, "dataset_kwargs": options} if options else resolved

    def data_paths(self, folder: Path) -> list[Path]:
        """The files that hold the task's documents and few-shot examples, as far as they are on this machine."""
        dataset = self.dataset(folder)
        options = dataset.get("dataset_kwargs", {})
        named = [dataset.get("dataset_path"), options.get("data_files"), options.get("data_dir")]
        return sorted({file for path in _leaves(named) if isinstance(path, str) for file in self._files_at(path)})

    def _files_at(self, path: str) -> list[Path]:
        if "://" in path:
            return []
        found = [Path(path)] if Path(path).exists() else list(Path("/").glob(path.lstrip("/")))
        files = [file for each in found for file in ([each] if each.is_file() else each.rglob("*")) if file.is_file()]
        if not files:
            raise InvalidInput(
                f"task {self.name!r}: data {path!r} does not exist; data paths are relative to the folder of the pack"
            )
        return files


def load_pack(name_or_path: str | Path) -> Pack:
    """An evaluator pack by the name of a shipped one, or by the path of its folder.

    Raises:
        InvalidInput: no such pack, or a pack that is not well-formed.
    """
    folder = _find(str(name_or_path))
    content = read_document(folder / PACK_FILE, "evaluator")
    pack = validate(Pack, content, f"evaluator {str(folder / PACK_FILE)!r}")
    pack._folder = folder
    tasks = pack.tasks_path
    if tasks is not None and not (tasks.is_dir() and tasks.resolve().is_relative_to(folder)):
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
            _refuse_benchmark(entry.task, tasks.get(entry.task))


def refuse_test_split(task: str) -> InvalidInput:
    """The error for a task whose items are a public test set."""
    return InvalidInput(
        f"task {task!r} scores on the items that a public benchmark reports: a model selected on them has no honest "
        f"score there any more; search on its training split or on other items, or write 'benchmark_test_sets' into "
        f"allow and do not publish that benchmark's score"
    )


def _refuse_benchmark(name: str, task: TaskFile | None) -> None:
    if task is None:
        if _BENCHMARK_TASKS.search(name):
            raise refuse_test_split(name)
        return
    split = task.evaluated_split or ""
    if _BENCHMARK_DATA.search(str(task.config.get("dataset_path", ""))) and not split.startswith("train"):
        raise refuse_test_split(name)


def _refuse_foreign_code(pack: Pack, task: TaskFile) -> None:
    for value in _leaves(task.config):
        if isinstance(value, CodeReference) and not (
            value.file.is_file() and value.file.is_relative_to(pack.folder.resolve())
        ):
            raise InvalidInput(
                f"evaluator {pack.name!r}, task {task.name!r}: !function {value.function} is not in a Python file of "
                f"the pack (looked for {value.file}); code of an evaluator must lie in its folder"
            )


def _find(name_or_path: str) -> Path:
    if name_or_path in known_packs():
        return (shipped_folder("evaluators") / name_or_path).resolve()
    path = Path(name_or_path).expanduser()
    folder = path.parent if path.name == PACK_FILE else path
    if (folder / PACK_FILE).is_file():
        return folder.resolve()
    if path.is_dir():
        raise InvalidInput(f"folder {name_or_path!r} is no evaluator: it has no {PACK_FILE}")
    raise unknown_name("evaluator", name_or_path, known_packs())


def _read_tasks(folder: Path, tasks: Path) -> dict[str, TaskFile]:
    found: dict[str, TaskFile] = {}
    for path in sorted(tasks.rglob("*.yaml")):
        config, files = _read_task(path, folder, ())
        name = config.get("task")
        if not isinstance(name, str) or "group" in config:
            continue  # a template that others include, or a group
        if name in found:
            raise InvalidInput(f"task {name!r} is defined twice: in {found[name].files[0]} and in {path}")
        found[name] = TaskFile(name, files, config)
    return found


def _read_task(path: Path, folder: Path, including: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """A task YAML with its includes, the way lm-eval merges them: later ones win, the file's own keys win over all."""
    path = path.resolve()
    if path in including:
        raise InvalidInput(f"{path} includes itself, by way of {including[-1]}")
    if not path.is_relative_to(folder.resolve()):
        raise InvalidInput(
            f"{including[-1] if including else folder} includes {path}, which is outside the pack {folder}"
        )
    own = _read_yaml(path)
    includes = own.pop("include", None) or []
    merged: dict[str, Any] = {}
    files = [path]
    for include in [includes] if isinstance(includes, str) else includes:
        content, more = _read_task(path.parent / include, folder, (*including, path))
        merged.update(content)
        files += more
    return {**merged, **own}, tuple(dict.fromkeys(files))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidInput(f"task file {path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(f"task file {path} is larger than {MAX_BYTES} bytes; documents belong into data files")
    text = read_text(path, "task file")

    class Loader(yaml.SafeLoader):
        pass

    def reference(_: yaml.SafeLoader, node: yaml.Node) -> CodeReference:
        return CodeReference(str(node.value), path.parent)

    Loader.add_constructor("!function", reference)
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
        content = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise InvalidInput(f"task file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if aliases > MAX_ALIASES // 5:  # every value is walked, so that a few nested ones already are a bomb
        raise InvalidInput(f"task file {path} has {aliases} YAML aliases, {MAX_ALIASES // 5} are allowed")
    if not isinstance(content, dict):
        raise InvalidInput(f"task file {path} must hold 'key: value' pairs at the top")
    return content


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


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str(folder.resolve() / path)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(each, change) for key, each in value.items()}
    return [_map_strings(each, change) for each in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _is_code(text: str) -> bool:
    return any(_TEMPLATE_CODE.search(expression) for expression in _TEMPLATE.findall(text))
