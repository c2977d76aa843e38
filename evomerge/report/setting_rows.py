"""Settings of a model of YAML as rows of a table: key, values in words, default, meaning.

The meanings are those of the docstrings ("Attributes:"), so that each is written once.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["OF_ITS_KEYS", "REQUIRED", "SettingRow", "rows_of", "summary_of", "yaml_text"]

REQUIRED = "required"
OF_ITS_KEYS = "those of its keys"

_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): ")
_WORDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Any: "anything"}
_BOUNDS: dict[type, Callable[[Any], str]] = {
    annotated_types.Ge: lambda bound: f"{bound.ge:g} or more",
    annotated_types.Gt: lambda bound: f"above {bound.gt:g}",
    annotated_types.Le: lambda bound: f"{bound.le:g} or less",
    annotated_types.Lt: lambda bound: f"below {bound.lt:g}",
}

Sections = Mapping[type[BaseModel], str]


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """A setting.

    Attributes:
        key: in YAML, with the keys around it: `losses.kl`; NAME is a name that the user chooses, [] an entry of a list.
        values: that are allowed, in words.
        default: as YAML; or `REQUIRED` or `OF_ITS_KEYS`; empty where nothing takes its place.
        section: that describes the keys below this one, if it is not here.
    """

    key: str
    values: str
    default: str
    meaning: str
    section: str | None = None


def summary_of(model: type[BaseModel]) -> str:
    """The paragraphs of a model's docstring before its attributes."""
    return (inspect.getdoc(model) or "").partition("\n\nAttributes:")[0]


def rows_of(model: type[BaseModel], sections: Sections, prefix: str = "") -> Iterator[SettingRow]:
    """A row for each field, and for each field of the models inside that have no section of their own.

    Args:
        sections: model -> the name of its section.
    """
    model.model_rebuild()  # types that stand below it in its file are strings until then
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        inside = dict(_models(field.annotation, key))
        yield SettingRow(
            key=key,
            values=_words(field.annotation, field.metadata),
            default=_default(field),
            meaning=meanings.get(name, ""),
            section=next((sections[each] for each in inside if each in sections), None),
        )
        for each, place in inside.items():
            if each not in sections:
                yield from rows_of(each, sections, f"{place}.")


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> its text in the docstrings of the model and its base classes."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        lines = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2].splitlines()
        names: list[str] = []
        for line in lines:
            if (start := _ATTRIBUTE.match(line)) is not None:
                names = start.group(1).split(", ")
                found |= dict.fromkeys(names, line[start.end() :])
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def _models(annotation: Any, key: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The models in a type, each with the key below which its fields are."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, key
    elif origin is Annotated:
        yield from _models(inside[0], key)
    elif origin is tuple:
        yield from _models(inside[0], f"{key}[]")
    elif origin is not None and issubclass(_class(origin), Mapping):
        yield from _models(inside[1], f"{key}.NAME")
    else:
        for each in inside:
            yield from _models(each, key)


def _class(origin: Any) -> type:
    return origin if isinstance(origin, type) else object


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, with the bounds that go with it."""
    words = list(dict.fromkeys(_alternatives(annotation, metadata)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _alternatives(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    metadata = [part for each in metadata for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
    for each in metadata:
        if isinstance(each, BeforeValidator) and each.json_schema_input_type is not PydanticUndefined:
            annotation, metadata = each.json_schema_input_type, ()  # wider than what it is read into
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _alternatives(inside[0], inside[1:])
    elif origin is Literal:
        yield from (f"`{value}`" for value in inside)
    elif origin in (Union, types.UnionType):
        for each in inside:
            yield from () if each is type(None) else _alternatives(each, metadata)
    elif origin is tuple:
        yield f"list of: {_words(inside[0])}"
    elif origin is not None and issubclass(_class(origin), Mapping):
        yield f"mapping from names to: {_words(inside[1])}"
    else:
        yield ", ".join([_WORDS.get(annotation, "mapping"), *_bounds(annotation, metadata)])


def _bounds(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    for each in metadata if annotation in (int, float) else ():
        if annotation is int and isinstance(each, annotated_types.Gt):
            yield f"{each.gt + 1:g} or more"  # type: ignore[operator]
        elif type(each) in _BOUNDS:
            yield _BOUNDS[type(each)](each)


def _default(field: FieldInfo) -> str:
    """The default as YAML; that of a model is in the rows of its fields."""
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return OF_ITS_KEYS
    return "" if value is None else yaml_text(value)


def yaml_text(value: Any) -> str:
    """A value as YAML in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
