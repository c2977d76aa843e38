"""Task YAMLs of a pack, read as data: includes are followed, code is found and never run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from evomerge.documents import MAX_ALIASES, MAX_BYTES, check_bounds, read_text
from evomerge.errors import InvalidInput
from evomerge.forms import is_file, is_folder, reading

# Builders of `datasets` that read plain files: only with these do relative paths mean files of the pack.
FILE_BUILDERS = frozenset({"json", "csv", "parquet", "arrow", "text", "xml", "imagefolder", "audiofolder"})

MAX_FILES = 10_000  # of the data of one task
FEWEST_PARTS = 2  # of the path of a folder whose files are data: those of / or /home are not

# What reaches into Python from a template; lm-eval renders templates without a sandbox.
_TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_TEMPLATE_CODE = re.compile(r"__|\\x5f|\\u005f|\|\s*attr\b")


class _Data(BaseModel):
    """The keys of a task that name its data."""

    dataset_path: str | None = None
    dataset_kwargs: dict[str, Any] | None = None
    test_split: str | None = None
    validation_split: str | None = None


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
        functions = [f"!function {value.function}" for value in leaves(self.config) if isinstance(value, CodeReference)]
        templates = [
            f"template {value[:60]!r}" for value in leaves(self.config) if isinstance(value, str) and _is_code(value)
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
        if isinstance(builder, str) and "://" not in builder and is_folder(folder / builder):
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
        paths = [path for path in leaves(named) if isinstance(path, str)]
        return sorted({file for path in paths for file in self._files_at(path, folder)})

    def _files_at(self, path: str, folder: Path) -> list[Path]:
        if "://" in path:
            return []
        with reading(f"task {self.name!r}: data {path!r}"):  # a pattern that is none
            files = list(islice(_files_of(path, folder), MAX_FILES + 1))
        if len(files) > MAX_FILES:
            raise InvalidInput(
                f"task {self.name!r}: data {path!r} are more than {MAX_FILES} files; name those it needs"
            )
        if not files:
            raise InvalidInput(
                f"task {self.name!r}: data {path!r} does not exist; data paths are relative to the folder of the pack"
            )
        return files


def _files_of(path: str, folder: Path) -> Iterator[Path]:
    """The files at a path, in a folder, or of a pattern."""
    if is_file(Path(path)):
        yield Path(path)
        return
    inside = Path(path).is_relative_to(folder.resolve())
    if is_folder(Path(path)):
        if inside or len(Path(path).resolve().parts) > FEWEST_PARTS:
            yield from (file for file in Path(path).rglob("*") if file.is_file())
        return
    if inside or "**" not in path:  # elsewhere it would look through the whole machine
        found = Path("/").glob(path.lstrip("/")) if path.strip("/") else ()
        with suppress(OSError):  # a name that no file can have
            yield from (file for file in found if file.is_file())


def read_tasks(folder: Path, tasks: Path) -> dict[str, TaskFile]:
    found: dict[str, TaskFile] = {}
    for path in sorted(tasks.rglob("*.yaml")):
        config, files = _read_task(path, folder, ())
        name = config.get("task")
        if not isinstance(name, str) or "group" in config:
            continue  # a template that others include, or a group
        if name in found:
            raise InvalidInput(f"task {name!r} is defined twice: in {found[name].files[0]} and in {path}")
        with reading(f"task file {path}"):
            _Data.model_validate(config)
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
    if not is_file(path):
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
        # Every value is walked, so that a few nested aliases already are a bomb.
        check_bounds(text, f"task file {path}", aliases=MAX_ALIASES // 5)
        content = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"task file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"task file {path} must hold 'key: value' pairs at the top")
    return content


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str(folder.resolve() / path)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(each, change) for key, each in value.items()}
    return [_map_strings(each, change) for each in value] if isinstance(value, list | tuple) else value


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def _is_code(text: str) -> bool:
    return any(_TEMPLATE_CODE.search(expression) for expression in _TEMPLATE.findall(text))
