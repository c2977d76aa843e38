"""A configuration of mergekit-evolve, read and checked for its form, with the lines of its values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from evomerge.documents import Document, read_documents
from evomerge.errors import InvalidInput, nearest
from evomerge.genomes.genome_settings import EVOLUTIONARY_PARAMETERS

KIND = "mergekit-evolve configuration"
METHODS_WITH_BASE = frozenset({"ties", "dare_ties", "task_arithmetic"})

Keys = tuple[str | int, ...]

_GENOME = frozenset(
    {
        "models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize",
        "allow_negative_weights", "filters", "smooth",
    }
)  # fmt: skip
_TOP = frozenset(
    {
        "genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template",
        "fewshot_as_multiturn", "system_instruction",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One sentence on a line of the file, or on an option or a default where there is no line.

    Attributes:
        kind: `same`: it means the same here; `differs`: something else; `left out`: nothing.
    """

    kind: Literal["same", "differs", "left out"]
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{'' if self.line is None else f'line {self.line}, '}{self.kind}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class EvolveTask:
    """A task of the objective.

    Attributes:
        metric, filter: lm-eval's, of the text "metric,filter"; the filter is None where the text has none.
        keys: where it is in the file.
    """

    name: str
    weight: float
    metric: str
    filter: str | None
    keys: Keys


@dataclass(frozen=True, kw_only=True)
class EvolveFile:
    """The configuration. Values that the file does not state are None.

    Attributes:
        models, base_model, tokenizer_source: as the file names them.
        layer_granularity: layers per group; 0 for one group.
    """

    path: Path
    models: tuple[str, ...]
    method: str
    base_model: str | None
    tokenizer_source: str | None
    layer_granularity: int
    normalize: bool | None
    allow_negative_weights: bool
    filters: tuple[str, ...]
    smooth: bool
    tasks: tuple[EvolveTask, ...]
    limit: int | None
    num_fewshot: int | None
    shuffle: bool
    random_init: bool
    apply_chat_template: bool | None
    fewshot_as_multiturn: bool | None
    system_instruction: str | None
    _document: Document = field(repr=False)

    def refusal(self, keys: Keys, reason: str) -> InvalidInput:
        """The error that names the line of the value under these keys."""
        return InvalidInput(f"{self.path}, line {self._document.line(keys)}: {reason}")

    def line(self, *keys: str | int) -> int | None:
        """The line of a value; None where the file does not state it."""
        content: Any = self._document.content
        for key in keys:
            if isinstance(key, int):
                content = content[key]
            elif not isinstance(content, Mapping) or content.get(key) is None:
                return None
            else:
                content = content[key]
        return self._document.line(keys)


def read_evolve_file(path: Path) -> EvolveFile:
    """The configuration in a file.

    Raises:
        InvalidInput: this is no configuration of mergekit-evolve, or has a key or a value that it cannot have; names
            the line.
    """
    documents = read_documents(path, KIND)
    content = documents[0].content
    if len(documents) > 1 or "genome" not in content:
        known = "it has `genome` and `tasks`" if "merge_method" not in content else "this is a file of one merge"
        raise InvalidInput(f"{path} is no {KIND}: {known}; `evomerge import mergekit` reads files of single merges")
    return _SearchReader(path, documents[0]).read()


class _SearchReader:
    def __init__(self, path: Path, document: Document) -> None:
        self._path = path
        self._document = document
        self._content = document.content

    def read(self) -> EvolveFile:
        genome, inside = self._content["genome"], ("genome",)
        if not isinstance(genome, dict):
            raise self._refusal(inside, "`genome` has `models` and `merge_method`")
        self._check_keys(self._content, _TOP, ())
        self._check_keys(genome, _GENOME, inside)
        file = EvolveFile(
            path=self._path,
            models=self._models(genome.get("models")),
            method=self._method(genome.get("merge_method")),
            base_model=self._optional_model(genome, "base_model"),
            tokenizer_source=self._optional_text(genome, "tokenizer_source", inside),
            layer_granularity=max(self._integer(genome, "layer_granularity", inside) or 0, 0),
            normalize=self._flag(genome, "normalize", inside),
            allow_negative_weights=bool(self._flag(genome, "allow_negative_weights", inside)),
            filters=self._filters(genome.get("filters")),
            smooth=bool(self._flag(genome, "smooth", inside)),
            tasks=self._tasks(self._content.get("tasks")),
            limit=self._integer(self._content, "limit", (), low=1),
            num_fewshot=self._integer(self._content, "num_fewshot", (), low=0),
            shuffle=bool(self._flag(self._content, "shuffle", ())),
            random_init=bool(self._flag(self._content, "random_init", ())),
            apply_chat_template=self._flag(self._content, "apply_chat_template", ()),
            fewshot_as_multiturn=self._flag(self._content, "fewshot_as_multiturn", ()),
            system_instruction=self._optional_text(self._content, "system_instruction", ()),
            _document=self._document,
        )
        self._check_genome(file)
        return file

    def _check_genome(self, file: EvolveFile) -> None:
        if file.method in METHODS_WITH_BASE and file.base_model is None:
            raise self._refusal(("genome", "merge_method"), f"{file.method} needs a `base_model`")
        for key in ("filters", "smooth") if file.method == "slerp" else ():
            if getattr(file, key):
                raise self._refusal(("genome", key), f"slerp has one pair of models per group, so that `{key}` is off")
        if file.method == "linear" and file.allow_negative_weights:
            raise self._refusal(
                ("genome", "allow_negative_weights"),
                "an average has no weights below 0 here; leave it out, or use `merge_method: task_arithmetic`",
            )

    def _refusal(self, keys: Keys, reason: str) -> InvalidInput:
        return InvalidInput(f"{self._path}, line {self._document.line(keys)}: {reason}")

    def _check_keys(self, content: Mapping[str, Any], known: Collection[str], keys: Keys) -> None:
        for key in content:
            if key not in known:
                close = nearest(str(key), known)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
                raise self._refusal((*keys, key), f"mergekit-evolve has no `{key}`; {hint}")

    def _models(self, content: Any) -> tuple[str, ...]:
        keys: Keys = ("genome", "models")
        if not isinstance(content, list) or not content:
            raise self._refusal(keys, "`models` is a list of directories and hub ids")
        models = [self._model(each, (*keys, place)) for place, each in enumerate(content)]
        for place, model in enumerate(models):
            if model in models[:place]:
                raise self._refusal((*keys, place), f"{model} is there twice; a recipe merges a model once")
        return tuple(models)

    def _model(self, content: Any, keys: Keys) -> str:
        """A model as one text, PLACE, PLACE@REVISION or PLACE+ADAPTER; mergekit also writes it as mappings."""
        if isinstance(content, dict):
            parts = [_place(content[key]) for key in ("model", "lora") if content.get(key) is not None]
            content = "+".join(parts) if all(isinstance(each, str) for each in parts) else None
        if not isinstance(content, str) or not content or content.count("+") > 1:
            raise self._refusal(keys, f"a model is a directory or a hub id, not {content!r}")
        return content

    def _optional_model(self, content: Mapping[str, Any], key: str) -> str | None:
        given = content.get(key)
        model = None if given is None else self._model(given, ("genome", key))
        if model is not None and "+" in model:
            raise self._refusal(
                ("genome", key), f"{model} is a model with an adapter, which is no base; merge it first"
            )
        return model

    def _method(self, content: Any) -> str:
        if content not in tuple(EVOLUTIONARY_PARAMETERS):
            known = ", ".join(EVOLUTIONARY_PARAMETERS)
            raise self._refusal(("genome", "merge_method"), f"`merge_method` is one of {known}, not {content!r}")
        return str(content)

    def _filters(self, content: Any) -> tuple[str, ...]:
        keys: Keys = ("genome", "filters")
        if content is None:
            return ()
        if not isinstance(content, list) or not all(isinstance(each, str) and each for each in content):
            raise self._refusal(keys, "`filters` is a list of parts of tensor names")
        if len(set(content)) < len(content) or "base" in content:
            raise self._refusal(keys, "filters differ, and none of them is `base`, the part that no filter matches")
        return tuple(content)

    def _tasks(self, content: Any) -> tuple[EvolveTask, ...]:
        if not isinstance(content, list) or not content:
            raise self._refusal(("tasks",), "`tasks` is a list with at least one task")
        return tuple(self._task(each, ("tasks", place)) for place, each in enumerate(content))

    def _task(self, content: Any, keys: Keys) -> EvolveTask:
        content = {"name": content} if isinstance(content, str) else content
        if not isinstance(content, dict):
            raise self._refusal(keys, "a task is a name, or has `name`, `weight` and `metric`")
        self._check_keys(content, {"name", "weight", "metric"}, keys)
        weight = content.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not isfinite(weight):
            raise self._refusal((*keys, "weight"), f"`weight` is a number, not {weight!r}")
        if (name := self._optional_text(content, "name", keys)) is None:
            raise self._refusal(keys, "this task has no `name`")
        metric, _, chosen = (self._optional_text(content, "metric", keys) or "acc,none").partition(",")
        return EvolveTask(name=name, weight=float(weight), metric=metric, filter=chosen or None, keys=keys)

    def _optional_text(self, content: Mapping[str, Any], key: str, keys: Keys) -> str | None:
        given = content.get(key)
        if given is not None and (not isinstance(given, str) or not given):
            raise self._refusal((*keys, key), f"`{key}` is a text, not {given!r}")
        return given

    def _integer(self, content: Mapping[str, Any], key: str, keys: Keys, low: int | None = None) -> int | None:
        given = content.get(key)
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, int) or (low is not None and given < low):
            least = "" if low is None else f" of {low} or more"
            raise self._refusal((*keys, key), f"`{key}` is an integer{least}, not {given!r}")
        return given

    def _flag(self, content: Mapping[str, Any], key: str, keys: Keys) -> bool | None:
        given = content.get(key)
        if not isinstance(given, bool | None):
            raise self._refusal((*keys, key), f"`{key}` is true or false, not {given!r}")
        return given


def _place(content: Any) -> Any:
    """A place with its revision as one text."""
    if not isinstance(content, dict):
        return content
    revision = content.get("revision")
    return f"{content.get('path')}@{revision}" if revision else content.get("path")
