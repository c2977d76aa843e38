"""Reads YAML that somebody else wrote: safely, and with errors of one line."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evomerge.errors import InvalidInput, nearest
from evomerge.forms import is_file

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_ALIASES = 100  # a handful is convenience, thousands are a bomb

# How a text may begin. UTF-16 is what some editors save as "Unicode".
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

# What pydantic puts into a location for the branch of a union: no key of the document.
_BRANCH = re.compile(r"[\[(]|^(float|str|int|bool|Range|SearchSpace)$")

Model = TypeVar("Model", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]


class Frozen(BaseModel):
    """Base class of what is read from YAML: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


_BOOL = "tag:yaml.org,2002:bool"
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader that reads YAML 1.2's floats such as 1e-3 and keys such as `on`, and refuses a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == _BOOL and key.value.lower() not in ("true", "false"):
                key.tag = "tag:yaml.org,2002:str"  # YAML 1.1 takes on, off, yes and no for true and false
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1} if len(set(map(str, keys))) < len(keys) else set()
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {min(map(str, twice))!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Document:
    """One document of a YAML file, and the lines of its values."""

    content: dict[str, Any]
    _node: yaml.Node = field(repr=False)

    def line(self, keys: Sequence[str | int]) -> int:
        """Line of the value that a path of keys and positions leads to; of the last part of the path that exists."""
        node, line = self._node, self._node.start_mark.line
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                found = next(((name, value) for name, value in node.value if name.value == str(key)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                found = (node.value[key], node.value[key])
            else:
                found = None
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        return line + 1


def read_document(path: Path, kind: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InvalidInput: missing or oversized file, malformed YAML (with line and column), or no mapping at the top.
    """
    text = _bounded_text(path, kind)
    try:
        check_bounds(text, f"{kind} {str(path)!r}")
        content = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError) as error:  # a date without a day, a number of thousands of digits
        raise InvalidInput(f"{kind} {str(path)!r} is not valid YAML: {_problem(error)}") from None
    return _mapping(content, path, kind)


def parse_value(text: str) -> Any:
    """The value of a text as it would be in a document: 1e-3 is a number.

    Raises:
        yaml.YAMLError, ValueError: this is no YAML.
    """
    return yaml.load(text, Loader=_PlainLoader)


def read_documents(path: Path, kind: str) -> list[Document]:
    """The mappings in a YAML file of one document or several, each with its lines.

    Raises:
        InvalidInput: as `read_document`, or there is no document.
    """
    text = _bounded_text(path, kind)
    try:
        check_bounds(text, f"{kind} {str(path)!r}")
        contents = list(yaml.load_all(text, Loader=_PlainLoader))
        nodes = list(yaml.compose_all(text, Loader=_PlainLoader))
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{kind} {str(path)!r} is not valid YAML: {_problem(error)}") from None
    pairs = zip(contents, nodes, strict=True)
    found = [Document(_mapping(content, path, kind), node) for content, node in pairs if content is not None]
    if not found:
        raise InvalidInput(f"{kind} {str(path)!r} is empty")
    return found


def _bounded_text(path: Path, kind: str) -> str:
    if not is_file(path):
        raise InvalidInput(f"{kind} {str(path)!r} does not exist; give the path of a YAML file")
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(f"{kind} {str(path)!r} is larger than {MAX_BYTES} bytes; this is no {kind}")
    return read_text(path, kind)


def _mapping(content: Any, path: Path, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InvalidInput(f"{kind} {str(path)!r} must hold 'key: value' pairs at the top, but holds {_type(content)}")
    return content


def check_bounds(text: str, where: str, *, aliases: int = MAX_ALIASES) -> None:
    """Refuse YAML that would grow without bounds when it is built (aliases, deep nesting), and halves of characters.

    Raises:
        InvalidInput: there are more aliases or levels than allowed, or half a character, which nothing can store.
        yaml.YAMLError: this is no YAML.
    """
    depth = used = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        used += isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            line = f" in line {event.start_mark.line + 1}" if event.start_mark else ""
            raise InvalidInput(
                f"{where} has {event.value[:40]!a}{line}: \\ud800 to \\udfff are halves of characters; "
                "write the character itself"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InvalidInput(f"{where} is nested more than {MAX_DEPTH} levels deep")
    if used > aliases:
        raise InvalidInput(f"{where} has {used} YAML aliases, {aliases} are allowed")


def read_text(path: Path, kind: str) -> str:
    """The text in a file, in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        InvalidInput: the file cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{kind} {str(path)!r} is in an encoding that cannot be told (byte {error.start} is no {error.encoding}); "
            "save it as UTF-8"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{kind} {str(path)!r} cannot be read: {error.strerror or error}") from None


def validate(model: type[Model], content: object, where: str) -> Model:
    """`content` as a pydantic model; the first violation becomes an InvalidInput of one line that names the key."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InvalidInput(f"{where}: {_describe(model, error)}") from None


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    first = _first(error)
    key = ".".join(str(part) for part in first["loc"] if not _BRANCH.search(str(part))) or "(whole document)"
    if first["type"] == "extra_forbidden":
        known = _keys_beside(model, first["loc"])
        close = nearest(str(first["loc"][-1]), known)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(known))}"
        return f"key {key!r} does not exist; {hint}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    message = "give 'key: value' pairs" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
    hidden = isinstance(first["input"], dict | list) or _is_secret(model, first["loc"])
    return f"{key}: {message}" + ("" if hidden else f" (given: {first['input']!r})")


def _is_secret(model: type[BaseModel], location: Sequence[int | str]) -> bool:
    """Whether the value there may be a secret: a field that repr leaves out, or a section that has one."""
    sections: list[type[BaseModel]] = [model]
    for part in location:
        found = [section.model_fields[part] for section in sections if part in section.model_fields]
        if any(not field.repr for field in found):
            return True
        if found:
            sections = [inner for field in found for inner in _sections_in(field.annotation)]
    return any(not field.repr for section in sections for field in section.model_fields.values())


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections of a document that an annotation names, in unions and in collections too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def _first(error: ValidationError) -> Any:
    """The first violation. Where a mapping is given in the place of a text or a mapping, it is one inside of it."""
    violations = error.errors(include_url=False)
    inside = (each for each in violations if not (each["type"] == "string_type" and isinstance(each["input"], dict)))
    return next(inside, violations[0])


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The allowed keys beside the unknown one, found by walking the model's JSON schema."""
    schema = model.model_json_schema()
    node: Any = schema
    for part in location[:-1]:
        if _BRANCH.search(str(part)):
            continue
        node = _resolve(schema, node)
        step = node.get("properties", {}).get(part) or node.get("items") or node.get("additionalProperties")
        node = step if isinstance(step, dict) else {}
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node or "anyOf" in node:
        if "anyOf" in node:
            objects = [option for option in node["anyOf"] if "$ref" in option or option.get("type") != "null"]
            node = next((option for option in objects if "$ref" in option), objects[0])
        else:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{place}"


def _type(content: object) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"
